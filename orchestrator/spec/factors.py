"""The `factors` field: several sweeps in one spec, which differ in some fields, run in turn and are compared."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from .overrides import PATH


def _several(levels: Any) -> Any:
    """Refuse what is no list and no mapping, or has fewer than two values, in words that say what is."""
    if not isinstance(levels, list | tuple | dict) or len(levels) < 2:
        raise ValueError("needs two values or more, as a list, such as [1, 2], or by name, {one: 1, two: 2}")
    return levels


FieldPath = Annotated[str, StringConstraints(pattern=f"^{PATH}$", max_length=100)]
Levels = Annotated[
    tuple[Any, ...] | dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,40}$")], Any],
    Field(min_length=2),
    BeforeValidator(_several),
]
"""Values of one field, by name where they cannot be told by themselves."""
