"""The base of every configuration model."""

import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class StrictModel(BaseModel):
    """A section of the spec: immutable, unknown keys, NaN and infinity refused; attribute docstrings document it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Refuse `steps: true`, which pydantic would read as 1."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name) if isinstance(value, bool) else None
            if field and {int, float} & (kinds := _kinds(field.annotation)) and bool not in kinds:
                raise ValueError(f"{name}: {str(value).lower()} is no number; give one")
        return data


def _kinds(annotation: Any) -> set[Any]:
    """Return the alternatives of a field's type, taken apart."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal or not inner:
        return {annotation}
    return set().union(*map(_kinds, inner))
