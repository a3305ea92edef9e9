"""The documentation of the spec, from the models themselves."""

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from .errors import SpecError


class _SchemaWithoutTitles(GenerateJsonSchema):
    """JSON Schema without the titles that pydantic makes of field names; editors would show them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a spec as it is written, with the docstrings, for editors that complete and check YAML."""
    return model.model_json_schema(schema_generator=_SchemaWithoutTitles)


def show_schema(model: type[BaseModel], section: str = "") -> None:
    """Print fields with their defaults and documentation.

    Args:
        model: the spec.
        section: a field by dotted path, such as `training` or `evaluation.suites`, to print alone; empty for all.

    Raises:
        SpecError: there is no such field.
    """
    if not section:
        for name in model.model_fields:
            _show_field(model, name, "")
        return
    owners, parts = [model], section.split(".")
    for i, part in enumerate(parts):
        there = [owner for owner in owners if part in owner.model_fields]
        if not there:
            known = sorted({name for owner in owners for name in owner.model_fields})
            near = difflib.get_close_matches(part, known, n=1)
            fix = (
                f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else "it has no fields"
            )
            raise SpecError([f"{'.'.join(parts[: i + 1])}: no such field of a spec; {fix}"])
        owners, inner = there, [inner for owner in there for inner in models_of(owner, part)]
        if i < len(parts) - 1:
            owners = inner
    different = {repr(owner.model_fields[parts[-1]]): owner for owner in owners}  # alternatives may inherit the same
    for owner in different.values():
        _show_field(owner, parts[-1], "")


def _show_field(model: type[BaseModel], name: str, indent: str) -> None:
    field = model.model_fields[name]
    default = "" if field.is_required() else f" = {_default(field.get_default(call_default_factory=True))}"
    print(f"{indent}{name}{default}")
    if field.description:
        print(f"{indent}    {' '.join(field.description.split())}")
    for inner in models_of(model, name):
        print(f"{indent}  [{inner.__name__}] {' '.join((inner.__doc__ or '').split())}")
        for inner_name in inner.model_fields:
            _show_field(inner, inner_name, indent + "    ")


def _default(value: Any) -> str:
    return "(below)" if isinstance(value, BaseModel | tuple) and value else repr(value)


def models_of(cls: type[BaseModel], field: str) -> list[type[BaseModel]]:
    """Return the model classes that a field may hold, through unions, optionals and tuples."""
    found, todo = [], [cls.model_fields[field].annotation] if field in cls.model_fields else []
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
            if issubclass(annotation, BaseModel):
                found.append(annotation)
        else:
            todo += typing.get_args(annotation)
    return found
