"""Values of a spec replaced by dotted path: `training.steps=50`, `seeds=[0,1]`, `evaluation.suites[0].samples=8`."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from layersweep.policies.wording import counted

from .errors import SpecError
from .yaml_core import read_yaml

PATH = r"[A-Za-z_]\w*(?:\.\w[\w-]*|\[\d+\])*"
"""Pattern of a path: field names joined by dots, and indices of list items in brackets."""

SHORT_FORMS = {"model": {"type": "pretrained", "path": None}, "algorithm": {"type": None}}
"""Sections that may be written as one text, which takes the place of None: `algorithm: grpo` is `{type: grpo}`."""


def long_form(section: str, value: Any) -> Any:
    """Return a section as a mapping where it is written as one text; any other value as it is."""
    if section not in SHORT_FORMS or not isinstance(value, str):
        return value
    return {field: value if fixed is None else fixed for field, fixed in SHORT_FORMS[section].items()}


def is_override(word: str) -> bool:
    """Tell whether a word of a command line has the form PATH=VALUE."""
    return re.match(rf"{PATH}=", word) is not None


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Return values by dotted path from texts of the form PATH=VALUE; values are read as YAML.

    Raises:
        SpecError: a text of another form, a value that is not YAML, or a path that is given twice.
    """
    found: dict[str, Any] = {}
    problems = []
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not re.fullmatch(PATH, path):
            problems.append(f"{text}: not an override; write FIELD=VALUE, such as training.steps=50 or seeds=[0,1]")
        elif path in found:
            problems.append(f"{path}: overridden twice; give one value")
        else:
            try:
                found[path] = read_yaml(value)
            except ValueError:
                problems.append(f"{path}: cannot read {value!r} as a YAML value; quote it as text: {path}='\"...\"'")
    if problems:
        raise SpecError(problems)
    return found


def override(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a spec's data with the values at these dotted paths. Sections that are not there yet are added.

    Raises:
        SpecError: a path through something that is no section or list, or to a list item that is not there.
    """
    changed = copy.deepcopy(dict(data))
    problems = []
    for path, value in values.items():
        try:
            _set(changed, path, value)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise SpecError(problems)
    return changed


def value_at(data: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a spec's whole data."""
    found: Any = data
    for part in _parts(path):
        found = found[part]
    return found


def _parts(path: str) -> list[str | int]:
    return [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]


def _set(data: dict[str, Any], path: str, value: Any) -> None:
    parts = _parts(path)
    owner: Any = data
    for depth, part in enumerate(parts):
        at = re.match(rf"(?:\.?[^.\[\]]+|\[\d+\]){{{depth}}}", path)[0]  # the path of `owner`
        if isinstance(part, int):
            if not isinstance(owner, list):
                raise ValueError(f"{path}: {at} is no list in the spec; override {at} as a whole")
            if part >= len(owner):
                raise ValueError(f"{path}: {at} has {counted(len(owner), 'items')} in the spec, numbered from 0")
        elif not isinstance(owner, dict):
            raise ValueError(f"{path}: {at} is {owner!r} in the spec, not a section; override {at} as a whole")
        if depth == len(parts) - 1:
            owner[part] = value
        else:
            if isinstance(part, str) and owner.get(part) is None:
                owner[part] = {}
            owner[part] = long_form(part, owner[part]) if depth == 0 else owner[part]
            owner = owner[part]
