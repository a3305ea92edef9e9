"""Reading a spec from YAML or plain data, with errors that name field, reason and fix."""

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from layersweep.workers.storage.files import located

from .errors import SpecError
from .schema_docs import models_of
from .sweep_spec import SweepSpec


def load_spec(path: str | Path, overrides: dict[str, Any] | None = None) -> SweepSpec:
    """Read and validate a YAML file, a path or an fsspec URI.

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe a sweep.
    """
    try:
        filesystem, place = located(str(path))
        data = yaml.safe_load(filesystem.cat_file(place).decode())
    except (OSError, ImportError) as error:
        raise SpecError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise SpecError([f"{path}: a sweep is a mapping of fields (name, model, task, ...), not {_kind(data)}"])
    return parse_spec(data | (overrides or {}))


def parse_spec(data: dict[str, Any]) -> SweepSpec:
    """Validate a spec given as plain data.

    Raises:
        SpecError: with every problem found, each with its field's path and the nearest valid spelling.
    """
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        # A list whose items are wrong also counts as too short: say the former alone.
        inner = {problem["loc"][:n] for problem in problems for n in range(1, len(problem["loc"]))}
        shown = [_explain(p) for p in problems if not (p["type"] == "too_short" and p["loc"] in inner)]
        raise SpecError(shown) from error


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _explain(problem: Any) -> str:
    classes: list[type[BaseModel]] = [SweepSpec]
    path: list[str] = []
    for part in problem["loc"]:
        tagged = [c for c in classes if part in (_tag(c), c.__name__)]
        if isinstance(part, int):
            path[-1:] = [f"{path[-1]}[{part}]"] if path else [f"[{part}]"]
        elif tagged and part != path[-1:]:
            classes = tagged  # a union's branch: not part of what the user wrote
        else:
            path.append(str(part))
            if part is not problem["loc"][-1] or problem["type"] != "extra_forbidden":
                classes = [c for owner in classes for c in models_of(owner, str(part))]
    where = ".".join(path)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key.{_suggest(path[-1], classes)}"
    if problem["type"] == "union_tag_invalid":
        known = problem["ctx"]["expected_tags"].replace("'", "")
        near = difflib.get_close_matches(str(problem["ctx"]["tag"]), known.split(", "), n=1)
        return f"{where}.type: no {problem['ctx']['tag']!r} here; one of {known}." + (
            f" Did you mean {near[0]}?" if near else ""
        )
    if problem["type"] == "union_tag_not_found":
        return f"{where}: needs a `type`"
    if problem["type"] == "missing":
        return f"{where}: required"
    if problem["type"] == "literal_error":
        return f"{where}: {problem['input']!r} is not {problem['ctx']['expected']}"
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if problem["type"] == "model_type":
        message = "needs a mapping of fields"
    return f"{where}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _suggest(key: str, here: list[type[BaseModel]]) -> str:
    """The nearest spelling in this section, else the same key where it does exist."""
    valid = sorted({name for cls in here for name in cls.model_fields})
    if near := difflib.get_close_matches(key, valid, n=1):
        return f" Did you mean {near[0]}?"
    everywhere = dict(_paths(SweepSpec))
    if near := difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8):
        return f" Did you mean {everywhere[near[0]]}?"
    return f" Valid here: {', '.join(valid)}" if valid else ""


def _paths(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in cls.model_fields:
        yield name, prefix + name
        for inner in models_of(cls, name):
            yield from _paths(inner, f"{prefix}{name}.")


def _tag(cls: type[BaseModel]) -> str | None:
    field = cls.model_fields.get("type")
    return field.default if field and typing.get_origin(field.annotation) is Literal else None
