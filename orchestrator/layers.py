"""The `layers` field: which layers of a model get a run each."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_RANGE = re.compile(r"(-?\d*):(-?\d*)(?::(-?\d+))?")
_MIDDLE = re.compile(r"middle:(\d+)")
_FORMS = "write all, a list such as [0, 7, 13], start:stop:step, or middle:k"


def _read(value: object) -> str | tuple[int, ...]:
    numbers = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return tuple(numbers)
    if isinstance(value, str):
        return value
    raise ValueError(f"cannot read {value!r}; {_FORMS}")


def _check(value: str | tuple[int, ...]) -> str | tuple[int, ...]:
    if isinstance(value, tuple):
        if not value:
            raise ValueError("names no layer; give numbers, or 'all'")
        if len(set(value)) < len(value):
            raise ValueError("names a layer twice")
    elif value != "all" and not _MIDDLE.fullmatch(value) and not _RANGE.fullmatch(value):
        raise ValueError(f"cannot read {value!r}; {_FORMS}")
    return value


LayerSet = Annotated[str | tuple[int, ...], BeforeValidator(_read), AfterValidator(_check)]


def resolve_layers(chosen: str | tuple[int, ...], count: int) -> tuple[int, ...]:
    """The layer numbers, ascending, in a model of `count` layers.

    `start:stop:step` is Python's slice; `middle:k` is [count/2 - k/2, count/2 + k/2), as the study's Mid-k.

    Raises:
        ValueError: a layer that the model does not have, or none at all.
    """
    if isinstance(chosen, tuple):
        if outside := [k for k in chosen if not 0 <= k < count]:
            raise ValueError(f"layers: the model has layers 0 to {count - 1}, not {outside[0]}")
        return tuple(sorted(chosen))
    if match := _MIDDLE.fullmatch(chosen):
        width = int(match[1])
        if not 1 <= width <= count:
            raise ValueError(f"layers: middle:{width} needs 1 to {count} layers")
        first = (count - width) // 2
        return tuple(range(first, first + width))
    if match := _RANGE.fullmatch(chosen):
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise ValueError("layers: a step of 0 goes nowhere")
        found = tuple(sorted(range(count)[start:stop:step]))
        if not found:
            raise ValueError(f"layers: {chosen} selects none of the model's {count} layers")
        return found
    return tuple(range(count))
