"""Measurements of an update, summed over its micro batches, and the columns of steps.parquet that follow from them."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from layersweep.policies.algorithms.loss import LossTerms, k3

from .rollout_batch import RolloutBatch


class GradientMissing(RuntimeError):
    """Rewards that differ gave no gradient at all: the update computed something else than it should have."""


@dataclass
class _Totals:
    """Sums over tokens, of one rank or of all. While they are summed they are tensors on the device, float64: to read
    one there is to wait for the GPU."""

    loss: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    entropy: Tensor | float = 0.0
    clipped: Tensor | float = 0.0
    corrected: Tensor | float = 0.0
    tokens: float = 0.0
    mismatch: Tensor | float = 0.0
    mismatch_tokens: Tensor | float = 0.0
    rollout_kl: Tensor | float = 0.0


class UpdateSums:
    """Sums of one update over tokens and optimizer steps, on this rank.

    Args:
        batch: that is trained on.
    """

    def __init__(self, batch: RolloutBatch):
        self.batch, self.totals = batch, _Totals()
        self.grad_norms: list[float] = []
        """Norms of the gradients of all ranks, by optimizer step."""

    def add_loss(self, terms: LossTerms, entropy: Tensor, bounded: Tensor) -> None:
        """Add a micro batch that counts.

        Args:
            entropy, bounded: of its tokens: entropies, and whether their importance weights were bounded.
        """
        totals = self.totals
        totals.loss += terms.loss.detach().double() / self.batch.ranks
        totals.kl += terms.kl.detach().double()
        totals.clipped += terms.clipped.detach().double()
        totals.corrected += bounded.sum().double()
        totals.entropy += entropy.detach().sum().double()
        totals.tokens += len(entropy)

    def add_mismatch(self, difference: Tensor, usable: Tensor) -> None:
        """Add the trainer's log-probabilities minus the engine's, before any optimizer step.

        Args:
            usable: whether the engine gave one.
        """
        difference = torch.where(usable, difference, 0.0)
        self.totals.mismatch += difference.abs().sum().double()
        self.totals.mismatch_tokens += usable.sum().double()
        self.totals.rollout_kl += k3(difference).sum().double()

    def metrics(self) -> dict[str, float | None]:
        """Return columns of steps.parquet, over all ranks; None for what nothing measured.

        Raises:
            GradientMissing: advantages other than 0, and gradients of 0 that no clip explains.
        """
        batch, experience = self.batch, self.batch.experience
        names = [entry.name for entry in fields(_Totals)]
        values = (getattr(self.totals, name) for name in names)
        totals = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=batch.device) for value in values])
        found = _Totals(*batch.over_ranks(totals).tolist())
        steps, with_signal = len(self.grad_norms), batch.groups_with_signal
        unusable = int((~batch.usable).sum())
        if with_signal and not any(self.grad_norms) and not found.clipped + found.corrected + unusable:
            raise GradientMissing(
                f"{with_signal} groups of responses have advantages other than 0, {found.tokens:.0f} tokens were "
                "trained on, none was clipped, and the gradient is 0"
            )
        return {
            "reward_mean": float(experience.reward.mean()),
            "reward_std": float(experience.reward.std()),
            "no_signal_fraction": 1 - with_signal / len(np.unique(experience.group)),
            "loss": found.loss / max(1, steps),
            "kl": _mean(found.kl, found.tokens) if batch.algorithm.kl_coefficient > 0 else None,
            "entropy": _mean(found.entropy, found.tokens),
            "clip_fraction": _mean(found.clipped, found.tokens),
            "corrected_fraction": _mean(found.corrected, found.tokens),
            "unusable_tokens": float(unusable),
            "optimizer_steps": float(steps),
            "grad_norm": float(np.mean(self.grad_norms)) if steps else 0.0,
            "logprob_mismatch": _mean(found.mismatch, found.mismatch_tokens),
            "rollout_kl": _mean(found.rollout_kl, found.mismatch_tokens),
            "response_tokens": float(experience.lengths.mean()),
            "truncated_fraction": float(experience.truncated.mean()),
            "format_fraction": float(experience.format_ok.mean()),
            "tokens": float(experience.lengths.sum()),
        }


def _mean(total: float, tokens: float) -> float | None:
    """Return the mean over tokens; None where no token was trained on."""
    return total / tokens if tokens else None
