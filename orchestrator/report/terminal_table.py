"""The contribution table on the terminal."""

from typing import Any

from rich.table import Table

from layersweep.orchestrator.statistics.null_controls import null_sentence
from layersweep.orchestrator.statistics.seeds import one_run_each, seeds_trained
from layersweep.orchestrator.statistics.update_distances import distance_sentence

from .format import interval_text, number_text, plain_text, wide_console


def interval_title(table: Any) -> str:
    """Return the head of a column of intervals; with one seed it says so."""
    return "95 %" if not (said := one_run_each(seeds_trained(table))) else "95 %,\n" + said.replace(" run", "\nrun")


def without_contribution(table: Any) -> str:
    """Say why completed runs have no C; empty where all have one."""
    bare = table[(table["status"] == "completed") & (table["kind"] != "trial") & table["contribution"].isna()]
    reasons = bare["contribution_reason"].dropna().unique()
    return f"No contribution: {'; '.join(reasons)}." if len(reasons) else ""


def without_driver(table: Any) -> Any:
    """Return the table as it is once its driver has ended: runs that were `running` are `stopped`."""
    return table.assign(status=table["status"].replace("running", "stopped"))


def show_table(table: Any) -> None:
    """Print the contribution table."""
    interval = interval_title(table)
    shown = Table("selection", "score", interval, "contribution", interval, "rank", "steps", "status")
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
    for said in (without_contribution(table), distance_sentence(table), null_sentence(table)):
        if said:
            console.print(said)
