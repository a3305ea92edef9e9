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
        Failure("SystemExit: None"),
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


@pytest.mark.parametrize("meanwhile", ["pass", "threading.Thread(target=calls.map, args=([hang],)).start()"])
def test_workers_end_with_the_process(tmp_path, meanwhile):
    """Also one that is in a call which never ends, without burning CPU time."""
    began = tmp_path / "began"
    code = f"""
import os, threading, time
from layersweep.rollout.subprocess_pool import LimitedCalls
calls = LimitedCalls('builtins:eval', 5, file_bytes=1)
hang = "[open({str(began)!r}, 'w').close(), __import__('threading').Event().wait()]"
print(calls.map(['__import__("os").getpid()'])[0], flush=True)
{meanwhile}
while {meanwhile != "pass"} and not os.path.exists({str(began)!r}):
    time.sleep(0.01)
os._exit(1)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_what_a_worker_calls_neither_reads_nor_forks_its_messages():
    """Standard input is empty for it and for what it starts; a fork that is not ended answers nothing."""
    calls = LimitedCalls("builtins:eval", cpu_seconds=20)
    fork = "[__import__('os').fork() and 1, {}][1]"
    read = "__import__('subprocess').run(['cat'], capture_output=True).stdout.decode()"
    results = calls.map([*(fork.format(k) for k in range(4)), read, "input()", *map(str, range(8))])
    results += calls.map([str(k) for k in range(8)])
    calls.close()
    assert results == [0, 1, 2, 3, "", Failure("EOFError: EOF when reading a line"), *range(8), *range(8)]


def test_a_result_that_cannot_be_sent_is_a_failure():
    calls = LimitedCalls("builtins:eval", cpu_seconds=5)
    results = calls.map(["{1}", "()", "1"])
    calls.close()
    assert results == [
        Failure("what was given cannot be sent: TypeError: Object of type set is not JSON serializable"), [], 1
    ]  # fmt: skip


def test_an_exception_that_cannot_be_shown_is_a_failure():
    calls = LimitedCalls("tests.helpers.pool_functions:raise_mute", cpu_seconds=5)
    assert calls.map([0]) == [Failure("Mute: (without a message, as its __str__ fails)")]
    calls.close()


def test_a_worker_that_does_not_start_in_time_says_so(monkeypatch):
    monkeypatch.setattr("layersweep.rollout.child_process.START_SECONDS", 2)
    calls = LimitedCalls("builtins:eval", 1, warm_up="time:sleep", bound=[1000])
    with pytest.raises(RuntimeError, match="no answer within 2 s while it started"):
        calls.map(["1"])
    calls.close()


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
