"""The group-relative advantage of GRPO, which most algorithms share."""

import numpy as np

from .base import PolicyGradient, episode_returns, group_normalised


class GroupRelative(PolicyGradient):
    """A = (r - mean) / (std + 1e-6) within a group, std with n - 1 (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    r = [1, 0, 0, 0] gives [1.5, -0.5, -0.5, -0.5]. On episodes r is the return, and every step gets its episode's
    advantage.
    """

    normalize_std: bool = True
    """Divide by the group's standard deviation."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        return group_normalised(returns, of_group, std=self.normalize_std)[of_row]
