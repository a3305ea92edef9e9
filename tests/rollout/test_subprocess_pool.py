"""Calls in worker processes: bounded, tried once more when late, warm before their time is measured."""

import os
import subprocess
import sys
import time

import pytest

from layersweep.rollout.subprocess_pool import Failure, LimitedCalls


def test_results_in_order_with_failures_in_their_place():
    calls = LimitedCalls("math:factorial", cpu_seconds=0.2, processes=2)
    results = calls.map([3, -1, 10**8, 4] + [0] * 200)
    calls.close()
    assert [results[0], *results[3:]] == [6, 24] + [1] * 200
    assert results[1] == Failure("ValueError: factorial() not defined for negative values")
    assert results[2] == Failure("more than 0.8 s of CPU time", late=True)  # the second try's


def test_a_worker_that_ends_or_eats_memory_is_replaced():
    calls = LimitedCalls("builtins:eval", cpu_seconds=5)
    assert calls.map(["1 + 1", "exit()", "len(' ' * 10**11)", "__import__('os')._exit(3)", "2 + 2"]) == [
        2,
        Failure("the process ended with status 0"),
        Failure("more than 4 GiB of memory"),
        Failure("the process ended with status 3"),
        4,
    ]
    calls.close()


def test_workers_cannot_write_files(tmp_path):
    calls = LimitedCalls("builtins:eval", cpu_seconds=5)
    (failure,) = calls.map([f"open({str(tmp_path / 'file')!r}, 'w').write('x' * 99999)"])
    calls.close()
    assert isinstance(failure, Failure)
    assert (tmp_path / "file").stat().st_size == 0


def test_a_worker_that_cannot_start_says_why():
    calls = LimitedCalls("rollout.nowhere:f", cpu_seconds=1)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError.*rollout.nowhere"):
        calls.map([1])
    calls.close()


def test_workers_end_with_the_process():
    code = (
        "from layersweep.rollout.subprocess_pool import LimitedCalls\n"
        "calls = LimitedCalls('builtins:eval', 5)\n"
        "print(calls.map(['__import__(\"os\").getpid()'])[0], flush=True)\n"
        "import os; os._exit(1)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_late_call_is_tried_once_more_with_more_time():
    """0.4 s of CPU time do not fit into 0.2, but into 4 times as much."""
    calls = LimitedCalls("tests.helpers.pool_functions:burn", cpu_seconds=0.2)
    seconds = [0, 0.4, 0, 0, 0, 0, 0, 9]
    results = calls.map(seconds)
    calls.close()
    assert results == [*seconds[:-1], Failure("more than 0.8 s of CPU time", late=True)]


def test_workers_are_warm_before_their_time_is_measured():
    calls = LimitedCalls("tests.helpers.pool_functions:warm", 0.2, warm_up="tests.helpers.pool_functions:warm_up")
    assert calls.map([0]) == [True]
    calls.close()


def test_what_a_worker_started_ends_with_it():
    calls = LimitedCalls("tests.helpers.pool_functions:start_a_process", cpu_seconds=5)
    [pid] = calls.map([None])
    calls.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
