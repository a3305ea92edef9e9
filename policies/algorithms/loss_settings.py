"""Settings of the policy-gradient loss (`loss.policy_loss`, `loss.token_weights`); without torch, which a spec does
without."""

from typing import Literal

from pydantic import Field, model_validator

from layersweep.policies.strict import StrictModel

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum_over_max_length"]


class LossSettings(StrictModel):
    """Fields of the spec's `algorithm` section that the loss reads."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped from above at 1 + clip_high; above clip_low it is DAPO's clip-higher."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss for negative advantages, as a multiple of |A| (Ye et al. 2020); null is off. The usual 3
    needs an importance_cap above it."""
    importance_cap: float = Field(2.0, gt=1)
    """Truncated importance sampling: ratios against the sampling engine's log-probabilities count at most this."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || base) in the loss; the base is the frozen trunk itself."""
    aggregation: Aggregation = "sequence_mean"
    """How token losses become one number; see layersweep.policies.algorithms.loss.token_weights."""

    @model_validator(mode="after")
    def _dual_clip_is_within_reach(self) -> "LossSettings":
        if self.dual_clip is not None and self.dual_clip >= self.importance_cap:
            raise ValueError(
                f"dual_clip: {self.dual_clip:g} is never reached, since ratios count at most importance_cap "
                f"{self.importance_cap:g}; raise importance_cap above it"
            )
        return self
