"""The `factors` field: several sweeps in one spec, which differ in some fields, run in turn and are compared."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from .overrides import PATH

FieldPath = Annotated[str, StringConstraints(pattern=f"^{PATH}$", max_length=100)]
Levels = Annotated[
    tuple[Any, ...] | dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,40}$")], Any],
    Field(min_length=2),
]
"""Values of one field, by name where they cannot be told by themselves."""
