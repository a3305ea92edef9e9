"""The common part of all policy-gradient losses, over flat response tokens.

A loss is a weighted sum of token losses. The weights are fixed for a whole optimizer batch before it is split,
so micro batches and data-parallel ranks just add up: no aggregation can depend on the split or on padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .loss_settings import Aggregation, LossSettings

LOG_RATIO_LIMIT = 20.0
"""Log-ratios count at most this, up and down, so that none overflows (as in verl)."""
KL_LIMIT = 10.0
"""A token's k3 counts at most this (as in verl)."""


def token_weights(lengths: Tensor, aggregation: Aggregation, max_length: int) -> Tensor:
    """Return the weight of each response's tokens in the loss of one optimizer batch.

    Args:
        lengths: [responses] tokens of each response of the optimizer batch (skipped ones included).
        aggregation: `token_mean` is 1 / all tokens (DAPO); `sequence_mean` is 1 / (own length * responses)
            (GRPO); `sequence_sum_over_max_length` is 1 / (max_length * responses) (Dr. GRPO).
        max_length: the response limit in tokens.

    Returns:
        float32 [responses]. For lengths 2 and 4 with token losses +1 and -1 and limit 8 the three losses are
        -1/3, 0 and -0.125.
    """
    lengths = lengths.float()
    if aggregation == "token_mean":
        return torch.full_like(lengths, 1.0) / lengths.sum().clamp(min=1)
    if aggregation == "sequence_mean":
        return 1.0 / (lengths.clamp(min=1) * len(lengths))
    return torch.full_like(lengths, 1.0 / (max_length * len(lengths)))


@dataclass(frozen=True)
class LossTokens:
    """The response tokens of one micro batch, which holds whole responses: what a loss knows of each, [N] each."""

    logp: Tensor
    """Log-probabilities by the policy, float32, with graph."""
    old_logp: Tensor
    """Those that the ratio is taken against, float32: the trainer's before the first step of the batch, or the
    sampling engine's (see `rollout_correction`)."""
    advantage: Tensor
    weight: Tensor
    """Weights in the loss, from token_weights."""
    response: Tensor
    """Number of the response that the token belongs to, int64."""
    importance: Tensor | None = None
    """Importance weights against the sampling engine (`rollout_correction.importance_weights`); None where `old_logp`
    is the engine's."""
    ref_logp: Tensor | None = None
    """Log-probabilities by the base model; needed when kl_coefficient is above 0."""
    entropy: Tensor | None = None
    """Entropies of the distributions, with graph; needed when entropy_coefficient is above 0."""


@dataclass(frozen=True)
class LossTerms:
    """One micro batch's share of the loss (scalar, with graph) and what to log (weighted sums, detached)."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip removed."""


def policy_loss(settings: LossSettings, tokens: LossTokens, surrogate: Tensor, clipped: Tensor) -> LossTerms:
    """Return minus the surrogate, times its importance weights, plus the KL penalty, minus the entropy bonus, summed
    with the token weights.

    The penalty is kl_coefficient * k3(ref_logp - logp).

    Args:
        settings: the algorithm, as a rule.
        tokens: of the micro batch.
        surrogate: float32 [N] with graph, each token's objective, which is to grow.
        clipped: bool [N], tokens whose gradient the surrogate has clipped away.
    """
    token_loss = -surrogate
    if tokens.importance is not None:
        token_loss = token_loss * tokens.importance
    kl = torch.zeros_like(tokens.logp)
    if tokens.ref_logp is not None:
        kl = k3(tokens.ref_logp.float() - tokens.logp)
        token_loss = token_loss + settings.kl_coefficient * kl
    if settings.entropy_coefficient:
        token_loss = token_loss - settings.entropy_coefficient * tokens.entropy
    return LossTerms((token_loss * tokens.weight).sum(), kl.detach().sum(), clipped.sum())


def k3(log_ratio: Tensor) -> Tensor:
    """Return exp(q) - q - 1 of each log-ratio q, at most KL_LIMIT (Schulman 2020, "Approximating KL divergence").

    Over samples of a policy, with q = logp of another - its own, the mean is the KL divergence to the other.
    """
    q = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(q) - q).clamp(max=KL_LIMIT)


def sum_by_response(values: Tensor, response: Tensor) -> Tensor:
    """Return for each token the sum of `values` [N] over the tokens of its response, [N]."""
    _, place = response.unique(return_inverse=True)
    return torch.zeros_like(values).index_add(0, place, values)[place]
