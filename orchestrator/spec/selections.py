"""The `sweep` field: sets of layers and parts of them that get a run each."""

import random
import re
from math import comb
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from layersweep.policies.selection import MODULES, LowRank, Selection
from layersweep.policies.strict import StrictModel
from layersweep.policies.wording import counted

from .errors import shorten
from .explain import read_section
from .layers import LayerSearch, check_layers, read_layers, resolve_layers

_BLOCKS = re.compile(r"blocks:([1-9]\d{0,8})", re.ASCII)
_FORMS = "write all, numbers such as [0, 7], lists of layers that train together [[3, 7]], start:stop:step, " \
    "middle:k, blocks:k, {all_but: [3, 7]} or {random: {size: 4}}"  # fmt: skip
MOST_SETS = 1000
"""Random sets of one entry."""


class RandomSets(StrictModel):
    """Sets of layers drawn at random, which are the null of a choice of layers."""

    size: int = Field(ge=1)
    """Layers of a set."""
    sets: int = Field(1, ge=1, le=MOST_SETS)
    """Number of sets, all different; with more of them the first stay what they were."""
    seed: int = Field(0, ge=0)
    """Seed that they are drawn with."""

    def draw(self, count: int) -> list[tuple[int, ...]]:
        """Return the sets in a model of `count` layers.

        Raises:
            ValueError: there are not so many layers, or not so many sets of this size.
        """
        if self.size > count:
            raise ValueError(f"layers.random.size: {self.size} is more than the model's {count} layers")
        if self.sets > (there := comb(count, self.size)):
            raise ValueError(
                f"layers.random.sets: {count} layers have {counted(there, 'sets')} of {self.size}, not {self.sets}"
            )
        drawn: dict[tuple[int, ...], None] = {}
        generator = random.Random(f"{self.seed} {self.size} {count}")
        while len(drawn) < self.sets:
            drawn[tuple(sorted(generator.sample(range(count), self.size)))] = None
        return list(drawn)


