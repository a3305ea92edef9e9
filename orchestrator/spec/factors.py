"""The `factors` field: several sweeps in one spec, which differ in some fields, run in turn and are compared."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from layersweep.policies.strict import written_as

from .overrides import PATH

MOST_SWEEPS = 256
"""Sweeps of one spec; more are a slip, such as a list of seeds as a factor."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)


def _several(levels: Any) -> Any:
    """Refuse what is no list and no mapping, has fewer than two values or other names than a folder's, in words that
    say what is right."""
    if not isinstance(levels, list | tuple | dict) or len(levels) < 2:
        raise ValueError("needs two values or more, as a list, such as [1, 2], or by name, {one: 1, two: 2}")
    if wrong := [name for name in levels if isinstance(levels, dict) and not _NAME.fullmatch(str(name))]:
        raise ValueError(f"a name cannot be {wrong[0]!r:.60}; write 1 to 40 letters, digits, `_`, `.`, `-`")
    return {str(name): value for name, value in levels.items()} if isinstance(levels, dict) else levels


FieldPath = Annotated[
    str,
    Field(max_length=100),
    written_as(PATH, "the path of a field, such as training.steps or evaluation.suites[0].samples"),
]
Levels = Annotated[tuple[Any, ...] | dict[str, Any], Field(min_length=2), BeforeValidator(_several)]
"""Values of one field, by name where they cannot be told by themselves."""
