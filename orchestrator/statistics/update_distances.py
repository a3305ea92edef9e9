"""How far layer runs and full have moved the weights: a ratio C itself does not show."""

import pandas as pd

COMPARABLE = 2.0
"""Ratio up to which two distances from the base count as comparable."""


def distance_sentence(table: pd.DataFrame) -> str:
    """Say that single layers and full have moved distances that are not comparable; empty where they are, or where
    there are not both.

    The distance is `update_norm`, the L2 norm of a run's change: learning rates that favour one kind make it differ.
    """
    done = table[(table["status"] == "completed") & table["update_norm"].notna()]
    full, layers = (done.loc[done["kind"] == kind, "update_norm"].astype(float) for kind in ("full", "layer"))
    if not len(full) or not len(layers) or full.iloc[0] <= 0:
        return ""
    ratios = layers / full.iloc[0]
    if 1 / COMPARABLE <= ratios.min() and ratios.max() <= COMPARABLE:
        return ""
    low, high = f"{ratios.min():.2g}", f"{ratios.max():.2g}"
    times = low if low == high else f"{low} to {high}"
    return f"Single layers moved {times} times as far from the base as full did (L2 norm), at their learning rates."
