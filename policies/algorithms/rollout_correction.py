"""The correction for responses sampled by an engine whose log-probabilities are not quite the trainer's.

PPO's ratio pi / pi_old says how far the updates of this batch have moved the policy, and the clip bounds that. Taken
against the engine's log-probabilities it holds their mismatch too: a token with a mismatch of log(1 + clip_high) has no
gradient before any step is made. Decoupled, the ratio is against the trainer's own log-probabilities before the first
step, and the mismatch pi_old / pi_engine is an importance weight of its own, bounded and without gradient (Yao et al.
2025, "Your efficient RL framework secretly brings you off-policy RL training"; masked: Team Ling 2025, "IcePop").
"""

from typing import TYPE_CHECKING

from .loss_settings import RolloutCorrection

if TYPE_CHECKING:
    from torch import Tensor


def resolve(correction: RolloutCorrection, *dtypes: str, stale: bool = False) -> RolloutCorrection:
    """Return what `auto` means for an engine and a trainer of these dtypes; any other as it is.

    Args:
        stale: whether responses are by earlier weights than those that are updated. The updates in between are then an
            importance weight too, apart from the clip's ratio (decoupled PPO: Hilton et al. 2021, arXiv 2110.00641).
    """
    if correction != "auto":
        return correction
    return "bypass" if set(dtypes) == {"float32"} and not stale else "token_truncate"


def importance_weights(
    correction: RolloutCorrection, old_logp: "Tensor", engine_logp: "Tensor", response: "Tensor", cap: float
) -> "tuple[Tensor, Tensor]":
    """Return each token's importance weight, float32 [N], and which of them the cap has bounded, bool [N].

    Args:
        correction: any but `auto` and `bypass`.
        old_logp, engine_logp: float32 [N], of the trainer before its first step, and of the sampling engine.
        response: int64 [N], number of the response that a token belongs to; whole responses are here.
        cap: of the weights.
    """
    from .loss import LOG_RATIO_LIMIT, sum_by_response

    log_weight = old_logp - engine_logp
    if correction.startswith("sequence"):
        log_weight = sum_by_response(log_weight, response)
    weight = log_weight.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    bounded = weight > cap
    if correction == "none":
        return weight.new_ones(weight.shape), bounded.new_zeros(bounded.shape)
    return weight.masked_fill(bounded, cap if correction.endswith("truncate") else 0.0), bounded