class LayerRule(StrictModel):
    """Layers that train together by a rule; exactly one of these."""

    all_but: tuple[Annotated[int, Field(strict=True)], ...] | None = Field(None, min_length=1)
    """All layers but these, together."""
    random: RandomSets | None = None
    """Sets drawn at random, such as `{size: 4, sets: 3, seed: 0}`; the layers of a set train together."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "LayerRule":
        if (self.all_but is None) == (self.random is None):
            raise ValueError("give one of all_but and random")
        return self

    def resolve(self, count: int) -> list[tuple[int, ...]]:
        """Return the sets in a model of `count` layers.

        Raises:
            ValueError: a layer that the model does not have, or none that is left.
        """
        if self.random is not None:
            return self.random.draw(count)
        left_out = resolve_layers(self.all_but, count)
        if not (left := tuple(k for k in range(count) if k not in left_out)):
            raise ValueError(f"layers.all_but: leaves none of the model's {count} layers")
        return [left]


Sets = str | tuple[int | tuple[int, ...], ...] | LayerRule


def _read(value: object) -> Sets:
    if isinstance(value, LayerRule):
        return value
    if isinstance(value, dict) and value.keys() & LayerRule.model_fields.keys():
        return read_section(LayerRule, value)
    if isinstance(value, list | tuple) and any(isinstance(item, list | tuple) for item in value):
        items = [tuple(item) if isinstance(item, list | tuple) else item for item in value]
        numbers = [k for item in items for k in (item if isinstance(item, tuple) else (item,))]
        if not all(isinstance(k, int) and not isinstance(k, bool) for k in numbers) or () in items:
            raise ValueError(f"cannot read {shorten(value)}; {_FORMS}")
        return tuple(items)
    if isinstance(read := read_layers(value), LayerSearch):
        raise ValueError("a search is of whole layers: name it as `layers` of the sweep")
    return read


def _check(value: Sets) -> Sets:
    if isinstance(value, LayerRule):
        return value
    if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
        sets = [item if isinstance(item, tuple) else (item,) for item in value]
        if any(len(set(item)) < len(item) for item in sets) or len({frozenset(item) for item in sets}) < len(sets):
            raise ValueError("names a layer, or a set of layers, twice")
        return value
    return value if isinstance(value, str) and _BLOCKS.fullmatch(value) else check_layers(value)


class LowRankConfig(StrictModel):
    """Low-rank adapters (LoRA, arXiv 2106.09685) that train in place of the matrices: W is served as W + alpha / rank *
    B A, with A [rank, in] and B [out, rank]."""

    rank: int = Field(ge=1, le=65536)
    """Rank of the change of every matrix."""
    alpha: float | None = Field(None, gt=0)
    """Numerator of the factor alpha / rank; null is the rank, a factor of 1. Under AdamW the change of W grows with the
    factor as it does with the learning rate."""


class SweptSelections(StrictModel):
    """Some of the sweep's selections: a run for each of these layers, or sets of layers, over what `modules` names."""

    layers: Annotated[Sets, BeforeValidator(_read), AfterValidator(_check)] | None = None
    """Layers that get a run each: `all`, numbers, `start:stop:step`, `middle:k`. Layers in a list of their own train
    together, `[[3, 7], [0, 1]]`; `blocks:k` is all layers by k neighbours, `{all_but: [3, 7]}` the others together,
    `{random: {size: 4, sets: 3, seed: 0}}` sets drawn at random. null with `modules`: parameters outside of layers,
    which are `embed_tokens`, `model.norm` and `lm_head`."""
    modules: str | None = Field(None, min_length=1, max_length=80)
    """The part of the layers that trains: `attention` (its projections), `mlp`, `norms`, or a regular expression that
    is searched for in parameter names, such as `q_proj` or `mlp.(gate|up)`; null is all."""
    lora: LowRankConfig | None = None
    """Train low-rank adapters of the matrices of these layers and `modules`, such as `{rank: 8}`, instead of the
    parameters themselves; norms and biases stay frozen. Engines get the matrices with their adapters merged; these are
    rounded in bfloat16, which the trainer's are not (`logprob_mismatch` in steps.parquet shows by how much)."""

    @field_validator("modules")
    @classmethod
    def _is_an_expression(cls, modules: str | None) -> str | None:
        try:
            re.compile(modules or "")
        except re.error as error:
            names = ", ".join(MODULES)
            raise ValueError(f"{modules!r} is neither {names} nor a regular expression ({error})") from error
        return modules

    @model_validator(mode="after")
    def _names_something(self) -> "SweptSelections":
        if self.layers is None and self.modules is None:
            raise ValueError("layers: name some, or what outside of layers is trained as `modules`")
        if self.layers is None and self.lora is not None:
            raise ValueError("lora: adapters are of matrices in layers; name some as `layers`")
        return self

    def selections(self, count: int) -> list[Selection]:
        """Return the selections in a model of `count` layers.

        Raises:
            ValueError: a layer that the model does not have, or none at all.
        """
        sets = [()] if self.layers is None else _sets(self.layers, count)
        lora = self.lora and LowRank(self.lora.rank, float(self.lora.alpha or self.lora.rank))
        if self.modules is not None or lora:
            return [Selection.part(layers, self.modules, lora) for layers in sets]
        return [Selection.layer(*layers) if len(layers) == 1 else Selection.several(layers) for layers in sets]


def _sets(chosen: Sets, count: int) -> list[tuple[int, ...]]:
    if isinstance(chosen, LayerRule):
        return chosen.resolve(count)
    if isinstance(chosen, str) and (match := _BLOCKS.fullmatch(chosen)):
        size = int(match[1])
        return [tuple(range(first, min(first + size, count))) for first in range(0, count, size)]
    if isinstance(chosen, str):
        return [(k,) for k in resolve_layers(chosen, count)]
    sets = [item if isinstance(item, tuple) else (item,) for item in chosen]
    resolve_layers(tuple({k for layers in sets for k in layers}), count)  # refuses those that the model does not have
    return sets
