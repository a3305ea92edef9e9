"""The worker process of `process_pool`: environments of one section, driven by calls.

JSON lines in and out. First the section; then frames `{"forget": [number], "calls": [call]}`, a call being
`{"number", "seed", "actions", "anchor", "replay", "seconds"}`; one line back per call, as it is done.
"""

import hashlib
import importlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from layersweep.policies.user_code import described, place
from layersweep.rollout.child_process import answer_requests
from layersweep.rollout.types import bounded_reward

from .base import Environment, EnvironmentConfig

ANCHOR_CHARS = 4096
"""Characters of a state key at most; longer ones are replaced by their hash."""


class EnvironmentHost:
    """The environments of this process, by the number of their episode."""

    def __init__(self, config: EnvironmentConfig):
        self.config = config
        self.active: dict[int, Environment] = {}
        self.idle: list[Environment] = [config.environment()]

    def forget(self, number: int) -> None:
        """End an episode; its environment is free for another."""
        if number in self.active:
            self.idle.append(self.active.pop(number))

    def call(self, number: int, seed: int, actions: list[str], anchor: str, replay: bool) -> dict[str, Any]:
        """Return the state after the actions, with `replay` from a reset on.

        Raises:
            RuntimeError: the replay came to another state before the last action than `anchor` says.
        """
        state = (self._start(number, seed), 0.0, False, False, {}) if replay else None
        environment = self.active[number]
        for i, action in enumerate(actions):
            if replay and i == len(actions) - 1 and _key(environment.anchor) != anchor:
                raise RuntimeError("playing the same actions again led elsewhere: not a function of its seed")
            state = environment.step(action)
        observation, reward, terminated, truncated, info = state
        limit = self.config.max_observation_chars
        reply = {
            "observation": observation[:limit],
            "cut": len(observation) > limit,
            "anchor": _key(environment.anchor),
            "actions": environment.actions,
            "category": environment.category,
            "tools": getattr(environment, "tools", []),
            "reward": bounded_reward(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "success": _success(info),
            "invalid": bool(info.get("invalid", False)),
        }
        if terminated or truncated:
            self.forget(number)
        return reply

    def _start(self, number: int, seed: int) -> str:
        environment = self.idle.pop() if self.idle else self.config.environment()
        observation = environment.reset(seed)
        self.active[number] = environment
        return observation


def _success(info: dict[str, Any]) -> float:
    success = float(info.get("success", 0.0))
    if not 0 <= success <= 1:
        raise ValueError(f'info["success"] is {success}; it lies in [0, 1]')
    return success


def _key(anchor: str) -> str:
    return anchor if len(anchor) <= ANCHOR_CHARS else hashlib.blake2b(anchor.encode(), digest_size=16).hexdigest()


def _prepare(section: dict[str, Any]) -> Callable[[Any], Iterator[dict[str, Any]]]:
    host = EnvironmentHost(getattr(importlib.import_module(section["module"]), section["name"])(**section["config"]))

    def answer(frame: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in frame["forget"]:
            host.forget(number)
        for call in frame["calls"]:
            # The parent kills what takes too long; this is for when there is no parent any more.
            signal.setitimer(signal.ITIMER_REAL, 10 + 2 * call.pop("seconds"))
            began = time.process_time()
            try:
                reply = host.call(**call)
            except BaseException as error:  # SystemExit too
                host.active.pop(call["number"], None)  # in no known state: not to be used again
                reply = {"error": described(error) + place(error)}
            signal.setitimer(signal.ITIMER_REAL, 0)
            yield reply | {"cpu_seconds": time.process_time() - began}

    return answer


if __name__ == "__main__":
    answer_requests(_prepare)
