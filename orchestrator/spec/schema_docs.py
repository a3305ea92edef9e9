"""The documentation of the spec, from the models themselves."""

import types
import typing
from typing import Any

from pydantic import BaseModel


def show_schema(model: type[BaseModel], indent: str = "") -> None:
    """Every field of a spec with its default and its documentation."""
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else f" = {_default(field.get_default(call_default_factory=True))}"
        print(f"{indent}{name}{default}")
        if field.description:
            print(f"{indent}    {' '.join(field.description.split())}")
        for inner in models_of(model, name):
            print(f"{indent}  [{inner.__name__}] {' '.join((inner.__doc__ or '').split())}")
            show_schema(inner, indent + "    ")


def _default(value: Any) -> str:
    return "(below)" if isinstance(value, BaseModel | tuple) and value else repr(value)


def models_of(cls: type[BaseModel], field: str) -> list[type[BaseModel]]:
    """The model classes that a field may hold, through unions, optionals and tuples."""
    found, todo = [], [cls.model_fields[field].annotation] if field in cls.model_fields else []
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
            if issubclass(annotation, BaseModel):
                found.append(annotation)
        else:
            todo += typing.get_args(annotation)
    return found
