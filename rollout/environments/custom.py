"""An environment of the user's own: a class with `reset` and `step`, in a file outside the package."""

from collections.abc import Mapping
from typing import Any, Literal

from layersweep.policies.user_code import UserCode, make
from layersweep.rollout.types import bounded_reward

from .base import EnvironmentConfig, EnvironmentTask
from .process_pool import Call, EnvironmentLost, EnvironmentProcess
from .tool_calls import BadToolCall, read_tool_call, schema_problem


class CustomEnvironmentConfig(EnvironmentConfig, UserCode):
    """A class with `reset(seed)`, which returns the first observation (or it and an info, as gymnasium's), and
    `step(text)`, which returns observation, reward, terminated, truncated, info; worker processes make instances from
    `settings`. Observations are text.

    `info["success"]`, in [0, 1], is what an episode is scored by, the last one counts; where there is none it is the
    sum of the rewards, at least 0 and at most 1. `info["invalid"]` marks an action that is none. The attributes
    `actions` (those possible now), `category` and `anchor` (key of the state; else it is the observation) and the
    method `close` are used where there are any.

    An attribute `tools` (JSON schemas in OpenAI's form) is shown by the model's chat template. A response that calls
    one as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` reaches `step` as a dict of name and arguments,
    any other as its text; a call that cannot be understood is invalid, and the model is told why."""

    type: Literal["environment"] = "environment"

    def environment(self) -> "CustomEnvironment":
        """Make an environment; called in a worker process."""
        return CustomEnvironment(self.path, make(self.path, self.settings))

    def build(self) -> "CustomEnvironmentTask":
        """Make start states and processes."""
        return CustomEnvironmentTask(self)


class CustomEnvironment:
    """Environment of a CustomEnvironmentConfig, around an instance of the user's class."""

    def __init__(self, path: str, inner: Any):
        self.path, self.inner = path, inner
        self._observation, self._returned = "", 0.0
        self._last: dict[str, Any] = {}
        if missing := [name for name in ("reset", "step") if not callable(getattr(inner, name, None))]:
            raise ValueError(f"{path} has no method {missing[0]}")

    @property
    def anchor(self) -> str:
        return str(getattr(self.inner, "anchor", self._observation))

    @property
    def actions(self) -> list[str]:
        return [str(action) for action in getattr(self.inner, "actions", None) or ()]

    @property
    def category(self) -> str | None:
        found = getattr(self.inner, "category", None)
        return None if found is None else str(found)

    @property
    def tools(self) -> list[dict[str, Any]]:
        return getattr(self.inner, "tools", [])

    def reset(self, seed: int) -> str:
        given = self.inner.reset(seed)
        self._returned, self._last = 0.0, {}
        return self._seen(given[0] if isinstance(given, tuple) else given, "reset")

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        try:
            call = read_tool_call(text, self.tools) if self.tools else None
        except BadToolCall as error:
            return f"Error: {error}", 0.0, False, False, self._last | {"invalid": True}  # in the same state
        given = self.inner.step(text if call is None else call)
        if not isinstance(given, tuple) or len(given) != 5:
            raise TypeError(f"step gave {type(given).__name__} {str(given)[:80]!r}; a tuple of observation, reward, "
                            "terminated, truncated, info is expected")  # fmt: skip
        observation, reward, terminated, truncated, info = given
        reward = bounded_reward(reward)
        if not isinstance(info, Mapping):
            raise TypeError(f"step gave an info that is no dict but {type(info).__name__}")
        self._returned += reward
        info = {"success": min(max(self._returned, 0.0), 1.0)} | info
        self._last = {"success": info["success"]}
        return self._seen(observation, "step"), reward, bool(terminated), bool(truncated), info

    def close(self) -> None:
        if callable(close := getattr(self.inner, "close", None)):
            close()

    def _seen(self, observation: Any, method: str) -> str:
        if not isinstance(observation, str):
            raise TypeError(f"{method} gave an observation that is no text but {type(observation).__name__}")
        observation.encode()  # half an emoji is none either
        self._observation = observation
        return observation


class CustomEnvironmentTask(EnvironmentTask):
    """Start states and processes of a CustomEnvironmentConfig."""

    config: CustomEnvironmentConfig
    tools: tuple[dict[str, Any], ...] = ()
    """Tools of the environment, once it was tried."""

    def check(self) -> None:
        """Try the class: two episodes from one start state, with an empty action each; notes its tools.

        Raises:
            ValueError: it cannot be made, fails, or does not repeat itself.
        """
        process = EnvironmentProcess(self.config)
        try:
            calls = [Call(process.number(), 0, actions, "") for actions in ([], [])]
            starts = process.submit(calls).result()
            for start in starts:
                if isinstance(start, EnvironmentLost):
                    raise ValueError(f"{self.config.path}.reset fails: {start.reason}")
            if starts[0].observation != starts[1].observation:
                raise ValueError(f"{self.config.path}.reset gives another observation for the same seed; draw it from "
                                 "the seed alone")  # fmt: skip
            if problem := schema_problem(starts[0].tools):
                raise ValueError(f"{self.config.path}.tools: {problem}")
            self.tools = tuple(starts[0].tools)
            if self.tools and (self.config.history, self.config.action) != ("messages", "whole"):
                raise ValueError(f"{self.config.path} has tools, which the model's chat template shows: set history: "
                                 "messages and action: whole")  # fmt: skip
            [answer] = process.submit([Call(calls[0].number, 0, [""], starts[0].anchor)]).result()
            if isinstance(answer, EnvironmentLost):
                raise ValueError(f"{self.config.path}.step fails on an empty action: {answer.reason}")
        except RuntimeError as error:  # the process cannot make one
            raise ValueError(str(error).partition("ValueError: ")[2] or str(error)) from error
        finally:
            process.close()
