"""The choice between mixed and swap, on made-up rates."""

import re

import pytest

from layersweep.rollout.engine.batching import REVIEW, TRIALS, AutoBatching


def feed(batching: AutoBatching, rate: dict[bool, float], windows: int) -> None:
    """Whole windows at the rate (tokens per second) of whatever mode is on."""
    for _ in range(windows):
        batching.observe(tokens=int(rate[batching.mixed] * 0.5), seconds=0.5, finished=8, runs=7)
        if batching.draining:
            batching.drained()


@pytest.mark.parametrize(("rate", "mixed"), [({True: 300, False: 100}, True), ({True: 100, False: 150}, False)])
def test_the_faster_mode_is_kept(rate, mixed):
    batching = AutoBatching()
    feed(batching, rate, 1 + 2 * TRIALS)  # the first window is thrown away
    assert batching.decided and batching.mixed is mixed
    assert f"mixed {rate[True]}, swap {rate[False]} tokens" in batching.reason


def test_a_tie_is_mixed_and_the_decision_is_reviewed():
    """2 % faster is within the margin of 3 %. After REVIEW windows both are tried again, and swap is now far ahead."""
    batching = AutoBatching()
    feed(batching, {True: 1000, False: 1020}, 1 + 2 * TRIALS)
    assert batching.mixed
    feed(batching, {True: 1000, False: 2000}, REVIEW + 2 * TRIALS)
    assert batching.decided and not batching.mixed


def test_one_run_alone_teaches_nothing():
    batching = AutoBatching()
    for _ in range(100):
        batching.observe(tokens=500, seconds=1.0, finished=20, runs=1)
    assert not batching.decided


def serve(batching: AutoBatching, runs: int, steps: int, seconds: float, per_row: float) -> None:
    """One round of an engine: a request of `steps` tokens from each run, all at once. A step takes `seconds` and
    `per_row` for each request in it. What is admitted is what RolloutEngine admits."""
    waiting, active = list(range(runs)), dict[int, int]()
    while waiting or active:
        if batching.draining and not active:
            batching.drained()
        if not batching.draining:
            admitted = waiting if batching.mixed else waiting[: not active]
            active |= dict.fromkeys(admitted, steps)
            waiting = waiting[len(admitted) :]
        there = len(waiting) + len(active)
        spent = seconds + per_row * len(active)
        active = {run: left - 1 for run, left in active.items()}
        done = [run for run, left in active.items() if not left]
        for run in done:
            del active[run]
        batching.observe(steps * len(done), spent, len(done), there)


@pytest.mark.parametrize(
    ("runs", "seconds", "per_row", "mixed"),
    [(16, 0.012, 0.0001, True), (16, 0.018, 0.0001, True), (7, 0.04, 0.001, True), (16, 0.001, 0.05, True),
     (16, -0.02, 0.05, False)],
)  # fmt: skip
def test_windows_that_end_within_a_round(runs, seconds, per_row, mixed):
    """A round of 16 runs, 16 steps of 13.6 ms, is over before a window's quarter of a second is: the second round is
    under way when the window ends. By hand: mixed gives 16 tokens for 13.6 ms, swap 1 for 12.1 ms. Where a step costs
    nothing but its rows both are the same but for 2 %, and where single rows are cheapest swap is ahead. A round that
    began in one mode may end in the other: hence the 10 %."""
    batching, rounds = AutoBatching(), 0
    while not batching.decided:
        serve(batching, runs, 16, seconds, per_row)
        rounds += 1
        assert rounds < 100
    assert batching.mixed is mixed
    rate = {True: runs / (seconds + per_row * runs), False: 1 / (seconds + per_row)}
    measured = [float(number) for number in re.findall(r"\d+", batching.reason)]
    assert measured == [pytest.approx(rate[True], rel=0.1), pytest.approx(rate[False], rel=0.1)]
