"""A command in a session of its own, with its Ray, so that signals to a process group do not end Ray first.

`timeout`, systemd, Slurm's scancel and a closing terminal signal every process of a group at once. Ray's daemons would
be gone before the driver could save anything. So the command runs in a child that leads a session of its own; the
parent, which stays in the group, passes stop signals on to the child alone, and ends what is left of the session after
it: agents of a Ray that was killed while it came up would else stay for a minute.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a sweep to write its checkpoints and end."""
STOPPED = 3
"""Exit code of a sweep that was stopped before its end."""
GRACE = 2.0
"""Seconds that processes of a session have to end by themselves once its command has ended."""
_PR_SET_PDEATHSIG = 1
_interrupted = threading.Event()
"""Whether `_interrupt` has raised within the present command."""


def in_own_session(command: Callable[[], int]) -> int:
    """Run a command in a child process that leads a session of its own; it is killed if this process is.

    To be called while the process has one thread. Returns the command's exit code.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone before it could be watched
            os._exit(STOPPED)
        code = command()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    asked_to_stop = False

    def forward(number: int, frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _end_session(child)
    if code >= 0:
        return code
    return STOPPED if asked_to_stop else 128 - code


def _end_session(leader: int) -> None:
    """Wait for a session's processes to end, and kill those that do not."""
    for pid in _wait_for_end(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_for_end(leader)


def _wait_for_end(session: int) -> list[int]:
    """Return the processes of a session that have not ended in time."""
    until = time.monotonic() + GRACE
    while (left := _processes_of(session)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _processes_of(session: int) -> list[int]:
    """Return the processes of a session that have not ended. Linux keeps its number from others while it has any."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(folder.name))
    return found


def stoppable(command: Callable[[], int]) -> int:
    """Run a command that a stop signal ends with STOPPED, at whatever moment it comes. Returns its exit code."""
    before, report, lost = stop_handlers(), sys.unraisablehook, threading.Event()

    def dropped(error: Any) -> None:  # by Python, in a finalizer or a callback
        lost.set() if error.exc_type is KeyboardInterrupt else report(error)

    interrupt_on_stop()
    sys.unraisablehook = dropped
    try:
        code = command()
        if lost.is_set():
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        print("layersweep: stopped", file=sys.stderr)
        return STOPPED
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:  # else by Ray's handler, which `ray.init` sets for a moment
            raise
        print("layersweep: stopped", file=sys.stderr)
        return STOPPED
    finally:
        _interrupted.clear()
        restore_handlers(before)
        sys.unraisablehook = report


def stop_handlers() -> dict[int, Any]:
    """Return the present handlers of the stop signals."""
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Set handlers that `stop_handlers` returned; in other threads than the main one nothing can have changed."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def interrupt_on_stop() -> None:
    """Have every stop signal raise KeyboardInterrupt, as Ctrl-C does, until others handle them."""
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)


def check_interrupted() -> None:
    """Raise the KeyboardInterrupt of a stop signal that was lost: Python ignores what is raised in callbacks of forks
    and in finalizers, where a signal may find it.

    Raises:
        KeyboardInterrupt: a stop signal has come, and the command went on all the same.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt


def stop_at_once() -> None:
    """End the sweep of this process without checkpoints, as two stop signals do."""
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def leave_terminal() -> None:
    """Send output nowhere from now on: the terminal is closed, and writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _interrupt(number: int, frame: object) -> None:
    _interrupted.set()
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt
