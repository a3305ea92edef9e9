"""Failures: which can be mended by replacing an actor, which are a run's own, and how a person is told."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import ray

from layersweep.rollout.types import EngineStopped, StaleWeights

T = TypeVar("T")
PATIENT = 10
"""A call may take this many times the longest one of its kind before it."""
RETRYABLE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.TaskCancelledError,
    EngineStopped,
    StaleWeights,
)


class CallTimeout(RuntimeError):
    """A call that takes far longer than any before it: whoever should answer hangs."""

    def __init__(self, phase: str, seconds: float):
        super().__init__(f"{phase} unanswered after {seconds:.0f} s")
        self.phase = phase


class RewardCollapse(RuntimeError):
    """A run whose training has broken down; the others go on."""


class BaseModelChanged(RuntimeError):
    """The base model is not the one that the sweep began with."""


class RayLost(RuntimeError):
    """Ray has ended on the node of the driver, and with it all that the driver could do."""


class AdaptiveTimeouts:
    """How long to wait for an answer: `PATIENT` times the longest call of the phase so far, and at least `patience`.
    Nothing is known of the first call of a phase: it gets `PATIENT` times the patience."""

    def __init__(self, patience: float):
        self.patience, self.longest = patience, dict[str, float]()

    async def within(self, phase: str, answer: Awaitable[T]) -> T:
        """The answer to a call.

        Raises:
            Overdue: it did not come in time.
        """
        clock = asyncio.get_running_loop().time
        limit, began = max(self.patience, PATIENT * self.longest.get(phase, self.patience)), clock()
        try:
            result = await asyncio.wait_for(answer, limit)
        except TimeoutError as error:
            raise CallTimeout(phase, limit) from error
        self.longest[phase] = max(self.longest.get(phase, 0.0), clock() - began)
        return result


def root(error: BaseException) -> BaseException:
    """The failure itself, below Ray's reports of it from actor to actor."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def mendable(error: Exception) -> bool:
    """Whether another actor in the place of the one that failed may do better."""
    return isinstance(error, CallTimeout) or isinstance(root(error), RETRYABLE)


def reason_of(error: BaseException) -> str:
    """One line that a person understands: the cause itself, not Ray's report of it."""
    cause = root(error)
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
