"""Do early signals predict which layers contribute? Their rank correlation with C, over the layers of a sweep."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

FEWEST_LAYERS = 4
SHARES = (0.1, 0.25, 0.5)
"""Of the steps: where the training reward is looked at."""


@dataclass(frozen=True)
class Signal:
    """One early signal against the contribution."""

    name: str
    spearman: float
    layers: int

    @property
    def by_chance(self) -> float:
        """Unrelated rankings of so many layers stay within plus or minus this in about 95 of 100 cases."""
        return stats.norm.ppf(0.975) / np.sqrt(self.layers - 1)


def early_signals(table: pd.DataFrame, steps: pd.DataFrame) -> list[Signal]:
    """Signals of the completed layers: first gradient norm, its agreement across prompts, and mean training reward up
    to a share of the steps.

    Every run's first batch is the same, written by the base, so first gradients are comparable between layers. Their
    agreement is the cosine between the gradients of the even and of the odd prompts.
    Rewards are those of sampled batches and noisy. None where fewer than four layers have both.
    """
    layers = table[(table["kind"] == "layer") & (table["status"] == "completed")]
    contribution = layers.set_index("selection")["contribution"].astype(float).dropna()
    own = steps[steps["selection"].isin(contribution.index)]
    if not len(own):
        return []
    count = int(own["step"].max()) + 1
    first = own[own["step"] == 0]
    found = [
        _signal("gradient norm at the first step", first, "grad_norm", contribution),
        _signal("gradient agreement across prompts at the first step", first, "gradient_agreement", contribution),
    ]
    for share in SHARES:
        last = max(1, round(share * count))
        name = f"mean training reward of the first {last} steps ({100 * share:.0f} %)"
        found.append(_signal(name, own[own["step"] < last], "reward_mean", contribution))
    return [signal for signal in found if signal is not None]


def _signal(name: str, steps: pd.DataFrame, column: str, contribution: pd.Series) -> Signal | None:
    if column not in steps:  # of a sweep by an earlier version
        return None
    values = steps.groupby("selection")[column].mean().astype(float).reindex(contribution.index)
    known = values.notna()
    if known.sum() < FEWEST_LAYERS or values[known].nunique() < 2 or contribution[known].nunique() < 2:
        return None
    return Signal(name, float(stats.spearmanr(values[known], contribution[known]).statistic), int(known.sum()))
