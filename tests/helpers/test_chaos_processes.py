"""The helper that looks after a sweep's processes, when one goes between two looks."""

import random
import signal
import subprocess

import psutil

from tests.helpers.chaos import Processes, _signal


def test_a_process_that_is_gone_between_two_looks(monkeypatch):
    child = subprocess.Popen(["sleep", "300"])
    processes = Processes(child)
    assert [process.pid for process in processes.all()] == [child.pid]
    child.kill()
    child.wait()
    monkeypatch.setattr(psutil.Process, "is_running", lambda self: True)  # as it was a moment ago
    assert processes.all() == [] and processes.of("Trainer") == [] and processes.left(seconds=0) == []


def test_a_fault_for_a_process_that_is_gone_did_not_come(monkeypatch):
    child = subprocess.Popen(["sleep", "300"])
    processes = Processes(child)
    monkeypatch.setattr(Processes, "of", lambda self, role: [self.driver])
    child.kill()
    child.wait()
    assert _signal("Trainer", signal.SIGSTOP)(random.Random(0), processes, None) is None
