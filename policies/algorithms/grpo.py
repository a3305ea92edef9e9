"""GRPO: group-relative policy optimisation."""

from typing import Literal

import numpy as np

from .base import PolicyGradient, episode_returns, group_normalised
from .loss_settings import Aggregation


class GRPO(PolicyGradient):
    """A = (r - mean) / (std + 1e-6) within a group, std with n - 1 (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    r = [1, 0, 0, 0] gives [1.5, -0.5, -0.5, -0.5]. On episodes r is the return, and every step gets its
    episode's advantage. DAPO (Yu et al. 2025) is this with clip_high 0.28, `token_mean` and an overlong buffer.
    """

    type: Literal["grpo"] = "grpo"
    normalize_std: bool = True
    """Divide by the group's standard deviation."""
    aggregation: Aggregation = "sequence_mean"
    """Token losses averaged over each response, then over responses."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        return group_normalised(returns, of_group, std=self.normalize_std)[of_row]
