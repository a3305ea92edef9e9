"""Calls of one function in worker processes, each bounded in CPU time and memory and killed when it exceeds them.

For judging what a model wrote with libraries that may take for ever on it (a power tower, a catastrophic regular
expression).
"""

import importlib
import os
import queue
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from layersweep.rollout.child_process import ChildProcess, answer_requests

MEMORY_BYTES = 4 << 30
MOST_LATE = 16
"""Late calls of one `map` with `wall_seconds` after which the rest is given up: each holds up all that come after."""
TRACEBACK_CHARS = 4000
FRAME = 64
"""Number of calls sent to a worker at a time."""
SECOND_TRY = 4
"""Multiple of the time with which a call that ran out of it is tried once more, in a frame of its own: whether there is
a result should not depend on how busy the machine is."""


@dataclass(frozen=True)
class Failure:
    """A call that has no result."""

    reason: str
    late: bool = False
    """Whether it ran out of time, rather than raised an exception or ended its process."""
    traceback: str = field(default="", compare=False)
    """Traceback of an exception."""


@dataclass
class _GivenUp:
    """Count of the late calls of one `map`."""

    late: int = 0


class LimitedCalls:
    """A pool of workers that call one function; they start with the first call that needs them."""

    def __init__(
        self, function: str, cpu_seconds: float, processes: int = 1, warm_up: str = "", *, bound: Sequence[Any] = (),
        wall_seconds: float | None = None, memory_bytes: int = MEMORY_BYTES, file_bytes: int = 0,
    ):  # fmt: skip
        """Names the function as `package.module:name`; it takes and returns one JSON-like value.

        Args:
            cpu_seconds: CPU time of one call at most.
            warm_up: a function, named likewise, that each worker calls without bound before its first call.
            bound: JSON-like arguments of both functions, before the value.
            wall_seconds: wall time of one call at most, after which it is not tried again, and after MOST_LATE late
                calls of one `map` neither are those that have not begun; None bounds it loosely, for code that does not
                wait.
            memory_bytes: address space of a worker at most.
            file_bytes: size of a file that a worker writes at most; 0 is none at all.
        """
        self._setup = {"function": function, "warm_up": warm_up, "bound": list(bound), "memory_bytes": memory_bytes,
                       "file_bytes": file_bytes}  # fmt: skip
        self._cpu_seconds, self._wall_seconds = cpu_seconds, wall_seconds
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="limited-calls")
        self._idle: queue.LifoQueue[ChildProcess | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)

    def map(self, calls: Sequence[Any]) -> list[Any]:
        """Return the result of each call, or its Failure: out of time or memory, an exception, a dead process.

        Raises:
            RuntimeError: when a worker cannot even start, with its own error.
        """
        frames = [calls[i : i + FRAME] for i in range(0, len(calls), FRAME)]
        if self._wall_seconds is not None:
            given_up = _GivenUp()
            return list(chain.from_iterable(self._threads.map(partial(self._run, given_up=given_up), frames)))
        results = list(chain.from_iterable(self._threads.map(self._run, frames)))
        late = [i for i, result in enumerate(results) if isinstance(result, Failure) and result.late]
        again = self._threads.map(lambda i: self._run([calls[i]], SECOND_TRY * self._cpu_seconds), late)
        for i, [result] in zip(late, again, strict=True):
            results[i] = result
        return results

    def close(self) -> None:
        """End the workers. They also end by themselves when this process does."""
        self._threads.shutdown()
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.kill()

    def _run(
        self, calls: Sequence[Any], cpu_seconds: float | None = None, given_up: "_GivenUp | None" = None
    ) -> list[Any]:
        cpu_seconds = cpu_seconds or self._cpu_seconds
        results: list[Any] = []
        worker = self._idle.get()
        try:
            while len(results) < len(calls):
                if given_up and given_up.late >= MOST_LATE:
                    results += [Failure(f"not called, since {MOST_LATE} calls of the batch were late", late=True)] * (
                        len(calls) - len(results)
                    )
                    break
                worker = worker or self._worker()
                left = calls[len(results) :]
                worker.send({"cpu_seconds": cpu_seconds, "calls": left})
                for _ in left:
                    # Wall time bounds what burns no CPU; on a busy machine it must be far above the CPU time.
                    if (reply := worker.receive(self._wall_seconds or 10 + 20 * cpu_seconds)) is None:
                        break
                    failed = "error" in reply
                    results.append(Failure(reply["error"], False, reply["traceback"]) if failed else reply["result"])
                if len(results) < len(calls):  # the next call is the one that ended the worker
                    results.append(_failure(*worker.kill(), cpu_seconds, self._setup["memory_bytes"]))
                    worker = None
                    if given_up and results[-1].late:
                        given_up.late += 1
        finally:
            self._idle.put(worker)
        return results

    def _worker(self) -> ChildProcess:
        try:
            return ChildProcess("layersweep.rollout.subprocess_pool", self._setup)
        except RuntimeError as error:
            raise RuntimeError(f"no worker process for {self._setup['function']}: {error}") from error


def _failure(reason: str, status: int | None, cpu_seconds: float, memory_bytes: int) -> Failure:
    if status == -signal.SIGPROF:
        return Failure(f"more than {cpu_seconds:g} s of CPU time", late=True)
    if status == os.EX_OSERR:
        return Failure(f"more than {memory_bytes / 2**30:g} GiB of memory")
    return Failure(reason, late=status is None)


def _named(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _prepare(setup: dict[str, Any]) -> Callable[[Any], Iterator[Any]]:
    """Import the function, warm up, and only then limit the worker process."""
    call = partial(_named(setup["function"]), *setup["bound"])
    if setup["warm_up"]:
        _named(setup["warm_up"])(*setup["bound"])
    # What is judged may print, and must not write files unless that is asked for.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (setup["file_bytes"], setup["file_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"], setup["memory_bytes"]))

    def answer(frame: dict[str, Any]) -> Iterator[Any]:
        for argument in frame["calls"]:
            # The default action of this timer's signal ends the process, whatever code it is in.
            signal.setitimer(signal.ITIMER_PROF, frame["cpu_seconds"])
            try:
                reply = {"result": call(argument)}
            except MemoryError:
                os._exit(os.EX_OSERR)  # a fresh process has its memory back
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"[:500], "traceback": _traceback(error)}
            signal.setitimer(signal.ITIMER_PROF, 0)
            yield reply

    return answer


def _traceback(error: Exception) -> str:
    """Return the frames of an exception below this module's own, at most TRACEBACK_CHARS of them."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.format_exception(type(error), error, frames))[-TRACEBACK_CHARS:]


if __name__ == "__main__":
    answer_requests(_prepare)
