"""The base of every configuration model, and what bounds the numbers and texts in its fields."""

import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

MOST = 10**9
"""Largest number in a field that has no bound of its own: more is a slip, and something would count through it."""
MOST_PROCESSES, MOST_PROMPTS, MOST_SAMPLES = 10_000, 1_000_000, 10_000
"""Largest number of processes side by side, of prompts that are drawn at a time, of responses to one prompt."""
Processes = Annotated[int, Field(gt=0, le=MOST_PROCESSES)]
Prompts = Annotated[int, Field(gt=0, le=MOST_PROMPTS)]
Samples = Annotated[int, Field(gt=0, le=MOST_SAMPLES)]


def written_as(pattern: str, words: str) -> AfterValidator:
    """Refuse text that is not, as a whole, of a regular expression's form, and say that form in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"cannot be {text!r:.60}; write {words}")
        return text

    return AfterValidator(check)


_VARIABLE = re.compile(r"\$(?:\{\w+\}|\(|[A-Z_][A-Z0-9_]+)")
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
"""A URI whose second slash is missing, which would be a folder called `s3:`."""


def _can_be_a_location(path: str) -> str:
    if found := re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError(f"has the character {found[0]!r} in it; name a path without line breaks and the like")
    if path != path.strip():
        raise ValueError(f"{path!r} begins or ends with a space; leave it out")
    if found := _VARIABLE.search(path):
        raise ValueError(f"{path}: variables of the shell such as {found[0]} are not expanded; write the path out")
    if found := _ONE_SLASH.match(path):
        raise ValueError(f"{path}: a URI has two slashes, {found[1]}://{path[found.end() :]}")
    if path.endswith("://"):
        raise ValueError(f"{path} names no path; write it out")
    return path


StopString = Annotated[str, Field(min_length=1)]
"""Text that ends a response; the engine refuses an empty one."""
Location = Annotated[str, Field(min_length=1), AfterValidator(_can_be_a_location)]
"""A path, a URI, or a name on a hub."""


class StrictModel(BaseModel):
    """A section of the spec: immutable; unknown keys, NaN, infinity and numbers above MOST refused; attribute
    docstrings document it."""

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

    @field_validator("*")
    @classmethod
    def _no_number_is_a_slip(cls, value: Any, info: ValidationInfo) -> Any:
        numbers = () if _is_bounded(cls.model_fields[info.field_name]) else _numbers(value)
        if any(abs(number) > MOST for number in numbers):
            raise ValueError(f"a number above {MOST:,} is taken for a slip; choose a smaller one")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the alternatives of a field's type, taken apart."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal or not inner:
        return {annotation}
    return set().union(*map(_kinds, inner))


def _is_bounded(part: Any) -> bool:
    """Tell whether a field, or what its type is made of, has an upper bound of its own."""
    if any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in getattr(part, "metadata", ())):
        return True
    return any(map(_is_bounded, (*typing.get_args(part), *typing.get_args(getattr(part, "annotation", None)))))


def _numbers(value: Any) -> Iterator[float]:
    """Yield a field's number, or those in its list; what a user's own settings hold is theirs."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
