"""The `layers` and `combine` fields: which layers get a run each, and which sets of layers are trained after."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from layersweep.policies.selection import Selection
from layersweep.policies.strict import StrictModel, written_as

from .errors import shorten
from .explain import read_section

_RANGE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?(?::(-?\d{1,9}))?", re.ASCII)
_MIDDLE = re.compile(r"middle:(\d{1,9})", re.ASCII)
_FORMS = "write all, a list such as [0, 7, 13], start:stop:step, middle:k, or {search: {budget: 0.3, goal: best}}"


class SearchConfig(StrictModel):
    """Find the best layers for a share of the cost: weak layers stop early (halving_schedule has the schedule)."""

    budget: float = Field(0.3, gt=0, le=1)
    """Training steps of all layer runs together, as a share of training every layer to the end."""
    goal: Annotated[str, written_as(r"best|top [1-9][0-9]{0,8}", "best, or top and a number, such as top 3")] = "best"
    """`best`, or `top K`."""


class LayerSearch(StrictModel):
    """`layers: {search: {...}}`."""

    search: SearchConfig = SearchConfig()


Pick = Annotated[str, written_as(r"(best|worst) [1-9][0-9]{0,8}", "best or worst and a number, such as best 5")]


class CombinedRun(StrictModel):
    """One run over several layers, chosen from the finished layer runs; exactly one of these."""

    only: Pick | None = None
    """`best K` (the study's Only B_k) or `worst K` (its control): these layers alone, together."""
    boost: Pick | None = None
    """`best K` or `worst K`: every parameter, these layers at twice the learning rate (Boost B_k)."""
    middle: int | None = Field(None, ge=1)
    """The K layers in the middle alone, without looking at any profile (Mid-k)."""
    worst: int | None = Field(None, ge=1)
    """Short for `only: worst K`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "CombinedRun":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of only, boost, middle, worst, not {', '.join(given) or 'none'}")
        return self

    @property
    def how(self) -> Literal["layers", "boost"]:
        return "boost" if self.boost else "layers"

    @property
    def which(self) -> tuple[Literal["best", "worst", "middle"], int]:
        """Kind and number of the layers that are picked."""
        if self.middle:
            return "middle", self.middle
        if self.worst:
            return "worst", self.worst
        kind, count = (self.only or self.boost).split()
        return kind, int(count)

    @property
    def name(self) -> str:
        """Name in the tables: layers-best-5, boost-best-10, layers-middle-5, layers-worst-5."""
        return "-".join(map(str, (self.how, *self.which)))

    def of(self, layers: tuple[int, ...]) -> Selection:
        """Return the selection, once it is known which layers are picked."""
        return Selection.boost(layers, self.name) if self.how == "boost" else Selection.several(layers, self.name)


def read_layers(value: object) -> str | tuple[int, ...] | LayerSearch:
    """Read what stands in the spec."""
    if isinstance(value, LayerSearch):
        return value
    if isinstance(value, dict) and "search" in value:
        return read_section(LayerSearch, value | {"search": {}} if value["search"] is None else value)
    numbers = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return tuple(numbers)
    if isinstance(value, str):
        return value
    raise ValueError(f"cannot read {shorten(value)}; {_FORMS}")


def check_layers(value: str | tuple[int, ...] | LayerSearch) -> str | tuple[int, ...] | LayerSearch:
    """Refuse what no model could have."""
    if isinstance(value, LayerSearch):
        return value
    if isinstance(value, tuple):
        if not value:
            raise ValueError("names no layer; give numbers, or 'all'")
        if len(set(value)) < len(value):
            raise ValueError("names a layer twice")
    elif value != "all" and not _MIDDLE.fullmatch(value) and not _RANGE.fullmatch(value):
        raise ValueError(f"cannot read {shorten(value)}; {_FORMS}")
    return value


LayerSet = Annotated[
    str | tuple[int, ...] | LayerSearch,
    BeforeValidator(read_layers, json_schema_input_type=int | str | tuple[int, ...] | LayerSearch),
    AfterValidator(check_layers),
]


def resolve_layers(chosen: str | tuple[int, ...] | LayerSearch | None, count: int) -> tuple[int, ...]:
    """Return the layer numbers, ascending, in a model of `count` layers.

    `start:stop:step` is Python's slice; `middle:k` is [count/2 - k/2, count/2 + k/2), as the study's Mid-k.

    Raises:
        ValueError: a layer that the model does not have, or none at all.
    """
    if chosen is None:
        return ()
    if isinstance(chosen, LayerSearch):
        return tuple(range(count))
    if isinstance(chosen, tuple):
        if outside := [k for k in chosen if not 0 <= k < count]:
            raise ValueError(f"layers: the model has layers 0 to {count - 1}, not {outside[0]}")
        return tuple(sorted(chosen))
    if match := _MIDDLE.fullmatch(chosen):
        return middle_layers(int(match[1]), count)
    if match := _RANGE.fullmatch(chosen):
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise ValueError("layers: a step of 0 goes nowhere")
        found = tuple(sorted(range(count)[start:stop:step]))
        if not found:
            raise ValueError(f"layers: {chosen} selects none of the model's {count} layers")
        return found
    return tuple(range(count))


def middle_layers(width: int, count: int) -> tuple[int, ...]:
    """[count/2 - width/2, count/2 + width/2), the study's Mid-k.

    Raises:
        ValueError: the model has fewer layers.
    """
    if not 1 <= width <= count:
        raise ValueError(f"layers: middle:{width} needs 1 to {count} layers")
    first = (count - width) // 2
    return tuple(range(first, first + width))
