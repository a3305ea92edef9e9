"""Reading a spec from YAML or plain data, with errors that name field, reason and fix."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from layersweep.workers.storage.files import read_bytes

from .errors import SpecError, shorten
from .overrides import override
from .schema_docs import models_of
from .sweep_spec import SweepSpec
from .yaml_core import read_yaml


def load_spec(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """Read and validate a spec.

    Args:
        source: path or fsspec URI of a YAML file, or plain data.
        overrides: values that replace those of the source, by dotted path (`training.steps`, see `overrides`).

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe a sweep.
    """
    data = source if isinstance(source, Mapping) else read_spec(str(source))
    try:
        return parse_spec(override(data, overrides or {}))
    except RecursionError as error:
        raise SpecError([f"{shorten(source)}: nested too deeply"]) from error


def read_spec(path: str) -> dict[str, Any]:
    """Return the content of a spec file as it stands there.

    Raises:
        SpecError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = read_bytes(path)
    except (OSError, ImportError, ValueError) as error:  # ValueError: an unknown protocol, a null byte in the path
        raise SpecError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from error
    if content is None:
        raise SpecError([f"{path}: no such file"])
    try:
        data = read_yaml(content.decode("utf-8-sig"))
    except ValueError as error:
        raise SpecError([f"{path}: not YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise SpecError([f"{path}: a sweep is a mapping of fields (name, model, task, ...), not {_kind(data)}"])
    return data


def parse_spec(data: Mapping[str, Any]) -> SweepSpec:
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
        return f"{where}: unknown key.{_suggest(path, classes)}"
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
        return f"{where}: {shorten(problem['input'])} is not {problem['ctx']['expected']}"
    if problem["type"] == "value_error":
        field = message.partition(":")[0].partition(".")[0]
        named = any(field in cls.model_fields for cls in classes)  # by a check of several fields
        return f"{where}{'.' if named else ': '}{message}" if where else message
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = "needs a mapping of fields"
    return f"{where}: {message[0].lower()}{message[1:]}, got {shorten(problem['input'])}"


def _suggest(path: Sequence[str], here: list[type[BaseModel]]) -> str:
    """Return the nearest spelling in this section, else the same key where it does exist: in the same part of the spec,
    or the least deep. At the top, where values by dotted path lack their section, another section's key comes first."""
    key, valid = path[-1], sorted({name for cls in here for name in cls.model_fields})
    places: dict[str, list[str]] = {}
    for name, place in _paths(SweepSpec):
        if place != ".".join(path):  # of another type of the same section
            places.setdefault(name, []).append(place)
    if (near := difflib.get_close_matches(key, valid, n=1)) and not (len(path) == 1 and key in places):
        return f" Did you mean {near[0]}?"
    if near := difflib.get_close_matches(key, places, n=1, cutoff=0.8):
        nearest = min(places[near[0]], key=lambda place: (place.split(".")[0] != path[0], place.count(".")))
        return f" Did you mean {nearest}?"
    return f" Valid here: {', '.join(valid)}" if valid else ""


def _paths(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in cls.model_fields:
        yield name, prefix + name
        for inner in models_of(cls, name):
            yield from _paths(inner, f"{prefix}{name}.")


def _tag(cls: type[BaseModel]) -> str | None:
    field = cls.model_fields.get("type")
    return field.default if field and typing.get_origin(field.annotation) is Literal else None
