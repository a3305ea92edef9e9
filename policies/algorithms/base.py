"""What every algorithm shares: the settings of the policy-gradient loss, and the interface of advantages."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from layersweep.policies.strict import StrictModel

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum_over_max_length"]


class PolicyGradient(StrictModel):
    """Settings of the clipped surrogate; an algorithm adds how it turns rewards into advantages."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped from above at 1 + clip_high; above clip_low it is DAPO's clip-higher."""
    dual_clip: float | None = Field(None, gt=1)
    """For negative advantages the loss is at most dual_clip times |A| (Ye et al. 2020); null is off. The usual 3
    needs an importance_cap above it."""
    importance_cap: float = Field(2.0, gt=1)
    """Truncated importance sampling: ratios against the sampling engine's log-probabilities count at most this."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || base) in the loss; the base is the frozen trunk itself."""
    aggregation: Aggregation = "sequence_mean"
    """How token losses become one number; see layersweep.policies.algorithms.loss.token_weights."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13): within this many tokens of the response limit the
    reward falls linearly, to -1 more at the limit. 0 is off."""

    @model_validator(mode="after")
    def _dual_clip_is_within_reach(self) -> "PolicyGradient":
        if self.dual_clip is not None and self.dual_clip >= self.importance_cap:
            raise ValueError(
                f"dual_clip: {self.dual_clip:g} is never reached, since ratios count at most importance_cap "
                f"{self.importance_cap:g}; raise importance_cap above it"
            )
        return self

    def build(self) -> "PolicyGradient":
        """The algorithm itself, which this is."""
        return self

    def shaped(self, reward: np.ndarray, lengths: np.ndarray, max_length: int) -> np.ndarray:
        """Rewards [rows] after the overlong punishment, float32."""
        reward = np.asarray(reward, np.float32)
        if not self.overlong_buffer:
            return reward
        over = np.clip((lengths - (max_length - self.overlong_buffer)) / self.overlong_buffer, 0, 1)
        return reward - over.astype(np.float32)

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        """One advantage per row, float32 [rows].

        Args:
            reward: float32 [rows], of the response or of this step of the episode.
            group: int [rows], rows to compare with each other.
            trajectory: int [rows], the episode of each row (its own for single-turn tasks).
            step: int [rows], the turn within the episode.
            anchor: the exact state before each row's step; empty for single-turn tasks.
        """
        raise NotImplementedError


def episode_returns(reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray):
    """Per trajectory, in order of first appearance of its number: return, group; and each row's trajectory index."""
    names, first, of_row = np.unique(trajectory, return_index=True, return_inverse=True)
    returns = np.zeros(len(names), np.float32)
    np.add.at(returns, of_row, np.asarray(reward, np.float32))
    return returns, group[first], of_row


def group_normalised(values: np.ndarray, group: np.ndarray, std: bool, epsilon: float = 1e-6) -> np.ndarray:
    """`values` minus their group's mean and, with `std`, over the group's standard deviation (n - 1) + epsilon.

    Zero where all values of a group are equal, and for a group of one. float32 [values].
    """
    _, of_value, counts = np.unique(group, return_inverse=True, return_counts=True)
    values = np.asarray(values, np.float32)
    mean = np.bincount(of_value, values) / counts
    centred = values - mean[of_value]
    # Differences of equal floats from their mean are rounding, not signal.
    spread = np.zeros(len(counts), np.float32)
    np.maximum.at(spread, of_value, np.abs(values - values[np.unique(of_value, return_index=True)[1]][of_value]))
    centred[spread[of_value] == 0] = 0.0
    if std:
        variance = np.bincount(of_value, centred**2) / np.maximum(counts - 1, 1)
        centred = centred / (np.sqrt(variance)[of_value] + epsilon)
    return centred.astype(np.float32)
