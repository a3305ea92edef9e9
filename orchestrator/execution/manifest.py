"""The manifest of a sweep: spec, model, data and decisions, which hold from one start to the next.

Kept in `<sweep>/checkpoints/experiment.json`. A sweep that goes on may get more layers, seeds, steps and combined
runs, and other machines; anything else would mix two experiments in one table.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import xxhash

from layersweep.orchestrator.planning.controls import controlled_selections
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.planning.selections import swept_selections
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.layers import LayerSearch, resolve_layers
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.user_code_sections import with_moved_code
from layersweep.policies.config import PretrainedModel
from layersweep.workers.storage.files import resolve_uri
from layersweep.workers.storage.run_store import read_json, write_json

MAY_CHANGE = (
    "resources.", "recovery.", "tracking.", "rollout.", "training.micro_batch_tokens", "training.checkpointing",
    "training.attention", "training.prefix_cache", "evaluation.every", "evaluation.finalists", "evaluation.seed_sd",
    "output", "responses",
)  # fmt: skip
"""Fields that may differ from one start to the next: they say where and how fast, not what."""
MUST_NOT_CHANGE = ("rollout.dtype", "rollout.kv_cache_dtype", "rollout.staleness", "resources.trainer_ranks",
                   "resources.full_trainer_ranks")  # fmt: skip
"""Except these: the numbers depend on them, or the layout of checkpoints."""
MAY_GROW = ("layers", "sweep", "seeds", "training.steps", "combine", "controls", "include_full")
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json",
               "tokenizer.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
               "chat_template*")  # fmt: skip
"""Weights, and all that tokenizers and chat templates are read from."""


@dataclass
class SweepManifest:
    """The record, and its file."""

    path: str
    spec: dict[str, Any]
    """The resolved spec, as plain data."""
    model: dict[str, str]
    """XXH3-128 of each file of a model folder; empty for a hub name and for the tiny model, whose weights the
    trainers tell apart by their digest."""
    data: dict[str, str]
    """Fingerprints of the prompts by section of the spec, and of their tokens by section and split."""
    code: dict[str, str] = field(default_factory=dict)
    """Source text of each file of the user's own code."""
    trunk: str | None = None
    """Digest of the base's weights as trainers load them, in the training dtype."""
    rungs: dict[int, list[int]] = field(default_factory=dict)
    """Layers that a search kept, by step."""
    rates: dict[str, float] | None = None
    """Learning rates that trials found, by kind."""
    finished: bool = False
    """Everything that this spec asks for is done."""

    @classmethod
    def begin(cls, plan: Plan) -> "SweepManifest":
        """Write the manifest of a sweep that starts now."""
        manifest = cls(
            manifest_file(plan.folder), _dump(plan.spec), model_files(plan.spec), plan.fingerprints, plan.code
        )
        manifest._write()
        return manifest

    @classmethod
    def load(cls, folder: str) -> "SweepManifest | None":
        """Read the manifest of the sweep in a folder; None where none began.

        Raises:
            CorruptFile: it is not what was written.
            OSError: it could not be read now.
        """
        path = manifest_file(folder)
        filesystem, inner = resolve_uri(path)
        if not filesystem.exists(inner):
            return None
        content = read_json(filesystem, inner)
        content["rungs"] = {int(step): layers for step, layers in content["rungs"].items()}
        return cls(path, **content)

    def update_spec(self, plan: Plan) -> None:
        """Take over what a plan adds.

        Raises:
            SpecError: it would mix two experiments; every difference is named.
        """
        problems = list(self._differences(plan))
        if problems:
            raise SpecError(problems)
        if (spec := _dump(plan.spec)) != self.spec:
            self.spec, self.finished = spec, False
            self._write()

    def asks_no_more_than_done(self, plan: Plan) -> bool:
        """Tell whether everything that a plan asks for is done already.

        Raises:
            SpecError: the plan would mix two experiments; every difference is named.
        """
        if problems := list(self._differences(plan)):
            raise SpecError(problems)
        asked = _dump(plan.spec)
        done = with_moved_code(self.spec, asked) | {"output": asked["output"]}  # its folder may have been moved
        return self.finished and asked == done

    def record_base_digest(self, digest: str) -> None:
        """Record the digest of the base's weights, which the first trainer reports."""
        self.trunk = digest
        self._write()

    def record_rung(self, step: int, layers: list[int]) -> None:
        """Record the layers that a search keeps after a step."""
        self.rungs[step] = layers
        self._write()

    def record_learning_rates(self, rates: dict[str, float]) -> None:
        """Record the learning rates that trials found, by kind."""
        self.rates = rates
        self._write()

    def finish(self) -> None:
        """Record that all is done that the spec asks for."""
        self.finished = True
        self._write()

    def _write(self) -> None:
        content = asdict(self)
        write_json(content.pop("path"), content)

    def _differences(self, plan: Plan) -> Iterator[str]:
        new = plan.spec
        old = parse_spec(with_moved_code(self.spec, _dump(new)))
        before, after = dict(_leaves(_dump(old))), dict(_leaves(_dump(new)))
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            grown = name.startswith(MAY_GROW) and not name.startswith("layers.search")
            if was != now and not grown and (name in MUST_NOT_CHANGE or not name.startswith(MAY_CHANGE)):
                yield (
                    f"{name}: the sweep began with {_shown(was)}, the spec has {_shown(now)}; that would mix two "
                    "experiments: restore it, or choose another name"
                )
        yield from _shrunk(old, new, plan.architecture.layers)
        yield from _changed_controls(old, plan)
        for what, were, are in (("model", self.model, model_files(new)), ("data", self.data, plan.fingerprints)):
            for name in sorted(were.keys() & are.keys()):
                if were[name] != are[name]:
                    yield (
                        f"{what}: {name} has changed since the sweep began (its hash was {were[name]}, is "
                        f"{are[name]}); restore it, or choose another name"
                    )
            for name in sorted(were.keys() - are.keys()):
                yield f"{what}: {name} is gone since the sweep began; restore it, or choose another name"
        for name in sorted(self.code.keys() & plan.code.keys()):
            if change := _first_change(self.code[name], plan.code[name]):
                yield f"code: {name} has changed since the sweep began, {change}; restore it, or choose another name"


