"""Stop signals that find the main thread in a finalizer or in a callback of a fork, where Python drops exceptions."""

import signal
import subprocess
import sys

import pytest

from layersweep.orchestrator.execution import ray_session
from layersweep.orchestrator.execution.own_session import STOPPED, check_interrupted, stoppable

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_a_lost_interrupt_stops_at_the_next_check(capsys):
    """The command goes on after the signal; the next command knows nothing of it."""
    went_on = []

    def command():
        Finalized()
        went_on.append(True)
        check_interrupted()
        return 0

    assert stoppable(command) == STOPPED and went_on
    assert capsys.readouterr().err.endswith("layersweep: stopped\n")
    assert stoppable(lambda: check_interrupted() or 0) == 0


def test_an_interrupt_that_is_lost_for_good_ends_with_3_and_in_silence():
    """Python would tell of an exception that it ignored, with a traceback; nobody asked before the command's end. What
    else is lost is told as ever."""
    source = (
        "import signal, sys\n"
        "from layersweep.orchestrator.execution.own_session import stoppable\n"
        "class Signals:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        "class Fails:\n"
        "    def __del__(self): raise ValueError('told')\n"
        "sys.exit(stoppable(lambda: Fails() and Signals() and 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == STOPPED
    assert "ValueError: told" in done.stderr and "KeyboardInterrupt" not in done.stderr
    assert done.stderr.endswith("layersweep: stopped\n")


def test_an_interrupt_that_a_command_handles_is_not_lost():
    """As a server ends by itself on Ctrl-C, with 0."""

    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return 0

    assert stoppable(command) == 0


def test_no_sweep_begins_after_an_interrupt_that_ray_lost(monkeypatch):
    """As when Ctrl-C comes while Ray starts: nothing begins on it."""
    monkeypatch.setattr(ray_session, "start_ray", lambda *_, **__: Finalized() and None)
    monkeypatch.setattr(ray_session, "worker_environment", lambda gpu: {})
    monkeypatch.setattr(ray_session, "show_token", lambda address: None)
    monkeypatch.setattr(ray_session, "wait_for_names", lambda namespace: None)
    begun = []

    def command():
        with ray_session.connected("auto", "layersweep-a", False):
            begun.append(True)
        return 0

    assert stoppable(command) == STOPPED and not begun
