"""The clipped surrogate of PPO, which most algorithms share."""

import math
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from .base import PolicyGradient

if TYPE_CHECKING:
    from torch import Tensor

    from .loss import LossTokens


class ClippedPolicyGradient(PolicyGradient):
    """Per token min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(logp - old_logp) (Schulman et al. 2017,
    arXiv 1707.06347, eq. 7), and where A < 0 at least dual_clip A (Ye et al. 2020, arXiv 1912.09729, eq. 5).

    Where the old log-probabilities are the sampling engine's (`rollout_correction: bypass`), rho holds the mismatch of
    the two, and is truncated at importance_cap. Truncation bounds a token's weight and leaves it its gradient
    (importance_cap * A * grad logp, as Espeholt et al. 2018, IMPALA); clip and dual clip take the gradient away.
    """

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped from above at 1 + clip_high; above clip_low it is DAPO's clip-higher."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss for negative advantages, as a multiple of |A| (Ye et al. 2020); null is off. The usual 3
    needs an importance_cap above it where old log-probabilities are the engine's."""

    @model_validator(mode="after")
    def _dual_clip_is_within_reach(self) -> "ClippedPolicyGradient":
        truncated = self.rollout_correction in ("auto", "bypass")
        if truncated and self.dual_clip is not None and self.dual_clip >= self.importance_cap:
            raise ValueError(
                f"dual_clip: {self.dual_clip:g} is never reached, since ratios count at most importance_cap "
                f"{self.importance_cap:g}; raise importance_cap above it"
            )
        return self

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        from .loss import LOG_RATIO_LIMIT

        log_ratio, advantage = tokens.logp - tokens.old_logp, tokens.advantage
        if tokens.importance is None:
            ratio = (log_ratio - (log_ratio.detach() - math.log(self.importance_cap)).clamp(min=0)).exp()
        else:
            ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        surrogate = (ratio * advantage).minimum(bounded * advantage)
        clipped = ((ratio > bounded) & (advantage > 0)) | ((ratio < bounded) & (advantage < 0))
        if self.dual_clip is not None:
            surrogate = surrogate.where(advantage >= 0, surrogate.maximum(self.dual_clip * advantage))
            clipped = clipped | ((ratio > self.dual_clip) & (advantage < 0))
        return surrogate, clipped
