"""The sweeps that a spec with `factors` asks for."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from layersweep.workers.storage.files import read_bytes, resolve_uri

from .errors import SpecError, shorten
from .factors import MOST_SWEEPS
from .load import parse_spec
from .overrides import override, value_at
from .sweep_spec import SweepSpec
from .yaml_core import read_yaml

OF_THE_WHOLE = ("name", "output", "factors")
"""Fields that all sweeps have in common."""


def sweeps_of(spec: SweepSpec) -> list[SweepSpec]:
    """Return the sweeps that a spec asks for, every level of each factor with every one of the others; itself without.

    Each has a folder of its own, `<output>/<name>/<name>-<level>`.

    Raises:
        SpecError: levels that cannot be told apart, or that make no valid spec.
    """
    return [sweep for _, sweep in _expanded(spec)] if spec.factors else [spec]


def folders_within(folder: str) -> list[str]:
    """Return the folders of the sweeps of a spec with factors, whose own folder or URI is given; of any other none."""
    folder = folder.rstrip("/")
    try:
        spec = read_yaml((read_bytes(f"{folder}/sweep.yaml") or b"").decode())
    except (OSError, ImportError, ValueError):  # no folder, no such store, no text: told when its tables are read
        return []
    several = isinstance(spec, dict) and spec.get("factors")
    return [f"{folder}/{sweep.name}" for sweep in sweeps_of(parse_spec(spec))] if several else []


def check_single(folder: str) -> None:
    """Refuse the folder of a spec with factors, for what is about one sweep.

    Raises:
        SpecError: with the folders of its sweeps; a URI whose protocol is unknown, or whose filesystem does not start.
    """
    try:
        resolve_uri(folder)
    except ValueError as error:
        raise SpecError([f"{folder}: {error}"]) from error
    if within := folders_within(folder):
        raise SpecError([f"{folder}: these are several sweeps; name one of {', '.join(within)}"])


def with_changed_levels(spec: SweepSpec, change: Callable[[SweepSpec], SweepSpec]) -> SweepSpec:
    """Return a spec whose factors have the values that `change` gives the sweeps, such as paths that mean something
    elsewhere; values that it leaves alone stay as they are written.

    Raises:
        SpecError: as for `sweeps_of`, and what `change` raises.
    """
    if not spec.factors:
        return spec
    before = [(labels, sweep.model_dump(mode="json")) for labels, sweep in _expanded(spec)]
    after = [(labels, change(sweep).model_dump(mode="json")) for labels, sweep in _expanded(spec)]
    factors = {}
    for path, levels in spec.factors.items():
        was, now = ({labels[path]: value_at(data, path) for labels, data in sweeps} for sweeps in (before, after))
        factors[path] = levels if was == now else now
    return spec.model_copy(update={"factors": factors})


def _expanded(spec: SweepSpec) -> list[tuple[dict[str, str], SweepSpec]]:
    """Return each sweep with its levels' labels by path.

    Raises:
        SpecError: as for `sweeps_of`.
    """
    problems = [
        f"factors: {path} is the same for all sweeps; leave it out"
        for path in spec.factors
        if path.split(".")[0] in OF_THE_WHOLE
    ]
    named = []
    for path, levels in spec.factors.items():
        try:
            named.append([(path, label, value) for label, value in _labelled(path, levels)])
        except ValueError as error:
            problems.append(f"factors.{path}: {error}")
    if problems:
        raise SpecError(problems)
    if (count := prod(map(len, named))) > MOST_SWEEPS:
        raise SpecError([f"factors: they make {count:,} sweeps, and more than {MOST_SWEEPS} are taken for a slip"])
    common = spec.model_dump(mode="json") | {"factors": {}, "output": spec.folder}
    found = []
    refused: dict[str, list[str]] = {}
    for chosen in itertools.product(*named):
        name = "-".join([spec.name, *(label for _, label, _ in chosen)])
        try:
            sweep = parse_spec(override(common, {path: value for path, _, value in chosen} | {"name": name}))
            found.append(({path: label for path, label, _ in chosen}, sweep))
        except SpecError as error:
            for problem in error.problems:
                refused.setdefault(problem, []).append(name)
    for problem, of in refused.items():
        problems.append(f"factors{'' if len(of) == count else f', {of[0]}'}: {problem}")
    names = Counter(sweep.name for _, sweep in found)
    problems += [f"factors: two sweeps are called {name}; name the levels" for name, n in names.items() if n > 1]
    first: dict[str, str] = {}
    for _, sweep in found:
        other = first.setdefault(sweep.model_copy(update={"name": ""}).model_dump_json(), sweep.name)
        if other != sweep.name:
            problems.append(f"factors: {other} and {sweep.name} are the same sweep; leave one out")
    if problems:
        raise SpecError(problems)
    return found


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
    field = re.sub(r"\[(\d+)\]", r".\1", path.rpartition(".")[2])
    text = (
        re.sub(r"[^A-Za-z0-9_.]+", ".", value.rstrip("/").rpartition("/")[2]) if isinstance(value, str) else
        f"{field}-{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""
    )  # fmt: skip
    if not text.strip("."):
        raise ValueError(f"{shorten(value)} has no name of its own; give names, such as {{one: ..., two: ...}}")
    return text.strip(".")[:40]
