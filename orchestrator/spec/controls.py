"""The `controls` field: runs that tell what reinforcement learning of a selection adds to any other change of it."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from layersweep.policies.selection import Selection
from layersweep.policies.strict import StrictModel
from layersweep.workers.training.drawn_reward import DrawnReward

LAYERS = "layers"
"""Stands in `of` for every single layer of the sweep."""
Name = Annotated[str, Field(min_length=1, max_length=100)]
Factor = Annotated[float, Field(gt=0, le=1000)]


@dataclass(frozen=True)
class Control:
    """Difference between a control and the run that it is a control of."""

    type: str
    """Column `control` of the contribution table."""
    label: str
    """Follows the selection's name and an @ in the control's own name."""
    rate_factor: float = 1.0
    """Factor of the run's learning rate."""
    reward: DrawnReward | None = None
    """Reward in place of the task's in training; scores are always the task's."""
    supervised: bool = False
    """Whether it trains by cross-entropy on the base's right responses."""
    trained: bool = True
    """Whether it trains at all; else its weights are made from the finished run's."""


class ControlEntry(StrictModel):
    """Selections that get a control each; the base of all types."""

    of: tuple[Name, ...] = Field(min_length=1)
    """Selections of the sweep by name (`full`, `layer-03`, `layer-07-mlp`), a layer by its number, or `layers`: every
    single layer."""

    @field_validator("of", mode="before", json_schema_input_type=int | Name | tuple[int | Name, ...])
    @classmethod
    def _numbers_are_layers(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        whole = [isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items]
        return [Selection.layer(item).name if is_layer else item for item, is_layer in zip(items, whole, strict=True)]

    def controls(self) -> list[Control]:
        """Return what each of its selections gets a run for."""
        raise NotImplementedError


class RandomReward(ControlEntry):
    """Trained as ever, with rewards drawn at random: what any reward would do."""

    type: Literal["random_reward"]
    probability: float = Field(0.5, gt=0, lt=1)
    """Probability of a reward of 1, else 0, for each response (of an episode: at its end). Dynamic sampling still
    chooses prompts by the task's own reward."""

    def controls(self) -> list[Control]:
        return [Control(self.type, "random-reward", reward=DrawnReward(self.probability))]


class ConstantReward(ControlEntry):
    """Trained as ever, with a reward of 1 for every response: what is left is what needs no reward, such as a KL term,
    an entropy bonus, a punishment of length. With an algorithm that has none of it, it stays the base."""

    type: Literal["constant_reward"]

    def controls(self) -> list[Control]:
        return [Control(self.type, "constant-reward", reward=DrawnReward(1.0))]


class Supervised(ControlEntry):
    """Trained by cross-entropy on the base's own right responses (rejection sampling), at the run's prompts, learning
    rate and steps: is it reinforcement learning, or any training of that layer?"""

    type: Literal["supervised"]

    def controls(self) -> list[Control]:
        return [Control(self.type, "supervised", supervised=True)]


class RandomDirection(ControlEntry):
    """Weights changed in a random direction, each tensor as far as the finished run has changed it; no training."""

    type: Literal["random_direction"]

    def controls(self) -> list[Control]:
        return [Control(self.type, "random-direction", trained=False)]


class LearningRateLadder(ControlEntry):
    """Trained at other learning rates: C by learning rate. The run itself is the factor 1."""

    type: Literal["learning_rate"]
    factors: tuple[Factor, ...] = Field(min_length=1)
    """Factors of the selection's own learning rate, such as [0.3, 3]."""

    @field_validator("factors")
    @classmethod
    def _factors_differ(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{factor:g}" for factor in (1.0, *factors)}) <= len(factors):
            raise ValueError("names a factor twice, or 1, which is the run itself; leave it out")
        return factors

    def controls(self) -> list[Control]:
        return [Control(self.type, f"rate-x{factor:g}", rate_factor=factor) for factor in self.factors]


ControlConfig = Annotated[
    RandomReward | ConstantReward | Supervised | RandomDirection | LearningRateLadder, Field(discriminator="type")
]
