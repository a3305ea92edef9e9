"""The protocol of an environment, and the fields that all environment sections of the spec share."""

import importlib.util
import random
import string
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveInt, model_validator

from layersweep.policies.strict import Processes, StrictModel

from .process_pool import EnvironmentProcesses

SPLIT_SIZE = 10**9
"""Seeds per split: those below it are of `train`, the next as many of `selection`, then `final`."""


@dataclass(frozen=True)
class InitialState:
    """Start state, from which all trajectories of a group begin."""

    id: str
    """Name, unique and stable within the environment: scores of different runs are paired by it."""
    seed: int


class Environment(Protocol):
    """An environment with text observations and text actions; it runs in a worker process.

    With the same seed and actions it must return the same again: an environment whose process ended by another's fault
    is restored by repeating its actions.
    """

    anchor: str
    """Key of the current state: equal if and only if the states are (GiGPO compares responses to equal states)."""
    actions: list[str]
    """Actions that are possible now; empty where the environment does not list them."""
    category: str | None
    """Category of this episode's task, for success by category."""
    tools: list[dict[str, Any]]
    """JSON schemas, in OpenAI's form, of the tools that responses may call; an environment without tools lacks it."""

    def reset(self, seed: int) -> str:
        """Begin an episode, also after an earlier one; return the first observation."""

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated, info after an action.

        Any text must be answered; one that is no action changes nothing and has `info["invalid"]` true.
        `info["success"]` (in [0, 1], taken as 0 where missing) is what an episode is scored by; the last counts.
        """

    def close(self) -> None:
        """Free what the environment holds."""


class EnvironmentConfig(StrictModel):
    """Section of the spec: how observations become prompts and responses actions, and the limits."""

    multi_turn: ClassVar[bool] = True
    """Whether rollouts are episodes (layersweep.rollout.environments.episodes) rather than single responses."""

    max_turns: PositiveInt = 30
    """Actions of an episode at most; then it is cut."""
    history: Literal["last", "window", "whole", "messages"] = "last"
    """Past that a prompt shows in `{history}`: nothing, the last `window` turns, or all of it. `messages` is all of it
    as a conversation through the model's chat template: observations are the user's messages, responses the
    assistant's as they were written, and what a tool call gave is a tool's message. An environment with tools needs
    it."""
    window: PositiveInt = 2
    """Turns of `history: window`."""
    template: str = "{observation}"
    """The prompt of a turn. May use {observation}, {history}, {actions} (those possible now), {turn} (from 1); with
    `history: messages` it is each message of the user, of {observation} and {turn}."""
    turn_template: str = "{observation}\n> {action}\n"
    """Format of one past turn within {history}."""
    chat: bool = False
    """Whether the prompt is sent as a user message through the model's chat template."""
    action: Literal["whole", "tag"] = "whole"
    """Place of the action: the whole response, or what stands between the last `<action>` and `</action>`; without the
    tags the environment is given an empty action."""
    invalid_action_penalty: float = Field(0.1, ge=0)
    """Reward that a step loses whose action could not be read, or is not possible."""
    max_prompt_tokens: PositiveInt = 2048
    """Prompt tokens at most, or what the model's window leaves beside a response; an episode whose next prompt is
    longer ends there, as truncated."""
    max_observation_chars: PositiveInt = 8192
    """Characters of an observation at most; longer ones are cut, and counted."""
    start_states: PositiveInt | None = Field(None, le=SPLIT_SIZE)
    """Number of different start states in training; null is unlimited."""
    processes: Processes = 2
    """Worker processes in which the environments run."""
    episodes_at_once: PositiveInt = 512
    """Episodes of one rollout in flight at most; the others wait."""
    step_seconds: float = Field(10.0, gt=0)
    """Seconds in which an environment must answer an action; else it is killed and its episode counted as lost."""
    reset_seconds: float = Field(60.0, gt=0)
    """Seconds for the start of an episode, likewise."""

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> "EnvironmentConfig":
        known = {"template": {"observation", "history", "actions", "turn"}, "turn_template": {"observation", "action"}}
        for name, fields in known.items():
            used = {field for _, field, _, _ in string.Formatter().parse(getattr(self, name)) if field is not None}
            if unknown := sorted(used - fields):
                raise ValueError(f"{name}: no {{{unknown[0]}}} to fill in; there are {', '.join(sorted(fields))}")
        if self.history == "messages":
            if unknown := [field for field in ("history", "actions") if f"{{{field}}}" in self.template]:
                raise ValueError(f"template: {{{unknown[0]}}} cannot be in the messages of history: messages")
        elif self.history != "last" and "{history}" not in self.template:
            raise ValueError(f"template: without {{history}} it cannot show the history: {self.history}")
        return self

    def environment(self) -> Environment:
        """Make an environment; called in a worker process."""
        raise NotImplementedError

    def build(self) -> "EnvironmentTask":
        """Make start states and processes.

        Raises:
            ValueError: what the environment needs is not here; the message says how to get it.
        """
        return EnvironmentTask(self)


class EnvironmentTask:
    """Start states and processes of an environment section. Processes start with the first episode."""

    multi_turn = True

    def __init__(self, config: EnvironmentConfig):
        self.config = config
        self.processes = EnvironmentProcesses(config)

    def prompts(self, split: str, count: int, seed: int = 0) -> list[InitialState]:
        """Draw `count` different start states of a split; those of other splits differ in their seeds.

        Args:
            split: train, selection or final.
            seed: names the batch of `train`; the other splits are always the same.

        Raises:
            ValueError: training has fewer start states than asked for.
        """
        if split != "train":
            first = SPLIT_SIZE * {"selection": 1, "final": 2}[split]
            return [InitialState(f"{split}-{i}", first + i) for i in range(count)]
        available = self.config.start_states or SPLIT_SIZE
        if count > available:
            raise ValueError(f"start_states: {available} is fewer than the {count} of a training step")
        return [InitialState(str(s), s) for s in random.Random(f"train/{seed}").sample(range(available), count)]

    def limit_prompt_tokens(self, tokens: int) -> None:
        """Lower `max_prompt_tokens` to this, if it is above: to what the model's window leaves beside a response."""
        if tokens < self.config.max_prompt_tokens:
            self.config = self.config.model_copy(update={"max_prompt_tokens": tokens})

    def close(self) -> None:
        """End the processes."""
        self.processes.close()


def require(package: str, install: str = "pip install 'layersweep[agents]'") -> None:
    """Raise ValueError, with how to install it, when a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"the package {package} is not installed: {install}")
