"""An environment that does what it is told to, also what it should not. Started by name in worker processes."""

import os
import time
from typing import Any, Literal

from pydantic import PositiveInt

from layersweep.rollout.environments.base import EnvironmentConfig


class CounterConfig(EnvironmentConfig):
    """Counts to `goal`: `add` and `wait` are its actions, and misbehaviour has a word each.

    With a name after the word, it happens the first time alone, and is an `add` afterwards.
    """

    type: Literal["counter"] = "counter"
    processes: PositiveInt = 1
    goal: int = 3
    marks: str = ""
    """The folder in which it is noted that something has happened."""
    drift: bool = False
    """Be no function of seed and actions."""
    missing: str = ""
    """A module to fail to import."""

    def environment(self) -> "Counter":
        if self.missing:
            __import__(self.missing)
        return Counter(self)


class Counter:
    def __init__(self, config: CounterConfig):
        self.config = config
        self.actions = ["add", "wait"]

    @property
    def anchor(self) -> str:
        return f"{self.seed}:{self.count}" + (f":{time.monotonic_ns()}" if self.config.drift else "")

    @property
    def category(self) -> str:
        return "even" if self.seed % 2 == 0 else "odd"

    def reset(self, seed: int) -> str:
        self.seed, self.count = seed, 0
        return "at 0"

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        word, _, once = text.partition(" ")
        if word in ("hang", "raise", "die", "shout"):
            if once and not self._first(once):
                return self.step("add")
            if word == "hang":
                time.sleep(3600)
            if word == "raise":
                raise ValueError("no such thing")
            if word == "die":
                os._exit(7)
            return "x" * 1_000_000, 0.0, False, False, {}
        if word == "print":
            print("not a reply")
        elif word == "stop":
            return "stopped", 0.0, False, True, {}
        elif word == "add":
            self.count += 1
        elif word != "wait":
            return f"at {self.count}", 0.0, False, False, {"invalid": True}
        done = self.count == self.config.goal
        return f"at {self.count}", float(done), done, False, {"success": float(done)}

    def _first(self, once: str) -> bool:
        try:
            os.close(os.open(os.path.join(self.config.marks, once), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        pass
