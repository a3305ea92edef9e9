"""Settings that every loss reads (`loss.policy_loss`, `loss.token_weights`, `rollout_correction`); without torch, which
a spec does without."""

from typing import Literal

from pydantic import Field

from layersweep.policies.strict import StrictModel

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum_over_max_length"]
RolloutCorrection = Literal[
    "auto", "bypass", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
]


class LossSettings(StrictModel):
    """Fields of the spec's `algorithm` section that every loss reads."""

    rollout_correction: RolloutCorrection = "auto"
    """How the engine's log-probabilities, which differ from the trainer's by rounding, enter the loss. `bypass`: they
    are the old log-probabilities of its ratio (as verl's bypass_mode), and the mismatch goes through the clip.
    Otherwise the trainer computes the old log-probabilities before its first step, and each token's loss is weighted
    by the importance weight exp(old - engine's) of the token, or of its whole response (`sequence_`): at most
    importance_cap (`_truncate`), or 0 above it (`_mask`), as TRL names them; `none` leaves the weight out. `auto`:
    bypass where engine and trainer compute in float32, the KV cache too, and rollout.staleness is 0, else
    token_truncate."""
    importance_cap: float = Field(2.0, gt=1)
    """Truncated importance sampling: ratios against the sampling engine's log-probabilities count at most this (masked
    importance sampling: none above it counts)."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || base) in the loss; the base is the frozen trunk itself."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the entropy bonus: so much of each token's entropy, in nats, is subtracted from its loss."""
    aggregation: Aggregation = "sequence_mean"
    """How token losses become one number; see layersweep.policies.algorithms.loss.token_weights."""
