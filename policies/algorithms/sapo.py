"""SAPO: soft adaptive policy optimisation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .group_relative import GroupRelative
from .loss_settings import Aggregation

if TYPE_CHECKING:
    from torch import Tensor

    from .loss import LossTokens


class SAPO(GroupRelative):
    """Per token f(rho) A, f(rho) = 4 / tau sigmoid(tau (rho - 1)), rho = exp(logp - old_logp), with a tau for tokens of
    positive and one for those of other advantages (Gao et al. 2025, arXiv 2511.20347, eqs. 5 and 6).

    In place of a clip, which takes a token's gradient or leaves it: f's slope is 1 at rho = 1 and falls smoothly with
    the distance, faster for a larger tau. Advantages are GRPO's.
    """

    type: Literal["sapo"] = "sapo"
    temperature_positive: float = Field(1.0, gt=0)
    """Temperature tau where A > 0."""
    temperature_negative: float = Field(1.05, gt=0)
    """Temperature tau elsewhere; above temperature_positive it quiets negative tokens sooner, whose gradients spread
    over the whole vocabulary."""
    aggregation: Aggregation = "sequence_mean"
    """Token losses averaged over each response, then over responses."""

    def surrogate(self, tokens: "LossTokens") -> "tuple[Tensor, Tensor]":
        from .loss import LOG_RATIO_LIMIT

        log_ratio, advantage = tokens.logp - tokens.old_logp, tokens.advantage
        ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        negative = ratio.new_full(ratio.shape, self.temperature_negative)
        tau = negative.masked_fill(advantage > 0, self.temperature_positive)
        gate = (tau * (ratio - 1)).sigmoid() * 4 / tau
        return gate * advantage, advantage.new_zeros(advantage.shape).bool()
