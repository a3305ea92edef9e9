"""GSPO: group sequence policy optimisation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .group_relative import GroupRelative
from .loss_settings import Aggregation

if TYPE_CHECKING:
    from torch import Tensor

    from .loss import LossTokens


class GSPO(GroupRelative):
    """A response has one ratio, s = (pi(y) / pi_old(y))^(1/|y|), the geometric mean of its tokens' ratios, and one
    clipped objective, min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) (Zheng et al. 2025, arXiv 2507.18071, eq. 5).

    s is near 1, so the clip range is three orders of magnitude narrower than a token ratio's: 3e-4 and 4e-4 in the
    paper's experiments. Advantages are GRPO's.
    """

    type: Literal["gspo"] = "gspo"
    clip_low: float = Field(3e-4, gt=0, lt=1)
    """A response's ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(4e-4, gt=0)
    """A response's ratio is clipped from above at 1 + clip_high."""
    aggregation: Aggregation = "sequence_mean"
    """Token losses averaged over each response, then over responses: every response counts once."""

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        from .loss import LOG_RATIO_LIMIT, sum_by_response

        log_ratio, advantage = tokens.logp - tokens.old_logp, tokens.advantage
        lengths = sum_by_response(log_ratio.new_ones(log_ratio.shape), tokens.response)
        log_ratio = sum_by_response(log_ratio, tokens.response) / lengths
        ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        clipped = ((ratio > bounded) & (advantage > 0)) | ((ratio < bounded) & (advantage < 0))
        return (ratio * advantage).minimum(bounded * advantage), clipped
