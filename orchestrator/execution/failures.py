"""Failures: which are retried with another actor, which end one run, and the one line that explains each."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import ray

from layersweep.rollout.data.locations import PERMANENT
from layersweep.rollout.types import EngineStopped, StaleWeights, TransferFailed
from layersweep.workers.storage.retries import STORE_DELAYS

logger = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT_FACTOR = 10
"""A call times out after this multiple of the longest previous call of the same kind."""
RETRYABLE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.TaskCancelledError,
    EngineStopped,
    StaleWeights,
    TransferFailed,
)
REASON_HEAD, REASON_TAIL = 700, 300
"""Characters of a long reason that are kept: it names the file or field first, and the value last."""


class CallTimeout(RuntimeError):
    """A call that takes far longer than any before it: the actor hangs."""

    def __init__(self, kind: str, seconds: float):
        super().__init__(f"{kind} unanswered after {seconds:.0f} s")
        self.kind = kind


class RunFailure(RuntimeError):
    """The end of one run for a reason that a retry does not change; the other runs go on."""


class RewardCollapse(RunFailure):
    """Training has broken down: no reward is left to reinforce."""


class LogprobMismatch(RunFailure):
    """Engine and trainer give the same tokens different log-probabilities: they do not compute the same model."""


class UpdateWithoutEffect(RunFailure):
    """An update that changed no weight although its batch had a signal."""


class BaseModelChanged(RunFailure):
    """The base model is not the one that the sweep began with."""


class BaseNotScored(RunFailure):
    """The base model has no score, so that nothing can be compared with it."""


class NothingToMakeFrom(RunFailure):
    """A run that is made from another one's weights, which has not completed."""


class RungDecisionFailed(RunFailure):
    """A search could not choose the layers that train on."""


class StoreUnavailable(RunFailure):
    """The sweep's files could not be read or written, repeatedly."""


class RayLost(RuntimeError):
    """Ray has ended on the node of the driver, and with it all that the driver could do."""


class AdaptiveTimeouts:
    """Timeouts by kind of call: `TIMEOUT_FACTOR` times the longest call of the kind so far, and at least `minimum`.
    The first call of a kind gets `TIMEOUT_FACTOR` times the minimum.

    Args:
        minimum: seconds.
    """

    def __init__(self, minimum: float):
        self.minimum, self.longest = minimum, dict[str, float]()

    async def wait(self, kind: str, answer: Awaitable[T]) -> T:
        """Wait for the answer to a call.

        Raises:
            CallTimeout: it did not come in time.
        """
        clock = asyncio.get_running_loop().time
        limit, began = max(self.minimum, TIMEOUT_FACTOR * self.longest.get(kind, self.minimum)), clock()
        try:
            # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with the answer.
            async with asyncio.timeout(limit) as timeout:
                result = await answer
        except TimeoutError as error:
            if not timeout.expired():  # the answer's own
                raise
            raise CallTimeout(kind, limit) from error
        self.longest[kind] = max(self.longest.get(kind, 0.0), clock() - began)
        return result


async def reach_store(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that reads or writes the sweep's files, and again after an OSError that may pass.

    Args:
        what: a noun phrase for the message: "the run's checkpoints".

    Raises:
        StoreUnavailable: every attempt failed.
    """
    for delay in (*STORE_DELAYS, None):
        try:
            return await call()
        except (OSError, ray.exceptions.RayTaskError) as error:
            cause = root(error)
            if not isinstance(cause, OSError):
                raise
            if delay is None or isinstance(cause, PERMANENT):
                raise StoreUnavailable(
                    f"{what} could not be reached: {reason_of(error)}; `layersweep resume` goes on from the last "
                    "checkpoint"
                ) from error
            logger.warning("%s: %s; again in %.0f s", what, reason_of(error), delay)
            await asyncio.sleep(delay)
    raise AssertionError("unreachable")


def reach_files(what: str, call: Callable[..., T], *args: object) -> Awaitable[T]:
    """`reach_store` for a blocking call, made in a thread."""
    return reach_store(what, partial(asyncio.to_thread, call, *args))


def root(error: BaseException) -> BaseException:
    """Find the failure itself, below Ray's reports of it from actor to actor."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def retryable(error: BaseException) -> bool:
    """Tell whether another actor in place of the one that failed may do better: not if its constructor raised."""
    cause = root(error)
    return isinstance(cause, (CallTimeout, *RETRYABLE)) and not getattr(cause, "actor_init_failed", False)


def first_error(error: BaseException) -> BaseException:
    """Find the first error in a task group's report; any other error is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def reason_of(error: BaseException) -> str:
    """Write one line that names the cause itself, not Ray's report of it."""
    cause = root(first_error(error))
    said = str(cause)
    line = " ".join((_reported(said) or f"{type(cause).__name__}: {_death(said) or said}").split())
    if len(line) <= REASON_HEAD + REASON_TAIL:
        return line
    return f"{line[:REASON_HEAD]} ... {line[-REASON_TAIL:]}"


def _death(text: str) -> str | None:
    """Shorten Ray's account of an actor's end to which actor, where, and the cause, without its list of causes that are
    common. None of another text."""
    ended = re.search(r"The actor is dead because (.*?)(?=Some common causes include|\Z)", text, re.DOTALL)
    facts = dict(re.findall(r"^\s+(\w+): (.+)$", text, re.MULTILINE))
    if not ended or "name" not in facts:
        return None
    return f"{facts['name']} (pid {facts.get('pid')} on {facts.get('ip')}): {ended[1]}"


def _reported(text: str) -> str | None:
    """Find the last exception of a remote traceback in a message: all that Ray passes on of an actor whose constructor
    raised, and of exceptions that cannot be pickled. None where there is no traceback."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    frames = [number for number, line in enumerate(lines) if re.match(r"\s+File \".*\", line \d+", line)]
    if not frames:
        return None
    after = [line for line in lines[frames[-1] + 1 :]]
    start = next((number for number, line in enumerate(after) if line and not line[0].isspace()), None)
    if start is None:
        return None
    name, colon, message = "\n".join(after[start:]).partition(":")
    return f"{name.rpartition('.')[2]}{colon}{message}"
