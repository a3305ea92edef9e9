"""Rejection sampling: cross-entropy on right responses. No choice of a spec: its supervised controls train so."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from .base import PolicyGradient, episode_returns
from .loss_settings import RolloutCorrection

if TYPE_CHECKING:
    from torch import Tensor

    from .loss import LossTokens

RIGHT = 0.5
"""A response, or an episode, with at least this return is right."""


class RejectionSampling(PolicyGradient):
    """-logp of each token of right responses, a mean over the tokens of a response, then over right responses of the
    rollout batch (rejection sampling fine-tuning: Yuan et al. 2023, arXiv 2308.01825; RAFT: Dong et al. 2023,
    arXiv 2304.06767, eq. 4).

    Where the base has generated the responses, it is supervised training on what the base can do already: no reward
    compares responses, and wrong ones have no part. Rewards [1, 0, 0, 1] give "advantages" [2, 0, 0, 2]: half of the
    responses are trained on, and count twice in a mean over all.
    """

    type: Literal["rejection_sampling"] = "rejection_sampling"
    rollout_correction: RolloutCorrection = "bypass"
    """No importance weights: the responses stand as they are, whoever wrote them."""

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        returns, _, of_row = episode_returns(reward, group, trajectory)
        right = (returns >= RIGHT)[of_row]
        return (right * (len(right) / max(1, right.sum()))).astype(np.float32)

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        import torch

        return tokens.logp * tokens.advantage, torch.zeros_like(tokens.logp, dtype=torch.bool)
