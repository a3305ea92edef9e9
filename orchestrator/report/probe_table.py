"""The agreement of a probe's measures with C on the terminal."""

from collections.abc import Mapping

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.statistics.probe_agreement import LOOKED_AT, MEASURES

from .format import interval_text, number_text, wide_console


def show_agreement(found: Mapping[str, pd.DataFrame]) -> None:
    """Print how measures agree with C, by the sweeps' names; nothing where none has enough layers for it."""
    if not any(map(len, found.values())):
        return
    shown = Table("sweep", "measure", "of", "layers", "Spearman seen", "corrected", "95 %",
                  f"best C of its first {LOOKED_AT}", "at random", "best C")  # fmt: skip
    for name, rows in found.items():
        for row in rows.to_dict("records"):
            shown.add_row(
                name, MEASURES[row["measure"]], row["of"], str(row["layers"]),
                number_text(row["spearman"]), number_text(row["rho"]), interval_text(row["rho_low"], row["rho_high"]),
                number_text(row["found"]), number_text(row["found_by_chance"]), number_text(row["best"]),
            )  # fmt: skip
    wide_console().print(shown)
