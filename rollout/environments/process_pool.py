"""Worker processes in which environments run; one that hangs or dies is killed and replaced.

A fault of one environment costs its own episode alone. The others of its process are restored in a new one by repeating
their actions, which is exact because environments are functions of seed and actions.
"""

import asyncio
import itertools
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from layersweep.rollout.child_process import ChildProcess


@dataclass(frozen=True)
class Call:
    """Request for the state of an episode after its actions; all but the last were requested before."""

    number: int
    """Number of the episode, from `EnvironmentProcess.number`."""
    seed: int
    actions: Sequence[str]
    anchor: str
    """Key of the state before the last action; "" at the start."""


@dataclass(frozen=True)
class StepResult:
    """Answer of an environment; the fields are those of its protocol."""

    observation: str
    cut: bool
    """Whether the observation was longer than the section allows."""
    anchor: str
    actions: list[str]
    category: str | None
    reward: float
    terminated: bool
    truncated: bool
    success: float
    invalid: bool
    tools: list[dict[str, Any]]
    cpu_seconds: float


@dataclass(frozen=True)
class EnvironmentLost:
    """Answer of an environment that raised, hung, or ended its process."""

    reason: str


class HostedEnvironment(Protocol):
    """Section of an environment, as far as its processes need it: `layersweep.rollout.environments.base`."""

    type: str
    processes: int
    step_seconds: float
    reset_seconds: float

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the section as JSON-like values, from which a process makes it anew."""


class EnvironmentProcesses:
    """The processes of one section. Episodes of a start state always run in the same one, which may cache it."""

    def __init__(self, config: HostedEnvironment):
        self._all = [EnvironmentProcess(config) for _ in range(config.processes)]

    def of(self, seed: int) -> "EnvironmentProcess":
        """Return the process of a start state."""
        return self._all[seed % len(self._all)]

    def close(self) -> None:
        """End all processes; they also end by themselves when this process does."""
        for process in self._all:
            process.close()


class EnvironmentProcess:
    """One worker process, replaced when it ends. Calls of several rollouts are served in the order they came."""

    def __init__(self, config: HostedEnvironment):
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self._numbers = itertools.count()
        self._child: ChildProcess | None = None
        self._hosted: set[int] = set()
        """Numbers of the episodes whose environment is in the current child."""
        self._forgotten: queue.SimpleQueue[int] = queue.SimpleQueue()

    def number(self) -> int:
        """Return a number for a new episode."""
        return next(self._numbers)

    async def run(self, calls: Sequence[Call]) -> list[StepResult | EnvironmentLost]:
        """Return the answer to each call.

        Raises:
            RuntimeError: the process cannot even start, with its own error.
        """
        return await asyncio.wrap_future(self.submit(calls))

    def submit(self, calls: Sequence[Call]) -> "Future[list[StepResult | EnvironmentLost]]":
        """Return what `run` does, as a future of `concurrent.futures`."""
        return self._thread.submit(self._run, calls)

    def forget(self, numbers: Sequence[int]) -> None:
        """Free the environments of episodes that end without their environment having said so."""
        for number in numbers:
            self._forgotten.put(number)

    def close(self) -> None:
        """End the worker process."""
        self._thread.shutdown()
        self._stop()

    def _run(self, calls: Sequence[Call]) -> list[StepResult | EnvironmentLost]:
        answers: list[StepResult | EnvironmentLost] = []
        while len(answers) < len(calls):
            child = self._child = self._child or _start(self._config)
            left = calls[len(answers) :]
            forget = [self._forgotten.get() for _ in range(self._forgotten.qsize())]
            self._hosted.difference_update(forget)
            frame = [self._request(call) for call in left]
            child.send({"forget": forget, "calls": frame})
            for call, request in zip(left, frame, strict=True):
                if (reply := child.receive(request["seconds"])) is None:
                    break
                ended = "error" in reply or reply["terminated"] or reply["truncated"]
                (self._hosted.discard if ended else self._hosted.add)(call.number)
                answers.append(EnvironmentLost(reply["error"]) if "error" in reply else StepResult(**reply))
            if len(answers) < len(calls):  # the next call is the one that ended it
                answers.append(EnvironmentLost(self._stop()))
        return answers

    def _request(self, call: Call) -> dict[str, Any]:
        replay = call.number not in self._hosted
        actions = call.actions if replay else call.actions[-1:]
        seconds = len(actions) * self._config.step_seconds + replay * self._config.reset_seconds
        return vars(call) | {"replay": replay, "actions": actions, "seconds": seconds}

    def _stop(self) -> str:
        reason = self._child.kill()[0] if self._child else ""
        self._child = None
        self._hosted.clear()
        return reason


def _start(config: HostedEnvironment) -> ChildProcess:
    section = {
        "module": type(config).__module__,
        "name": type(config).__qualname__,
        "config": config.model_dump(mode="json"),
    }
    try:
        return ChildProcess("layersweep.rollout.environments.process_main", section)
    except RuntimeError as error:
        raise RuntimeError(f"no environment process for {config.type}: {error}") from error
