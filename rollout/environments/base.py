"""What an environment is, and what every environment section of the spec has in common."""

import importlib.util
import random
import string
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveInt, model_validator

from layersweep.policies.strict import StrictModel

SPLIT_SIZE = 10**9
"""Seeds below it are of `train`, those of the next as many of `selection`, then `final`."""


@dataclass(frozen=True)
class InitialState:
    """A start state: what all trajectories of a group begin from."""

    id: str
    """Unique and stable within the environment: scores of different runs are paired by it."""
    seed: int


class Environment(Protocol):
    """A world that talks in text, played in a worker process.

    Given its seed and the same actions it must do the same again: an environment whose process was lost to
    another's fault is brought back by playing its actions once more.
    """

    anchor: str
    """The exact key of the present state: equal if and only if the states are (GiGPO compares within it)."""
    actions: list[str]
    """What can be done now; empty where the environment does not say."""
    category: str | None
    """What kind of task this episode is, for success by category."""

    def reset(self, seed: int) -> str:
        """Begin an episode, also after an earlier one. Returns the first observation."""

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, info.

        Any text must be answered; one that is no action changes nothing and has `info["invalid"]` true.
        `info["success"]` (in [0, 1], taken as 0 where missing) is what an episode is scored by; the last counts.
        """

    def close(self) -> None:
        """Free what the environment holds."""


class EnvironmentConfig(StrictModel):
    """Episodes: how observations become prompts, responses become actions, and what is bounded."""

    multi_turn: ClassVar[bool] = True
    """Such a section is played (layersweep.rollout.environments.episodes), not asked and scored once."""

    max_turns: PositiveInt = 30
    """An episode is cut after so many actions."""
    history: Literal["last", "window", "whole"] = "last"
    """What of the past a prompt shows in `{history}`: nothing, the last `window` turns, or all of it."""
    window: PositiveInt = 2
    """Turns of `history: window`."""
    template: str = "{observation}"
    """The prompt of a turn. May use {observation}, {history}, {actions} (what can be done now), {turn} (from 1)."""
    turn_template: str = "{observation}\n> {action}\n"
    """One past turn within {history}."""
    chat: bool = False
    """Send the prompt as a user message through the model's chat template."""
    action: Literal["whole", "tag"] = "whole"
    """The action is the whole response, or what stands between the last `<action>` and `</action>`; without the
    tags the environment is given an empty action."""
    invalid_action_penalty: float = Field(0.1, ge=0)
    """Subtracted from the reward of a step whose action could not be read, or not be done."""
    max_prompt_tokens: PositiveInt = 2048
    """An episode whose next prompt would be longer ends there, as truncated."""
    max_observation_chars: PositiveInt = 8192
    """Longer observations are cut, and counted."""
    start_states: PositiveInt | None = Field(None, le=SPLIT_SIZE)
    """How many different start states training has; null is without end."""
    processes: PositiveInt = 2
    """Worker processes that environments are dealt out to."""
    episodes_at_once: PositiveInt = 512
    """Episodes of one rollout that are played at the same time; the others wait for room."""
    step_seconds: float = Field(10.0, gt=0)
    """An environment that has not answered an action by then is killed and its episode counted as lost."""
    reset_seconds: float = Field(60.0, gt=0)
    """The same for the start of an episode."""

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> "EnvironmentConfig":
        known = {"template": {"observation", "history", "actions", "turn"}, "turn_template": {"observation", "action"}}
        for name, fields in known.items():
            used = {field for _, field, _, _ in string.Formatter().parse(getattr(self, name)) if field is not None}
            if unknown := sorted(used - fields):
                raise ValueError(f"{name}: no {{{unknown[0]}}} to fill in; there are {', '.join(sorted(fields))}")
        if self.history != "last" and "{history}" not in self.template:
            raise ValueError(f"template: without {{history}} it cannot show the history: {self.history}")
        return self

    def environment(self) -> Environment:
        """The environment itself; called in a worker process."""
        raise NotImplementedError

    def build(self) -> "EnvironmentTask":
        """Start states, and the processes to play in.

        Raises:
            ValueError: what the environment needs is not here; the message says how to get it.
        """
        return EnvironmentTask(self)


class EnvironmentTask:
    """What a rollout worker holds of an environment section. Processes start with the first episode."""

    multi_turn = True

    def __init__(self, config: EnvironmentConfig):
        from .process_pool import EnvironmentProcesses  # which needs this module

        self.config = config
        self.processes = EnvironmentProcesses(config)

    def prompts(self, split: str, count: int, seed: int = 0) -> list[InitialState]:
        """`count` different start states of a split; of other splits they differ in their seeds.

        Args:
            split: train, selection or final.
            seed: names the batch of `train`; the other splits are always the same.

        Raises:
            ValueError: training has fewer start states than asked for.
        """
        if split != "train":
            first = SPLIT_SIZE * {"selection": 1, "final": 2}[split]
            return [InitialState(f"{split}-{i}", first + i) for i in range(count)]
        there = self.config.start_states or SPLIT_SIZE
        if count > there:
            raise ValueError(f"start_states: {there} is fewer than the {count} of a training step")
        return [InitialState(str(s), s) for s in random.Random(f"train/{seed}").sample(range(there), count)]

    def close(self) -> None:
        """End the processes."""
        self.processes.close()


def require(package: str, install: str = "pip install 'layersweep[agents]'") -> None:
    """Raises ValueError, with how to install it, when a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"the package {package} is not installed: {install}")
