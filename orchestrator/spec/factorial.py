"""The sweeps that a spec with `factors` asks for."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layersweep.workers.storage.files import read_bytes

from .errors import SpecError, shorten
from .load import parse_spec, read_spec
from .overrides import override
from .sweep_spec import SweepSpec

OF_THE_WHOLE = ("name", "output", "factors")
"""Fields that all sweeps have in common."""


def sweeps_of(spec: SweepSpec) -> list[SweepSpec]:
    """Return the sweeps that a spec asks for, every level of each factor with every one of the others; itself without.

    Each has a folder of its own, `<output>/<name>/<name>-<level>`.

    Raises:
        SpecError: levels that cannot be told apart, or that make no valid spec.
    """
    if not spec.factors:
        return [spec]
    problems = [f"factors: {path} is the same for all" for path in spec.factors if path.split(".")[0] in OF_THE_WHOLE]
    named = []
    for path, levels in spec.factors.items():
        try:
            named.append([(path, label, value) for label, value in _labelled(path, levels)])
        except ValueError as error:
            problems.append(f"factors.{path}: {error}")
    if problems:
        raise SpecError(problems)
    common = spec.model_dump(mode="json") | {"factors": {}, "output": spec.folder}
    found = []
    for chosen in itertools.product(*named):
        name = "-".join([spec.name, *(label for _, label, _ in chosen)])
        try:
            found.append(parse_spec(override(common, {path: value for path, _, value in chosen} | {"name": name})))
        except SpecError as error:
            problems += [f"factors, {name}: {problem}" for problem in error.problems]
    if problems:
        raise SpecError(problems)
    return found


def folders_of(folder: str) -> list[str]:
    """Return the folders of the sweeps that have begun where a spec with factors stands; of any other folder itself."""
    try:
        data = read_spec(f"{folder.rstrip('/')}/sweep.yaml")
    except SpecError:
        return [folder]
    if not data.get("factors"):
        return [folder]
    folders = [f"{folder.rstrip('/')}/{sweep.name}" for sweep in sweeps_of(parse_spec(data))]
    return [one for one in folders if read_bytes(f"{one}/sweep.yaml") is not None] or [folder]


def _labelled(path: str, levels: Sequence[Any] | Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the levels with their names.

    Raises:
        ValueError: a level has no name of its own, or two have the same.
    """
    pairs = list(levels.items()) if isinstance(levels, Mapping) else [(_label(path, value), value) for value in levels]
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two levels are called {twice[0]}; give names, such as {{one: ..., two: ...}}")
    yield from pairs


def _label(path: str, value: Any) -> str:
    """Name a level: a section by its type, a file by its name, another value by its field and itself."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return value["type"]
    field = path.rpartition(".")[2]
    text = (
        re.sub(r"[^A-Za-z0-9_.]+", ".", value.rstrip("/").rpartition("/")[2]) if isinstance(value, str) else
        f"{field}-{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""
    )  # fmt: skip
    if not text.strip("."):
        raise ValueError(f"{shorten(value)} has no name of its own; give names, such as {{one: ..., two: ...}}")
    return text.strip(".")[:40]
