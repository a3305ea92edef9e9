"""Checks that every training step must pass for its run to go on."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from .failures import LogprobMismatch, RewardCollapse, UpdateWithoutEffect

MAX_STEPS_WITHOUT_REWARD = 20
"""Steps of no reward at all after which a run has collapsed: nothing is left to reinforce."""
MISMATCH_LIMITS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.15, "fp8": 0.6}
"""Largest mean difference in nats between the engine's and the trainer's log-probabilities of the same tokens that
rounding explains, by the coarser format of the two.

Seen where both compute the same model: float32 2e-7 on the demo's model and 2e-6 to 5e-6 on a real one of 30 layers;
bfloat16 0.004 on small models and 0.038 on the real one. The limits are two hundred and four times the largest of
these: float32 has room for other kernels and still finds small faults, while in bfloat16 smaller ones hide in the
rounding (a stale prefix cache gave up to 0.6). float16 has three bits more of mantissa than bfloat16: an eighth. A KV
cache in FP8 makes up to 0.15 on the real model (tests/benchmarks/README.md), so only gross faults are found beside it.
"""


def mismatch_limit(*dtypes: str) -> float:
    """Look up the limit for an engine and a trainer of these formats."""
    return max(MISMATCH_LIMITS[dtype] for dtype in dtypes)


class StepChecks:
    """Checks of one run's rows of steps.parquet, in order.

    Args:
        dtype: the trainers'.
        engine_dtype: the coarsest format in which the engine computes.
        may_collapse: whether a run without any reward goes on: a control's collapse is a result.
    """

    def __init__(self, dtype: str, engine_dtype: str, may_collapse: bool = False):
        self.may_collapse = may_collapse
        self.dtype, self.limit = dtype, mismatch_limit(dtype, engine_dtype)
        self.without_reward = 0
        """Steps in a row."""
        self.update_norm = 0.0
        """Distance of the weights from the base after the last step."""

    def restart(self, rows: Sequence[dict[str, Any]]) -> None:
        """Go on after the steps of a checkpoint."""
        self.without_reward = steps_without_reward(rows)
        self.update_norm = rows[-1]["update_norm"] if rows else 0.0

    def check(self, row: dict[str, Any]) -> None:
        """Check the next step.

        Raises:
            RewardCollapse: there was no reward at all for MAX_STEPS_WITHOUT_REWARD steps.
            LogprobMismatch: engine and trainer differ by more than rounding explains.
            UpdateWithoutEffect: the update had a signal and left every weight as it was.
        """
        self.without_reward = self.without_reward + 1 if steps_without_reward([row]) else 0
        if self.without_reward >= MAX_STEPS_WITHOUT_REWARD and not self.may_collapse:
            raise RewardCollapse(f"collapsed: no reward at all for {MAX_STEPS_WITHOUT_REWARD} steps")
        # A batch without signal has no mismatch, one by other weights has their difference in it; one that is not a
        # number is a fault.
        mismatch = row["logprob_mismatch"] if not row.get("staleness") else None
        if mismatch is not None and not mismatch <= self.limit:
            raise LogprobMismatch(
                f"engine and trainer disagree at step {row['step']}: their log-probabilities of the same tokens differ "
                f"by {mismatch:.2g} nats on average, rounding explains up to {self.limit:g}; they do not compute the "
                "same model"
            )
        before, self.update_norm = self.update_norm, row["update_norm"]
        if row["no_signal_fraction"] < 1 and row["learning_rate"] > 0 and self.update_norm == before:
            # Updates far below a bfloat16 weight's rounding may change none of them, though not the float32 master.
            if self.dtype == "float32" or row["grad_norm"] == 0:
                raise UpdateWithoutEffect(
                    f"the update of step {row['step']} changed no weight, although "
                    f"{1 - row['no_signal_fraction']:.0%} of its prompts had a signal"
                )


def steps_without_reward(rows: Sequence[dict[str, Any]]) -> int:
    """Count the last steps in a row that brought no reward at all. Penalties keep an environment's mean reward from
    being exactly 0: its success rate says it."""
    return sum(1 for _ in takewhile(lambda row: row.get("success_rate", row["reward_mean"]) == 0, reversed(rows)))