def _shrunk(old: SweepSpec, new: SweepSpec, count: int) -> Iterator[str]:
    """Yield the fields from which something was taken away that may only be added to."""
    if isinstance(old.layers, LayerSearch) or isinstance(new.layers, LayerSearch):
        for name, was, now in (("layers", old.layers, new.layers),
                               ("training.steps", old.training.steps, new.training.steps)):  # fmt: skip
            if was != now:
                yield f"{name}: a search is planned around it and cannot be changed once it began; restore {was}"
        return
    if gone := set(resolve_layers(old.layers, count)) - set(resolve_layers(new.layers, count)):
        yield f"layers: {_shown(sorted(gone))} belong to the sweep; layers can be added, not taken away"
    before, after = ({s.name for entry in spec.sweep for s in entry.selections(count)} for spec in (old, new))
    if gone := before - after:
        yield f"sweep: {_shown(sorted(gone))} belong to the sweep; selections can be added, not taken away"
    if new.seeds[: len(old.seeds)] != old.seeds:
        yield f"seeds: the sweep began with {_shown(list(old.seeds))}; add others after these"
    if new.training.steps < old.training.steps:
        yield f"training.steps: {old.training.steps} were asked for before; steps can be added, not taken away"
    elif new.training.steps > old.training.steps and new.training.schedule != "constant":
        yield (
            f"training.steps: the {new.training.schedule} schedule of the steps done depends on their number; only a "
            "constant learning rate can go on"
        )
    if gone := {run.name for run in old.combine} - {run.name for run in new.combine}:
        yield f"combine: {_shown(sorted(gone))} belong to the sweep; runs can be added, not taken away"
    if old.include_full and not new.include_full:
        yield "include_full: the full run belongs to the sweep and cannot be taken away"


def _changed_controls(old: SweepSpec, plan: Plan) -> Iterator[str]:
    """Yield the controls that the sweep had and the plan lacks, or has in another way."""
    before = controlled_selections(old, swept_selections(old, plan.architecture))
    now = {run.selection.name: run.control for run in plan.controls}
    for selection, _, control in before:
        if now.get(selection.name) != control:
            what = "is another now" if selection.name in now else "belongs to the sweep"
            yield f"controls: {selection.name} {what}; controls can be added, not changed or taken away"


def _first_change(was: str, now: str) -> str:
    """Say where a text changed first; empty where it did not."""
    if was == now:
        return ""
    pairs = zip_longest(was.splitlines(), now.splitlines())
    number, (before, after) = next(((i, pair) for i, pair in enumerate(pairs, 1) if len(set(pair)) > 1), (0, ("", "")))
    return f"first in line {number}: it was {before!r}, is {after!r}" if number else "in the ends of its lines"


def model_files(spec: SweepSpec) -> dict[str, str]:
    """XXH3-128 of each file that a local model's weights and prompts depend on."""
    if not isinstance(spec.model, PretrainedModel) or not Path(spec.model.path).expanduser().is_dir():
        return {}
    folder = Path(spec.model.path).expanduser()
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: _hash(path) for path in sorted(files)}


def manifest_file(folder: str) -> str:
    return f"{folder}/checkpoints/experiment.json"


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _dump(spec: SweepSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
