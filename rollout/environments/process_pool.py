"""Worker processes with environments in them, as a rollout sees them: killed and replaced when they hang or die.

An environment's fault costs its own episode alone. The others of its process are brought back in a fresh one by
playing their actions again, which is exact because environments are functions of seed and actions.
"""

import asyncio
import itertools
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # base imports this module where it makes an environment
    from .base import EnvironmentConfig

START_SECONDS = 120
"""A process imports its libraries within this time, or something is wrong with the machine."""


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
        self._child: _Child | None = None
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
            if self._child is None:
                self._child = _Child(self._config)
            left = calls[len(answers) :]
            forget = [self._over.get() for _ in range(self._over.qsize())]
            self._here.difference_update(forget)
            for call, reply in zip(left, self._child.run(forget, [self._wire(call) for call in left]), strict=False):
                ended = "error" in reply or reply["terminated"] or reply["truncated"]
                (self._here.discard if ended else self._here.add)(call.number)
                answers.append(EnvironmentLost(reply["error"]) if "error" in reply else StepResult(**reply))
            if len(answers) < len(calls):  # the next call is the one that ended it
                answers.append(EnvironmentLost(self._stop()))
        return answers

    def _wire(self, call: Call) -> dict[str, Any]:
        replay = call.number not in self._here
        return vars(call) | {"replay": replay, "actions": call.actions if replay else call.actions[-1:]}

    def _stop(self) -> str:
        reason = self._child.kill() if self._child else ""
        self._child = None
        self._here.clear()
        return reason


class _Child:
    """One child process, as seen from its parent."""

    def __init__(self, config: "EnvironmentConfig"):
        self._config = config
        self._buffer = b""
        self._ended = False
        self._late = 0.0
        path = os.pathsep.join(filter(None, sys.path))  # -P alone would hide a job's working folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "layersweep.rollout.environments.process_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # killed with whatever it started; Ctrl-C ends the parent first
        )
        section = {
            "module": type(config).__module__,
            "name": type(config).__qualname__,
            "config": config.model_dump(mode="json"),
        }
        self._write(section)
        reply = self._line(START_SECONDS) or {"error": "it died or did not answer in time"}
        if "error" in reply:
            self.kill()
            raise RuntimeError(f"no environment process for {config.type}: {reply['error']}")

    def run(self, forget: list[int], frame: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies in order, fewer than calls when the process died or hangs."""
        for call in frame:
            call["seconds"] = (
                len(call["actions"]) * self._config.step_seconds + call["replay"] * self._config.reset_seconds
            )
        self._write({"forget": forget, "calls": frame})
        replies: list[dict[str, Any]] = []
        for call in frame:
            reply = self._line(call["seconds"])
            if reply is None:
                break
            replies.append(reply)
        return replies

    def kill(self) -> str:
        """Ends the process and what it started; returns why it had to."""
        os.killpg(self._process.pid, signal.SIGKILL)  # not yet waited for, so the group still exists
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        return f"the process ended with status {status}" if self._ended else f"no answer within {self._late:g} s"

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except BrokenPipeError:
            pass  # it has ended; reading says so

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None when the process ended or the time is up."""
        out = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not poll.poll(max(0, end - time.monotonic()) * 1000):
                self._late = seconds
                return None
            if not (more := os.read(out, 1 << 16)):
                self._ended = True
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)
