"""Worker processes with environments in them, as a rollout sees them: killed and replaced when they hang or die.

An environment's fault costs its own episode alone. The others of its process are brought back in a fresh one by
playing their actions again, which is exact because environments are functions of seed and actions.
"""

import asyncio
import itertools
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layersweep.rollout.child_process import ChildProcess

if TYPE_CHECKING:  # the section's module imports this one
    from .base import EnvironmentConfig


@dataclass(frozen=True)
class Call:
    """Wanted: the state of an episode after its actions, of which all but the last were called before."""

    number: int
    """Of the episode, from `EnvironmentProcess.number`."""
    seed: int
    actions: Sequence[str]
    anchor: str
    """The state's key before the last action; "" at the start."""


@dataclass(frozen=True)
class StepResult:
    """What the environment answered; the fields are those of its protocol."""

    observation: str
    cut: bool
    """The observation was longer than the section allows."""
    anchor: str
    actions: list[str]
    category: str | None
    reward: float
    terminated: bool
    truncated: bool
    success: float
    invalid: bool
    cpu_seconds: float


@dataclass(frozen=True)
class EnvironmentLost:
    """There will be no answer: the environment raised, hung, or took its process with it."""

    reason: str


class EnvironmentProcesses:
    """The processes of one section. Episodes of a start state always go to the same one, which may cache it."""

    def __init__(self, config: "EnvironmentConfig"):
        self._all = [EnvironmentProcess(config) for _ in range(config.processes)]

    def of(self, seed: int) -> "EnvironmentProcess":
        return self._all[seed % len(self._all)]

    def close(self) -> None:
        """End them all; they also end by themselves when this process does."""
        for process in self._all:
            process.close()


class EnvironmentProcess:
    """One worker process after another. Calls of several rollouts take turns, in the order they came."""

    def __init__(self, config: "EnvironmentConfig"):
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self._numbers = itertools.count()
        self._child: ChildProcess | None = None
        self._here: set[int] = set()
        """Episodes whose environment lives in the child as it is now."""
        self._over: queue.SimpleQueue[int] = queue.SimpleQueue()

    def number(self) -> int:
        """A number for a new episode."""
        return next(self._numbers)

    async def run(self, calls: Sequence[Call]) -> list[StepResult | EnvironmentLost]:
        """The answer to each call.

        Raises:
            RuntimeError: the process cannot even start, with its own error.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, calls)

    def forget(self, numbers: Sequence[int]) -> None:
        """These episodes are over, by other means than their environment's word."""
        for number in numbers:
            self._over.put(number)

    def close(self) -> None:
        self._thread.shutdown()
        self._stop()

    def _run(self, calls: Sequence[Call]) -> list[StepResult | EnvironmentLost]:
        answers: list[StepResult | EnvironmentLost] = []
        while len(answers) < len(calls):
            child = self._child = self._child or _start(self._config)
            left = calls[len(answers) :]
            forget = [self._over.get() for _ in range(self._over.qsize())]
            self._here.difference_update(forget)
            frame = [self._request(call) for call in left]
            child.send({"forget": forget, "calls": frame})
            for call, request in zip(left, frame, strict=True):
                if (reply := child.receive(request["seconds"])) is None:
                    break
                ended = "error" in reply or reply["terminated"] or reply["truncated"]
                (self._here.discard if ended else self._here.add)(call.number)
                answers.append(EnvironmentLost(reply["error"]) if "error" in reply else StepResult(**reply))
            if len(answers) < len(calls):  # the next call is the one that ended it
                answers.append(EnvironmentLost(self._stop()))
        return answers

    def _request(self, call: Call) -> dict[str, Any]:
        replay = call.number not in self._here
        actions = call.actions if replay else call.actions[-1:]
        seconds = len(actions) * self._config.step_seconds + replay * self._config.reset_seconds
        return vars(call) | {"replay": replay, "actions": actions, "seconds": seconds}

    def _stop(self) -> str:
        reason = self._child.kill()[0] if self._child else ""
        self._child = None
        self._here.clear()
        return reason


def _start(config: "EnvironmentConfig") -> ChildProcess:
    section = {
        "module": type(config).__module__,
        "name": type(config).__qualname__,
        "config": config.model_dump(mode="json"),
    }
    try:
        return ChildProcess("layersweep.rollout.environments.process_main", section)
    except RuntimeError as error:
        raise RuntimeError(f"no environment process for {config.type}: {error}") from error
