"""A sweep in a process of its own, which Python code can wait for, follow and stop.

The driver needs a main thread for its signals, an event loop, and environment variables set before Ray starts: a
notebook or a service has none of these to spare. The child reads its request as JSON from standard input and writes
one JSON line per event to a pipe; what it prints goes to a log.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from layersweep.orchestrator.spec.errors import REFUSED, SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.storage.files import NoStore

from . import factorial
from .launch import EXIT, OUTCOME
from .progress import ProgressEvent

_CHILD = f"""
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request.pop("path")
from {__name__} import carry_out_request
sys.exit(carry_out_request(request, int(sys.argv[1])))
"""
_LOG_TAIL = 2000
"""Characters of the log in an error."""


class SweepProcess:
    """A child process that runs or resumes one sweep. It ends with checkpoints when this process dies.

    Args:
        request: `spec` (a resolved spec), `address`, `fresh`; or `sweep`, `spec_file`, `overrides`, `address`.
    """

    def __init__(self, request: dict[str, Any]):
        self._events: list[dict[str, Any]] = []
        self._over = False
        self._news = threading.Condition()
        self._log = tempfile.TemporaryFile()
        readable, writable = os.pipe()
        with os.fdopen(writable, "w"):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(writable)],
                stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=[writable], start_new_session=True,
            )  # fmt: skip
        with self._process.stdin as stdin:
            stdin.write(json.dumps(request | {"path": sys.path}).encode())
        self._reader = threading.Thread(target=self._read, args=(readable,), daemon=True)
        self._reader.start()

    def events(self) -> Iterator[ProgressEvent]:
        """Every event from the start of the sweep to its end, as they come.

        Raises:
            SpecError: the sweep was refused.
            RuntimeError: the process died.
        """
        seen = 0
        while True:
            with self._news:
                while not self._over and len(self._events) == seen:
                    self._news.wait()
                if len(self._events) == seen:
                    break
                event = self._events[seen]
            seen += 1
            if "problems" not in event:
                yield ProgressEvent(**event)
        self.wait()

    def wait(self) -> str:
        """Wait for the end; returns `completed`, `failed` (some runs did) or `stopped`. Ctrl-C stops the sweep first.

        Raises:
            SpecError: the sweep was refused.
            RuntimeError: the process died.
        """
        try:
            code = self._process.wait()
        except KeyboardInterrupt:
            self.stop()
            self._process.wait()
            raise
        self._reader.join()
        if code == REFUSED and self._events and "problems" in self._events[-1]:
            raise SpecError(self._events[-1]["problems"])
        if code in OUTCOME:
            return OUTCOME[code]
        raise RuntimeError(f"the sweep's process ended with code {code}: ...{self.log()[-_LOG_TAIL:]}")

    def stop(self) -> None:
        """Ask the sweep to write checkpoints and end; a second time, to end at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def log(self) -> str:
        """Text that the sweep has printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def _read(self, readable: int) -> None:
        with os.fdopen(readable) as lines:
            for line in lines:
                with self._news:
                    self._events.append(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


def carry_out_request(request: dict[str, Any], pipe: int) -> int:
    """Run or resume in the child, with each event as a line of JSON to a pipe; returns the exit code."""
    os.set_inheritable(pipe, False)
    orphaned = False

    def write(event: dict[str, Any]) -> None:
        nonlocal orphaned
        try:
            os.write(pipe, (json.dumps(event) + "\n").encode())
        except BrokenPipeError:  # the parent is gone; one signal asks for checkpoints, two end at once
            if not orphaned:
                orphaned = True
                os.kill(os.getpid(), signal.SIGINT)

    def listen(event: ProgressEvent) -> None:
        write(asdict(event))

    try:
        if "sweep" in request:
            more = request["spec_file"], request["address"], request["overrides"]
            return factorial.resume(request["sweep"], *more, listen)
        return factorial.run(parse_spec(request["spec"]), request["address"], request["fresh"], listen)
    except (SpecError, NoStore) as error:
        write({"problems": getattr(error, "problems", [str(error)])})
        return REFUSED
    except KeyboardInterrupt:  # before the driver has handlers of its own
        return EXIT["stopped"]
