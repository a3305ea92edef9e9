"""CISPO: clipped importance sampling weights."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .group_relative import GroupRelative
from .loss_settings import Aggregation

if TYPE_CHECKING:
    from torch import Tensor

    from .loss import LossTokens


class CISPO(GroupRelative):
    """Per token sg(min(rho, 1 + clip_high)) A logp, rho = exp(logp - old_logp), sg without gradient (MiniMax 2025,
    "MiniMax-M1", arXiv 2506.13585, eqs. 4 and 5).

    Not the objective is clipped but the weight of its gradient, so that no token loses its own: rare tokens that turn
    a chain of thought are the first that PPO's clip leaves out. The authors bound weights from above alone, and do not
    say by how much; 5 = 1 + clip_high is that of Khatri et al. 2025 (ScaleRL, arXiv 2510.13786). Advantages are GRPO's.
    """

    type: Literal["cispo"] = "cispo"
    clip_high: float = Field(4.0, gt=0)
    """A token's weight is at most 1 + clip_high."""
    aggregation: Aggregation = "token_mean"
    """Token losses averaged over all tokens of the optimizer batch."""

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        from .loss import LOG_RATIO_LIMIT

        weight = (tokens.logp.detach() - tokens.old_logp).clamp(max=LOG_RATIO_LIMIT).exp()
        bounded = weight.clamp(max=1 + self.clip_high)
        return bounded * tokens.advantage * tokens.logp, weight > bounded
