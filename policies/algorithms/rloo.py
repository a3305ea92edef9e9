"""RLOO: REINFORCE with a leave-one-out baseline."""

from typing import Literal

import numpy as np

from .base import episode_returns, group_normalised
from .clipped import ClippedPolicyGradient
from .loss_settings import Aggregation


class RLOO(ClippedPolicyGradient):
    """A = r - mean of the other responses' r = n / (n - 1) (r - mean) (Ahmadian et al. 2024, arXiv 2402.14740, eq. 6).

    r = [1, 0, 0, 0] gives [1, -1/3, -1/3, -1/3]. A whole response is one action: its token losses are summed, divided
    by the constant maximum response length, and averaged over responses. On episodes r is the return.
    """

    type: Literal["rloo"] = "rloo"
    aggregation: Aggregation = "sequence_sum_over_max_length"
    """Token losses summed over each response, over the maximum response length, averaged over responses."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        _, of_value, counts = np.unique(of_group, return_inverse=True, return_counts=True)
        size = counts[of_value].astype(np.float32)
        return (group_normalised(returns, of_group, std=False) * size / np.maximum(size - 1, 1))[of_row]
