"""The contribution table on the terminal."""

from typing import Any

from rich.table import Table

from .format import interval_text, number_text, plain_text, wide_console


def show_table(table: Any) -> None:
    """The contribution table on the terminal."""
    shown = Table("selection", "score", "95 %", "contribution", "95 %", "rank", "steps", "status")
    for row in table.itertuples():
        shown.add_row(
            row.selection, number_text(row.score), interval_text(row.score_low, row.score_high),
            number_text(row.contribution), interval_text(row.contribution_low, row.contribution_high),
            plain_text(row.rank), plain_text(row.steps),
            f"{row.status}: {row.reason}" if row.status == "failed" else row.status,
        )  # fmt: skip
    console = wide_console()
    console.print(shown)
    if (table["status"] == "pruned").any():
        console.print("The contribution of a pruned layer is an extrapolation, from the step where it stopped.")
