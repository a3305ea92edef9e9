"""Calls of a user's own code in worker processes, within limits, and what is said of those that fail."""

import errno
import os
import sysconfig
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from layersweep.policies.strict import StrictModel
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls

LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib"))
NO_ROOM = (os.strerror(errno.EFBIG), "disk I/O error")
"""Words for a file above RLIMIT_FSIZE by Python, and by SQLite."""


class CallLimits(StrictModel):
    """Limits of worker processes that run code of the user's own. What they print is lost.

    A call that scores a response and raises, exceeds its time or memory, or gives no finite number counts as a loss:
    the response gets 0 and adds to `unjudged_fraction`, and the sweep goes on.
    """

    seconds: float = Field(10.0, gt=0, le=3600)
    """Bound on one call, in CPU time and in wall time."""
    memory_mib: int = Field(4096, ge=256, le=1 << 20)
    """Bound on the memory of a worker process."""
    file_mib: int = Field(0, ge=0, le=1 << 20)
    """Bound on the size of a file that a call writes, such as a cache of a judge's answers; 0 is no file at all."""
    processes: int = Field(2, ge=1, le=256)
    """Worker processes for the calls."""

    def pool(self, module: str, bound: Any, processes: int | None = None) -> LimitedCalls:
        """Make worker processes that call `call(bound, request)` of a module, after its `warm_up(bound)`."""
        return LimitedCalls(
            f"{module}:call", self.seconds, processes or self.processes, f"{module}:warm_up", bound=[bound],
            wall_seconds=self.seconds, memory_bytes=self.memory_mib << 20, file_bytes=self.file_mib << 20,
        )  # fmt: skip


class FailureLog:
    """Reporter of failures: each kind once."""

    def __init__(self) -> None:
        self._reported: set[tuple[str, str]] = set()
        self._notices: list[str] = []

    def report(self, what: str, results: Sequence[Any], texts: Sequence[str]) -> None:
        """Note the first failure of each kind in a batch, with its traceback and how many responses have it.

        Args:
            what: of the user's code has failed.
            results: of the batch; those that are no Failure are left out.
            texts: of the responses.
        """
        failed = [(result, text) for result, text in zip(results, texts, strict=True) if isinstance(result, Failure)]
        for failure, text in failed:
            if (what, _kind(failure)) in self._reported:
                continue
            self._reported.add((what, _kind(failure)))
            count = sum(_kind(other) == _kind(failure) for other, _ in failed)
            self._notices.append(
                f"{what} failed on {count} of {len(results)} responses of this batch, which count as losses (reward 0, "
                f"unjudged_fraction); later ones like it are counted alone. It failed on {text[:80]!r}: "
                f"{(failure.traceback or failure.reason).rstrip()}"
            )

    def notices(self) -> list[str]:
        """Return what was noted since the last call."""
        notices, self._notices = self._notices, []
        return notices


def trial(calls: LimitedCalls, requests: Sequence[Any]) -> list[Any]:
    """Make some calls, as a trial.

    Raises:
        ValueError: the worker process cannot import the code.
    """
    try:
        return calls.map(requests)
    except RuntimeError as error:
        raise ValueError(str(error).partition("ValueError: ")[2] or str(error)) from error


def last_line(failure: Failure) -> str:
    """Return the last line of a failure's traceback, with the place that it came from: in code of the user's own, if
    any, not in a library that it calls."""
    frames = [line.strip() for line in failure.traceback.splitlines() if line.lstrip().startswith('File "')]
    own = [frame for frame in frames if not frame.removeprefix('File "').startswith(LIBRARIES)]
    place = f" ({(own or frames)[-1].partition(', in ')[0]})" if frames else ""
    wrote = any(word in failure.reason for word in NO_ROOM)
    return f"{failure.reason}{place}{'; it may write files of at most file_mib, 0 unless set' if wrote else ''}"


def _kind(failure: Failure) -> str:
    return failure.reason.partition(":")[0]
