"""GiGPO: group-in-group policy optimisation, for episodes of several steps."""

from difflib import SequenceMatcher
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from .base import episode_returns, group_normalised
from .clipped import ClippedPolicyGradient
from .loss_settings import Aggregation


class GiGPO(ClippedPolicyGradient):
    """A = A_episode + omega A_step (Feng et al. 2025, arXiv 2505.10978, eqs. 3 to 8).

    A_episode compares the returns of the episodes that share a start state. A_step compares rows of those
    episodes that stood in the very same state (their anchor), by their discounted return-to-go: which action
    was the better one from there. A state that was met once says nothing, so its A_step is 0.

    Standard deviations have n - 1, as the authors' code (torch.std). An invalid action's penalty is part of
    its step's reward here: it counts in the episode's return and, discounted, in the return-to-go of the steps
    that led to it. The authors' code subtracts it from the row alone, after discounting.
    """

    compares_steps: ClassVar[bool] = True

    type: Literal["gigpo"] = "gigpo"
    gamma: float = Field(0.95, ge=0, le=1)
    """Discount of the return-to-go: R_t = r_t + gamma R_(t+1). The episode's return is not discounted."""
    omega: float = Field(1.0, ge=0)
    """Weight of the step part; at 0 this is GRPO on episodes."""
    normalization: Literal["mean", "mean_std"] = "mean"
    """Within a group, episodes and steps alike: subtract the mean, or divide by the standard deviation too."""
    episode_statistics: Literal["trajectory", "step"] = "trajectory"
    """Mean and standard deviation of returns count every episode once, or once per step as the authors' first
    code did, which leans towards the longer ones."""
    similarity: float | None = Field(None, gt=0, lt=1)
    """null groups steps whose anchors are equal. A number groups those whose text is at least as similar
    (difflib's ratio, authors: 0.95) to the first of a step group."""
    aggregation: Aggregation = "sequence_mean"
    """Token losses averaged over each step's response, then over steps (eq. 9)."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        """See PolicyGradient.advantages.

        Raises:
            ValueError: rows without anchors, as single-turn tasks have them.
        """
        if len(anchor) != len(reward):
            raise ValueError("algorithm: gigpo compares the states of episodes; for single-turn tasks use grpo")
        std = self.normalization == "mean_std"
        returns, of_group, of_row = episode_returns(reward, group, trajectory)
        if self.episode_statistics == "step":
            episode = group_normalised(returns[of_row], group, std)
        else:
            episode = group_normalised(returns, of_group, std)[of_row]
        to_go = returns_to_go(reward, trajectory, step, self.gamma)
        return episode + self.omega * group_normalised(to_go, step_groups(group, anchor, self.similarity), std)


def returns_to_go(reward: np.ndarray, trajectory: np.ndarray, step: np.ndarray, gamma: float) -> np.ndarray:
    """Return R_t = r_t + gamma R_(t+1) within each trajectory, whatever the order of the rows. float32 [rows]."""
    to_go = np.array(reward, np.float32)
    order = np.lexsort((step, trajectory))
    for row, following in zip(order[-2::-1], order[:0:-1], strict=True):
        if trajectory[row] == trajectory[following]:
            to_go[row] += gamma * to_go[following]
    return to_go


def step_groups(group: np.ndarray, anchor: list[str], similarity: float | None = None) -> np.ndarray:
    """Return the step group of each row: rows of one `group` with the same anchor, or a similar one. int [rows]."""
    found: dict[tuple[int, str], int] = {}
    of_row = np.empty(len(anchor), np.int64)
    for row, key in enumerate(zip(np.asarray(group).tolist(), anchor, strict=True)):
        if key not in found:
            like = None if similarity is None else _first_similar(found, *key, similarity)
            found[key] = row if like is None else like
        of_row[row] = found[key]
    return of_row


def _first_similar(found: dict[tuple[int, str], int], group: int, anchor: str, similarity: float) -> int | None:
    """Return the earliest step group of `group` whose first anchor is similar enough, as the authors' code clusters."""
    firsts: dict[int, str] = {}
    for (of_group, text), number in found.items():
        if of_group == group:
            firsts.setdefault(number, text)
    for number, text in firsts.items():
        if SequenceMatcher(None, anchor, text, autojunk=False).ratio() >= similarity:
            return number
    return None
