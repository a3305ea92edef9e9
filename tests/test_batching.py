"""The choice between mixed and swap, on made-up rates."""

import pytest

from rollout.engine.batching import REVIEW, TRIALS, AutoBatching


def feed(batching: AutoBatching, rate: dict[bool, float], windows: int) -> None:
    """Whole windows at the rate (tokens per second) of whatever mode is on."""
    for _ in range(windows):
        batching.observe(tokens=int(rate[batching.mixed] * 0.5), seconds=0.5, finished=8, runs=7)


@pytest.mark.parametrize(("rate", "mixed"), [({True: 300, False: 100}, True), ({True: 100, False: 150}, False)])
def test_the_faster_mode_is_kept(rate, mixed):
    batching = AutoBatching()
    feed(batching, rate, 2 * TRIALS)
    assert batching.decided and batching.mixed is mixed
    assert f"mixed {rate[True]}, swap {rate[False]} tokens" in batching.reason


def test_a_tie_is_mixed_and_the_decision_is_reviewed():
    """2 % faster is within the margin of 3 %. After REVIEW windows both are tried again, and swap is now far ahead."""
    batching = AutoBatching()
    feed(batching, {True: 1000, False: 1020}, 2 * TRIALS)
    assert batching.mixed
    feed(batching, {True: 1000, False: 2000}, REVIEW + 2 * TRIALS)
    assert batching.decided and not batching.mixed


def test_one_run_alone_teaches_nothing():
    batching = AutoBatching()
    for _ in range(100):
        batching.observe(tokens=500, seconds=1.0, finished=20, runs=1)
    assert not batching.decided
