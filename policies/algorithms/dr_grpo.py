"""Dr. GRPO: GRPO done right, without its two biases."""

from typing import Literal

import numpy as np

from .base import episode_returns, group_normalised
from .clipped import ClippedPolicyGradient
from .loss_settings import Aggregation


class DrGRPO(ClippedPolicyGradient):
    """A = r - mean within a group (Liu et al. 2025, arXiv 2503.20783).

    No standard deviation, which overweights questions that are nearly always or never solved; and token losses
    are summed and divided by the constant maximum response length, as in the authors' code, not by each
    response's own length, which favours long wrong answers.
    """

    type: Literal["dr_grpo"] = "dr_grpo"
    aggregation: Aggregation = "sequence_sum_over_max_length"
    """Token losses summed over each response, over the maximum response length, averaged over responses."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        return group_normalised(returns, of_group, std=False)[of_row]
