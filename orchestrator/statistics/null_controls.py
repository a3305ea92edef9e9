"""Controls that should gain nothing, and whether they did."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the terminal's table needs this module, without pandas
    import pandas as pd

WITHOUT_SIGNAL = ("random_reward", "constant_reward", "random_direction")
"""Types of controls that know nothing of which responses are right."""


def null_sentence(table: "pd.DataFrame") -> str:
    """Say how many of these controls have a C that could be 0; empty where there is none.

    Args:
        table: the content of contribution.parquet.
    """
    rows = table[(table["kind"] == "control") & table["control"].isin(WITHOUT_SIGNAL) & table["contribution"].notna()]
    if not len(rows):
        return ""
    near = (rows["contribution_low"] <= 0) & (rows["contribution_high"] >= 0)
    apart = ", ".join(rows.loc[~near, "selection"])
    return (
        f"Of {len(rows)} controls that should gain nothing (random or constant reward, random direction) {near.sum()} "
        f"have 0 in the 95 % interval of C{f'; not so {apart}' if apart else ''}."
    )
