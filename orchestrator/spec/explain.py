"""Errors of pydantic in the words of a spec: the field as it was written, the reason, the nearest valid spelling."""

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import shorten
from .schema_docs import models_of

Section = TypeVar("Section", bound=BaseModel)


def read_section(cls: type[Section], value: object) -> Section:
    """Validate a section within a validator of a field that has other forms too.

    Raises:
        ValueError: with the first problem, whose field is relative to the section.
    """
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise ValueError(explain(error, cls)[0]) from error


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return a line for each problem of data that was to be a `root`."""
    problems = error.errors()
    # A list whose items are wrong also counts as too short: say the former alone.
    inner = {problem["loc"][:n] for problem in problems for n in range(1, len(problem["loc"]))}
    return [_explain(p, root) for p in problems if not (p["type"] == "too_short" and p["loc"] in inner)]


def _explain(problem: Any, root: type[BaseModel]) -> str:
    classes: list[type[BaseModel]] = [root]
    siblings: list[type[BaseModel]] = []
    """All forms of a section that has several; `classes` are those that were chosen."""
    path: list[str] = []
    for part in problem["loc"]:
        tagged = [c for c in classes if part in (_tag(c), c.__name__)]
        if isinstance(part, int) and problem["type"] != "invalid_key":
            path[-1:] = [f"{path[-1]}[{part}]"] if path else [f"[{part}]"]
        elif tagged:
            siblings, classes = classes, tagged  # a union's branch: not part of what the user wrote
        elif part != "[key]":
            path.append(str(part) if str(part).isprintable() and str(part).strip() == str(part) != "" else repr(part))
            if part is not problem["loc"][-1] or problem["type"] != "extra_forbidden":
                classes, siblings = [c for owner in classes for c in models_of(owner, str(part))], []
    where = ".".join(path)
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key.{_suggest(problem['loc'][-1], where, classes, siblings, root)}"
        case "union_tag_invalid":
            known = problem["ctx"]["expected_tags"].replace("'", "")
            near = difflib.get_close_matches(str(problem["ctx"]["tag"]).lower(), known.split(", "), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return f"{where}.type: no {problem['ctx']['tag']!r} here; one of {known}.{hint}"
        case "union_tag_not_found":
            return f"{where}: needs a `type`, one of {', '.join(sorted(filter(None, map(_tag, classes))))}"
        case "missing":
            return f"{where}: required"
        case "literal_error":
            return f"{where}: {shorten(problem['input'])} is not {problem['ctx']['expected']}"
        case "invalid_key":
            return f"{'.'.join([*path[:-1], repr(problem['input'])])}: the name of a field is text; correct it"
        case "value_error":
            field = re.split(r"[:.\[]", message, maxsplit=1)[0]
            named = any(field in cls.model_fields for cls in classes)  # by a check of several fields
            return f"{where}{'.' if named else ': '}{message}" if where else message
    return f"{where}: {_in_words(problem, message, classes)}, got {shorten(problem['input'])}"


def _in_words(problem: Any, message: str, classes: Sequence[type[BaseModel]]) -> str:
    """Say what a value of another type should have been, in YAML's terms instead of Python's."""
    value, bounds = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            tags = filter(None, map(_tag, classes))
            near = difflib.get_close_matches(value.lower(), tags, n=1) if isinstance(value, str) else []
            return "needs a mapping of fields" + (f", such as {{type: {near[0]}}}" if near else "")
        case "tuple_type" | "list_type":
            if not isinstance(value, str | int | float):
                return "needs a list"
            numbers = isinstance(value, str) and re.fullmatch(r"[-\d.,\s]+", value)
            return f"needs a list, such as [{value if numbers else repr(value)}]"
        case "too_short":
            return f"needs at least {bounds['min_length']} in its list"
        case "too_long":
            return f"takes at most {bounds['max_length']} in its list"
        case "string_type":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return "needs text" + (f", as a number is in quotes ('{value}')" if number else "")
    return f"{message[0].lower()}{message[1:]}"


def _suggest(
    key: str, where: str, here: list[type[BaseModel]], siblings: list[type[BaseModel]], root: type[BaseModel]
) -> str:
    """Say where a key belongs: deeper in its section, to another form of it, or else the nearest spelling in it; then
    the same key, or nearly, where it does exist: in the same part of the spec, or the least deep. At the top, where
    values by dotted path lack their section, another section's key comes first."""
    where = re.sub(r"\[\d+\]", "", where)
    part, top, valid = (
        where.split(".")[0],
        "." not in where,
        sorted({name for cls in here for name in cls.model_fields}),
    )
    places: dict[str, list[str]] = {}
    for name, place in _paths(root):
        if place != where:  # of another form of the same section
            places.setdefault(name, []).append(place)
    if deeper := [place for place in places.get(key, ()) if not top and place.startswith(where.removesuffix(key))]:
        return f" Did you mean {min(deeper, key=len)}?"
    if owners := [cls for cls in siblings if key in cls.model_fields]:
        names = sorted({_tag(cls) or f"{{{', '.join(cls.model_fields)}}}" for cls in owners})
        return f" Only {' and '.join(names)} take{'s' * (len(names) == 1)} it"
    if (near := difflib.get_close_matches(key, valid, n=1)) and not (top and key in places):
        return f" Did you mean {near[0]}?"
    if near := difflib.get_close_matches(key, places, n=1, cutoff=0.8):
        nearest = min(places[near[0]], key=lambda place: (place.split(".")[0] != part, place.count(".")))
        return f" Did you mean {nearest}?"
    return f" Valid here: {', '.join(valid)}" if valid else ""


def _paths(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in cls.model_fields:
        yield name, prefix + name
        for inner in models_of(cls, name):
            yield from _paths(inner, f"{prefix}{name}.")


def _tag(cls: type[BaseModel]) -> str | None:
    """Return the `type` that a section's class has in a spec."""
    field = cls.model_fields.get("type")
    return typing.get_args(field.annotation)[0] if field and typing.get_origin(field.annotation) is Literal else None
