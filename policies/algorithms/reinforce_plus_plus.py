"""REINFORCE++: REINFORCE with advantages normalised over the whole batch."""

from typing import Literal

import numpy as np

from .base import episode_returns, group_normalised
from .clipped import ClippedPolicyGradient
from .loss_settings import Aggregation


class ReinforcePlusPlus(ClippedPolicyGradient):
    """A = (r - mean) / std over all tokens of the rollout batch, not within a group (Hu et al. 2025, arXiv 2501.03262).

    Each token has its response's reward, so a response counts by its length in mean and standard deviation (n, not
    n - 1), as in the authors' code (OpenRLHF). Rewards 1 and 0 of responses of 1 and 3 tokens: mean 1/4, variance 3/16,
    advantages 1.732 and -0.577. Groups whose responses are all scored alike have advantages too. The KL penalty is that
    of every algorithm here, a term of the loss; the paper's own subtracts it from the rewards.
    """

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    group_baseline: bool = False
    """REINFORCE++-baseline: subtract the mean of the group first, for several responses to each prompt."""
    aggregation: Aggregation = "token_mean"
    """Token losses averaged over all tokens of the optimizer batch."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        return (group_normalised(returns, of_group, std=False) if self.group_baseline else returns)[of_row]

    def normalised(self, advantage: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        if (advantage == advantage[0]).all():
            return np.zeros_like(advantage)
        values = advantage.astype(np.float64)
        mean = np.average(values, weights=lengths)
        deviation = np.sqrt(np.average((values - mean) ** 2, weights=lengths))
        return ((values - mean) / deviation).astype(np.float32)
