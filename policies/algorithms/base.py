"""The base of every algorithm: the hooks that an algorithm overrides, over the settings of the policy-gradient loss."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from .loss_settings import LossSettings

if TYPE_CHECKING:  # torch, which a spec does without
    from torch import Tensor

    from .loss import LossTerms, LossTokens


class PolicyGradient(LossSettings):
    """An algorithm: a section of the spec, and hooks, of which `advantages` and `surrogate` have no default.

    - `build`: called when a spec is validated, and by the driver for the trainers of each run.
    - `shaped`, `advantages`, `normalised`: called by `RolloutBatch` in this order, once per rollout batch, on
      every rank, over all rows of the batch, before it is split into minibatches and micro batches.
    - `loss`: called by `UpdateLoop` once per micro batch and epoch, on its tokens alone, and for the agreement of
      gradients before the first step. It calls `surrogate`, and adds what all losses have in common.

    An algorithm over the clipped surrogate is a subclass of `clipped.ClippedPolicyGradient`, which has one.

    `aggregation` weighs the tokens (`loss.token_weights`) once per minibatch; a `kl_coefficient` above 0 makes the
    trainer compute the base model's log-probabilities.
    """

    compares_steps: ClassVar[bool] = False
    """Whether advantages need the steps and anchors of episodes; the spec then refuses single-turn tasks."""

    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13): within this many tokens of the response limit the
    reward falls linearly, to -1 more at the limit. 0 is off."""
    max_num_gen_batches: PositiveInt = 1
    """DAPO's dynamic sampling: prompts whose responses are all scored alike are replaced by further ones, in so many
    rounds of generation at most (verl's name); what is missing then stays without signal. 1 replaces none."""

    def build(self) -> "PolicyGradient":
        """Return the algorithm itself, which this is."""
        return self

    def shaped(self, reward: np.ndarray, lengths: np.ndarray, max_length: int) -> np.ndarray:
        """Return the rewards [rows] after the overlong punishment, float32.

        Args:
            reward: float32 [rows], of the task.
            lengths: int [rows], tokens of each response.
            max_length: the response limit in tokens.
        """
        reward = np.asarray(reward, np.float32)
        if not self.overlong_buffer:
            return reward
        over = np.clip((lengths - (max_length - self.overlong_buffer)) / self.overlong_buffer, 0, 1)
        return reward - over.astype(np.float32)

    def advantages(
        self, reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray, step: np.ndarray, anchor: list[str]
    ) -> np.ndarray:
        """Return one advantage per row, float32 [rows].

        Args:
            reward: float32 [rows], of the response or of this step of the episode.
            group: int [rows], rows to compare with each other.
            trajectory: int [rows], the episode of each row (its own for single-turn tasks).
            step: int [rows], the turn within the episode.
            anchor: the exact state before each row's step; empty for single-turn tasks.
        """
        raise NotImplementedError

    def normalised(self, advantage: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the advantages normalised over the whole rollout batch, float32 [rows]: here as they are.

        Args:
            advantage: float32 [rows], of `advantages`.
            lengths: int [rows], tokens of each response.
        """
        return advantage

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        """Return each token's objective, which is to grow, float32 [N] with graph, and which tokens' gradient was
        clipped away, bool [N]."""
        raise NotImplementedError

    def loss(self, tokens: "LossTokens") -> "LossTerms":
        """Return one micro batch's share of the loss: here the surrogate with its KL term, see `loss.policy_loss`."""
        from .loss import policy_loss

        return policy_loss(self, tokens, *self.surrogate(tokens))


def episode_returns(reward: np.ndarray, group: np.ndarray, trajectory: np.ndarray):
    """Return per trajectory, in order of first appearance of its number: return, group; and each row's trajectory."""
    names, first, of_row = np.unique(trajectory, return_index=True, return_inverse=True)
    returns = np.zeros(len(names), np.float32)
    np.add.at(returns, of_row, np.asarray(reward, np.float32))
    return returns, group[first], of_row


def group_normalised(values: np.ndarray, group: np.ndarray, std: bool, epsilon: float = 1e-6) -> np.ndarray:
    """Subtract each group's mean from `values` and, with `std`, divide by its standard deviation (n - 1) + epsilon.

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
