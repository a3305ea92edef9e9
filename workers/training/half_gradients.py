"""The loss's gradients of the even and of the odd prompts of a rollout batch, and how far they agree."""

import math

import numpy as np
import torch
from torch import Tensor

from .microbatch_cache import CacheBudget
from .rollout_batch import RolloutBatch


def half_gradients(batch: RolloutBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of both halves at the present weights, float32, a tensor per parameter; 0 where a half has
    no signal."""
    even, odd = batch.halves()
    return _gradient(batch, even), _gradient(batch, odd)


def agreement(batch: RolloutBatch) -> float:
    """Return the cosine between the gradients of both halves; NaN where one has no signal.

    It takes as much memory as AdamW's moments, which are not there yet at the first step.
    """
    even, odd = half_gradients(batch)
    dot, norm_even, norm_odd = _dot(even, odd), math.sqrt(_dot(even, even)), math.sqrt(_dot(odd, odd))
    return dot / (norm_even * norm_odd) if norm_even and norm_odd else math.nan


def _gradient(batch: RolloutBatch, rows: np.ndarray) -> list[Tensor]:
    """Return the loss's gradient over some rows and all ranks, float32, a tensor per parameter.

    The KL term has no gradient at the base. torch.autograd.grad on the bare policy leaves the gradients that a backend
    keeps as they are.
    """
    parameters = list(batch.policy.parameters())
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for micro_batch in batch.micro_batches(rows, kl=False, budget=CacheBudget(0)):
        logp, entropy = batch.policy(micro_batch.batch, micro_batch.hidden, batch.training.temperature)
        tokens, _ = batch.loss_tokens(micro_batch, logp, entropy)
        for so_far, gradient in zip(
            total, torch.autograd.grad(batch.algorithm.loss(tokens).loss, parameters), strict=True
        ):
            so_far += gradient
    return [batch.over_ranks(gradient) for gradient in total]


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the dot product of two gradients, summed over their tensors."""
    return float(torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).double().sum())
