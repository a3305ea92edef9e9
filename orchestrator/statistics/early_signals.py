"""Do early signals predict which layers contribute? Their values by layer, and their rank correlation with C."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .profile_agreement import FEWEST_LAYERS

SHARES = (0.1, 0.25, 0.5)
"""Shares of the steps at which the training reward is looked at."""


@dataclass(frozen=True)
class Signal:
    """Early signal of every layer that trained, against the contribution of those that completed."""

    name: str
    values: pd.Series
    """Values by selection; missing where the run did not get that far."""
    layers: int
    """Completed, with signal and contribution."""
    spearman: float
    """NaN where fewer than four layers have both, or one of the two is the same for all."""

    @property
    def by_chance(self) -> float:
        """Unrelated rankings of so many layers stay within plus or minus this in about 95 of 100 cases."""
        return stats.norm.ppf(0.975) / np.sqrt(self.layers - 1)


def early_signals(table: pd.DataFrame, steps: pd.DataFrame) -> list[Signal]:
    """First gradient norm, its agreement across prompts, and mean training reward up to a share of the steps.

    Every run's first batch is the same, written by the base, so first gradients are comparable between layers. Their
    agreement is the cosine between the gradients of the even and of the odd prompts. Rewards are those of sampled
    batches and noisy.
    """
    layers = table[table["kind"] == "layer"].set_index("selection")
    completed = layers.loc[layers["status"] == "completed", "contribution"].astype(float).dropna()
    own = steps[steps["selection"].isin(layers.index)]
    if not len(own):
        return []
    first = own[own["step"] == 0]
    found = {
        name: first.groupby("selection")[column].mean()
        for name, column in (("gradient norm", "grad_norm"), ("gradient agreement", "gradient_agreement"))
        if column in steps  # not in sweeps of an earlier version
    }
    done = own.groupby("selection")["step"].max() + 1
    for share in SHARES:
        last = max(1, round(share * int(done.max())))
        reward = own[own["step"] < last].groupby("selection")["reward_mean"].mean()
        found[f"reward to step {last} ({100 * share:.0f} %)"] = reward.where(done >= last)
    return [_signal(name, values.astype(float).reindex(layers.index), completed) for name, values in found.items()]


def _signal(name: str, values: pd.Series, contribution: pd.Series) -> Signal:
    known = values.reindex(contribution.index).dropna()
    gained = contribution[known.index]
    comparable = len(known) >= FEWEST_LAYERS and known.nunique() > 1 and gained.nunique() > 1
    spearman = float(stats.spearmanr(known, gained).statistic) if comparable else np.nan
    return Signal(name, values, len(known), spearman)
