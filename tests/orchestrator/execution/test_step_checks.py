"""What a step must show for its run to go on."""

import math

import pytest

from layersweep.orchestrator.execution.failures import LogprobMismatch, RewardCollapse, UpdateWithoutEffect
from layersweep.orchestrator.execution.step_checks import StepChecks, mismatch_limit


def row(step: int = 0, **changes) -> dict:
    return {
        "step": step, "reward_mean": 0.5, "logprob_mismatch": 5e-6, "update_norm": 0.1 * (step + 1), "grad_norm": 1.0,
        "no_signal_fraction": 0.25, "learning_rate": 1e-5,
    } | changes  # fmt: skip


def without_reward(step: int) -> dict:
    return row(step, reward_mean=0.0, no_signal_fraction=1.0, update_norm=0.1)


def test_twenty_steps_without_reward_are_a_collapse():
    checks = StepChecks("float32", "float32")
    for step in range(19):
        checks.check(without_reward(step))
    checks.check(row(19))  # one reward: counted anew
    for step in range(20, 39):
        checks.check(without_reward(step))
    with pytest.raises(RewardCollapse, match="no reward at all for 20 steps"):
        checks.check(without_reward(39))


def test_steps_of_a_checkpoint_count():
    checks = StepChecks("float32", "float32")
    checks.restart([row(0), *(without_reward(step) for step in range(1, 20))])
    with pytest.raises(RewardCollapse):
        checks.check(without_reward(20))
    checks.restart([])
    checks.check(without_reward(0))


@pytest.mark.parametrize(
    ("dtype", "engine", "limit"),
    [
        ("float32", "float32", 1e-3), ("bfloat16", "bfloat16", 0.15), ("float32", "bfloat16", 0.15),
        ("bfloat16", "float32", 0.15), ("float32", "float16", 0.02), ("bfloat16", "fp8", 0.6), ("float32", "fp8", 0.6),
    ],
)  # fmt: skip
def test_a_mismatch_that_rounding_does_not_explain(dtype, engine, limit):
    """The coarser dtype of the two decides. What was seen on real models passes."""
    assert mismatch_limit(dtype, engine) == limit
    StepChecks(dtype, engine).check(row(logprob_mismatch=limit))
    for mismatch in (1.01 * limit, math.nan, math.inf):
        with pytest.raises(LogprobMismatch, match="engine and trainer disagree at step 7"):
            StepChecks(dtype, engine).check(row(7, logprob_mismatch=mismatch))
    StepChecks(dtype, engine).check(row(logprob_mismatch=1.0, staleness=1))  # the update in between is in it
    with pytest.raises(LogprobMismatch):
        StepChecks(dtype, engine).check(row(logprob_mismatch=1.0, staleness=0))
    StepChecks(dtype, engine).check(row(logprob_mismatch=None, no_signal_fraction=1.0))  # nothing was trained on
    StepChecks(dtype, engine).check(row(logprob_mismatch=0.038 if "bfloat16" in (dtype, engine) else 5e-6))


def test_an_update_that_moves_nothing_although_it_had_a_signal():
    checks = StepChecks("float32", "float32")
    with pytest.raises(UpdateWithoutEffect, match="step 0 changed no weight, although 75% of its prompts had a signal"):
        checks.check(row(update_norm=0.0))
    checks = StepChecks("float32", "float32")
    checks.check(row(0))
    with pytest.raises(UpdateWithoutEffect, match="step 1"):
        checks.check(row(1, update_norm=0.1))  # where step 0 left it
    checks.restart([row(0), row(1)])
    with pytest.raises(UpdateWithoutEffect, match="step 2"):
        checks.check(row(2, update_norm=0.2))


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {"no_signal_fraction": 1.0}),  # nothing to learn
        ("float32", {"learning_rate": 0.0}),  # the end of a schedule
        ("bfloat16", {"grad_norm": 1e-3}),  # below the weights' rounding; the float32 master has moved
    ],
)
def test_updates_that_may_move_nothing(dtype, changes):
    StepChecks(dtype, dtype).check(row(update_norm=0.0, **changes))


def test_bfloat16_without_a_gradient_is_no_rounding():
    with pytest.raises(UpdateWithoutEffect):
        StepChecks("bfloat16", "bfloat16").check(row(update_norm=0.0, grad_norm=0.0))
