"""Calls of one function in worker processes, each bounded in CPU time and memory and killed when it exceeds them.

For judging what a model wrote with libraries that may take for ever on it (a power tower, a catastrophic regular
expression) and cannot be interrupted from within: a signal reaches Python only between two of its instructions, and
only its main thread. The workers are ordinary child processes that read JSON from a pipe; nothing is forked, so a
process with threads (a Ray actor) may use them, from any of its threads.
"""

import importlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

START_SECONDS = 120
"""A worker imports its libraries within this time, or something is wrong with the machine."""
MEMORY_BYTES = 4 << 30
FRAME = 64
"""Calls sent to a worker at a time."""


@dataclass(frozen=True)
class Failure:
    """A call that has no result."""

    reason: str


class LimitedCalls:
    """A pool of workers that call one function; they start with the first call that needs them."""

    def __init__(self, function: str, cpu_seconds: float, processes: int = 1):
        """`function` is named as `package.module:name`; it takes and returns one JSON-like value."""
        self._function = function
        self._cpu_seconds = cpu_seconds
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="bounded")
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)

    def map(self, calls: Sequence[Any]) -> list[Any]:
        """The result of each call, or its Failure: out of time or memory, an exception, a dead process.

        Raises:
            RuntimeError: when a worker cannot even start, with its own error.
        """
        frames = [calls[i : i + FRAME] for i in range(0, len(calls), FRAME)]
        return list(chain.from_iterable(self._threads.map(self._run, frames)))

    def close(self) -> None:
        """Ends the workers. They also end by themselves when this process does."""
        self._threads.shutdown()
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.kill()

    def _run(self, calls: Sequence[Any]) -> list[Any]:
        results: list[Any] = []
        worker = self._idle.get()
        try:
            while len(results) < len(calls):
                worker = worker or _Worker(self._function, self._cpu_seconds)
                # A worker that dies leaves results short: the next call is the one that killed it.
                results += worker.run(calls[len(results) :])
                if len(results) < len(calls):
                    results.append(Failure(worker.kill()))
                    worker = None
        finally:
            self._idle.put(worker)
        return results


class _Worker:
    """One child process, as seen from its parent."""

    def __init__(self, function: str, cpu_seconds: float):
        self._cpu_seconds = cpu_seconds
        self._buffer = b""
        self._ended = False
        # Wall time bounds what burns no CPU; on a busy machine it must be far above the CPU time.
        self._wall_seconds = 10 + 20 * cpu_seconds
        path = os.pathsep.join(filter(None, sys.path))  # -P alone would hide a job's working folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "layersweep.rollout.subprocess_pool", function, str(cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C ends the parent, which ends the worker
        )
        ready = self._line(START_SECONDS)
        if ready != b"ready":
            self.kill()
            reason = json.loads(ready) if ready else "it died or did not answer in time"
            raise RuntimeError(f"no worker process for {function}: {reason}")

    def run(self, calls: Sequence[Any]) -> list[Any]:
        """The results in order, fewer than calls when the process died or hangs."""
        try:
            _write_all(self._process.stdin.fileno(), json.dumps(calls).encode() + b"\n")
        except BrokenPipeError:
            self._ended = True
            return []
        results: list[Any] = []
        while len(results) < len(calls) and (line := self._line(self._wall_seconds)) is not None:
            reply = json.loads(line)
            results.append(Failure(reply["error"]) if "error" in reply else reply["result"])
        return results

    def kill(self) -> str:
        """Ends the process; returns why it had to."""
        if not self._ended:
            self._process.kill()
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        if not self._ended:
            return f"no reply within {self._wall_seconds:g} s"
        if status == -signal.SIGPROF:
            return f"more than {self._cpu_seconds:g} s of CPU time"
        return f"the process ended with status {status}"

    def _line(self, seconds: float) -> bytes | None:
        """The next line without its end; None when the process ended or the time is up."""
        out = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not poll.poll(max(0, end - time.monotonic()) * 1000):
                return None
            if not (more := os.read(out, 1 << 16)):
                self._ended = True
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _serve(function: str, cpu_seconds: float) -> None:
    """The worker process: a line with a list of calls in, a line per result out."""
    out = os.dup(1)
    try:
        module, name = function.split(":")
        call = getattr(importlib.import_module(module), name)
    except BaseException:
        _write_all(out, json.dumps(traceback.format_exc()).encode() + b"\n")
        raise
    # What is judged may print, and must not write files.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _write_all(out, b"ready\n")
    for line in sys.stdin.buffer:
        for argument in json.loads(line):
            # The default action of this timer's signal ends the process, whatever code it is in.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                reply = {"result": call(argument)}
            except MemoryError:
                os._exit(os.EX_OSERR)  # a fresh process has its memory back
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"[:500]}
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write_all(out, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
