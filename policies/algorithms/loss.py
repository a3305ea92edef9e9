"""The policy-gradient loss over flat response tokens.

A loss is a weighted sum of token losses. The weights are fixed for a whole optimizer batch before it is split,
so micro batches and data-parallel ranks just add up: no aggregation can depend on the split or on padding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .loss_settings import Aggregation, LossSettings


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
class LossTerms:
    """One micro batch's share of the loss (scalar, with graph) and what to log (weighted sums, detached)."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip removed."""


def policy_loss(
    settings: LossSettings,
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    weight: Tensor,
    ref_logp: Tensor | None = None,
) -> LossTerms:
    """Return the clipped surrogate plus the KL penalty, summed with the given weights.

    Per token, with rho = exp(logp - old_logp) truncated at importance_cap:
    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), at most dual_clip |A| where A < 0 (Schulman et al.
    2017 eq. 7; Ye et al. 2020), plus kl_coefficient * k3, k3 = exp(q) - q - 1 with q = ref_logp - logp
    (Schulman 2020, "Approximating KL divergence").

    Truncation bounds a token's weight and leaves it its gradient (importance_cap * A * grad logp, as Espeholt et
    al. 2018, IMPALA); clip and dual clip take the gradient away.

    Args:
        settings: the algorithm, as a rule.
        logp: float [N] of the policy, with graph.
        old_logp: float [N] of the sampling engine: the ratio so contains its mismatch with the trainer, and the
            truncation bounds what that can do.
        advantage: float [N].
        weight: float [N], from token_weights.
        ref_logp: float [N] of the base model; needed when kl_coefficient is above 0.
    """
    logp = logp.float()
    log_ratio = logp - old_logp.float()
    excess = (log_ratio.detach() - math.log(settings.importance_cap)).clamp(min=0)
    ratio = torch.exp(log_ratio - excess)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    if settings.dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, settings.dual_clip * advantage), surrogate)
    token_loss = -surrogate
    with torch.no_grad():
        flat = ((ratio > clipped) & (advantage > 0)) | ((ratio < clipped) & (advantage < 0))
        if settings.dual_clip is not None:
            flat |= (ratio > settings.dual_clip) & (advantage < 0)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        q = ref_logp.float() - logp
        kl = torch.expm1(q) - q
        token_loss = token_loss + settings.kl_coefficient * kl
    return LossTerms((token_loss * weight).sum(), kl.detach().sum(), flat.sum())
