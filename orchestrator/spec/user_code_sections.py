"""The sections of a spec that name code of the user's own, wherever they are in it."""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from layersweep.policies.user_code import UserCode, sources


def code_sections(value: Any, field: str = "") -> Iterator[tuple[str, UserCode]]:
    """Yield each such section, with its field in the spec."""
    if isinstance(value, UserCode):
        yield field, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from code_sections(getattr(value, name), f"{field}.{name}" if field else name)
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from code_sections(inner, f"{field}[{i}]")


def with_code_paths(value: Any, change: Callable[[str, str], str], field: str = "") -> Any:
    """Return a spec, or a part of one, with the path of each such section changed.

    Args:
        change: takes a path and its field.
    """
    if isinstance(value, UserCode):
        path = change(value.path, f"{field}.path")
        return value if path == value.path else value.model_copy(update={"path": path})
    if isinstance(value, BaseModel):
        changes = {}
        for name in type(value).model_fields:
            before = getattr(value, name)
            if (after := with_code_paths(before, change, f"{field}.{name}" if field else name)) is not before:
                changes[name] = after
        return value.model_copy(update=changes) if changes else value
    if isinstance(value, tuple):
        items = [with_code_paths(inner, change, f"{field}[{i}]") for i, inner in enumerate(value)]
        return value if all(map(operator.is_, items, value)) else tuple(items)
    return value


def code_texts(spec: BaseModel) -> dict[str, str]:
    """Return the sources of all code of the user's own that a spec names, by their place in its folder.

    Raises:
        ValueError: there is no such file or module; the message begins with the field.
    """
    found: dict[str, str] = {}
    for field, section in code_sections(spec):
        try:
            files = sources(section.path)
            texts = {name: file.read_text(encoding="utf-8", errors="replace") for name, file in files.items()}
        except (ValueError, OSError) as error:
            raise ValueError(f"{field}.path: {error}") from error
        for name, text in texts.items():
            found[name if found.get(name, text) == text else f"{name} of {field}"] = text
    return found


def with_moved_code(old: Any, new: Any) -> Any:
    """Return an older spec, or a part of one, as plain data, with the newer's path wherever both name the same object
    in files of the same name: where code lies may change."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: with_moved_code(value, new.get(name)) for name, value in old.items()}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return list(map(with_moved_code, old, new))
    if isinstance(old, str) and isinstance(new, str):
        one, other = (re.fullmatch(r"(?:.*/)?([^/]+\.py:[\w.]+)", path) for path in (old, new))
        return new if one and other and one[1] == other[1] else old
    return old
