"""Controls that should gain nothing, and whether they did."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the terminal's table needs this module, without pandas
    import pandas as pd

WITHOUT_SIGNAL = ("random_reward", "constant_reward", "random_direction")
"""Types of controls that know nothing of which responses are right."""


def null_sentence(table: "pd.DataFrame") -> str:
    """Say of how many of these controls C could be 0, and which have gained or lost; empty where there is none.

    Args:
        table: the content of contribution.parquet.
    """
    rows = table[(table["kind"] == "control") & table["control"].isin(WITHOUT_SIGNAL) & table["contribution"].notna()]
    if not len(rows):
        return ""
    gained, lost = rows[rows["contribution_low"] > 0], rows[rows["contribution_high"] < 0]
    said = [
        f"{verb} {', '.join(found['selection'])}" for verb, found in (("gained", gained), ("lost", lost)) if len(found)
    ]
    near = len(rows) - len(gained) - len(lost)
    named = "".join(f"; {text}" for text in said)
    return (
        "Controls that should gain nothing (random or constant reward, random direction) with 0 in the 95 % interval "
        f"of C: {near} of {len(rows)}{named}."
    )
