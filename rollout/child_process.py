"""A child process that answers JSON lines with JSON lines: both of its ends, for the pools of `rollout`.

For code that may hang, crash or eat memory and cannot be interrupted from within: a signal reaches Python only between
two of its instructions, and only its main thread. Children are started anew (nothing is forked), so a process with
threads, such as a Ray actor, may use them from any of its threads.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

START_SECONDS = 120
"""Time for a child to import its libraries and warm up; beyond it something is wrong with the machine."""

EXIT_SECONDS = 5
"""Time for a child that has closed its output to exit with its own status."""


class ChildProcess:
    """The parent's end. The child ends with its parent: its standard input is then closed."""

    def __init__(self, module: str, setup: dict[str, Any]):
        """Start `python -m module`, whose `answer_requests` is given the setup; return when the child is ready.

        Raises:
            RuntimeError: the child cannot start; the message holds its own error.
        """
        self._buffer = b""
        self._ended = False
        self._waited = 0.0
        path = os.pathsep.join(filter(None, sys.path))  # -P alone would hide a job's working folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # killed with all that it starts; Ctrl-C reaches the parent alone
        )
        self.send(setup)
        reply = self.receive(START_SECONDS) or {"error": "it died or did not answer in time"}
        if "error" in reply:
            self.kill()
            raise RuntimeError(reply["error"])

    def send(self, message: Any) -> None:
        """Write a message; when the child has ended, the next `receive` says so."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except BrokenPipeError:
            pass

    def receive(self, seconds: float) -> Any:
        """Return the next reply; None when the child has ended or the time is up, see `kill`."""
        out = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not poll.poll(max(0, end - time.monotonic()) * 1000):
                self._waited = seconds
                return None
            if not (more := os.read(out, 1 << 16)):
                self._ended = True
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def kill(self) -> tuple[str, int | None]:
        """End the child and all that it started.

        Returns:
            The reason why there was no reply, and the status if the child ended by itself.
        """
        pid = self._process.pid
        deadline = time.monotonic() + EXIT_SECONDS
        while self._ended and time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.005)
        os.killpg(pid, signal.SIGKILL)  # not yet waited for, so the group still exists
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        if self._ended:
            return f"the process ended with status {status}", status
        return f"no answer within {self._waited:g} s", None


def answer_requests(prepare: Callable[[dict[str, Any]], Callable[[Any], Iterable[Any]]]) -> None:
    """Run the child's end until its standard input is closed.

    Args:
        prepare: makes a function from the setup; it takes a message and yields the replies. It is the place for imports
            and for all that the first request should not have to wait for.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no reply
    try:
        answer = prepare(json.loads(sys.stdin.readline()))
    except BaseException as error:
        out.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error  # the parent says it; a traceback beside that is nobody's
    out.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        for reply in answer(json.loads(line)):
            out.write(json.dumps(reply) + "\n")
