"""The spec of a sweep: one YAML file, read into typed models, refused with field, reason and fix."""

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.config import AlgorithmConfig, ModelConfig, TinyModel
from layersweep.policies.strict import StrictModel
from layersweep.rollout.config import EvaluationConfig, RolloutConfig, TaskConfig
from layersweep.workers.config import (
    DeepSpeedConfig,
    LearningRateTuning,
    RecoveryConfig,
    ResourcesConfig,
    TrainingConfig,
)
from layersweep.workers.storage.files import located
from layersweep.workers.trackers.config import TrackingConfig

from .layers import CombinedRun, LayerSet


class SpecError(Exception):
    """A spec that cannot run. `problems` has one line per problem: field path, reason, fix."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class SweepSpec(StrictModel):
    """One sweep: which layers of which model carry the gains of which training."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    """Names the output folder and the Ray job: letters, digits, `_`, `.`, `-`."""
    model: ModelConfig
    """The base model. A plain string is short for `{type: pretrained, path: ...}`."""
    task: TaskConfig
    """What is trained on: prompts and rewards."""
    algorithm: AlgorithmConfig = GRPO()
    """How rewards become updates."""
    layers: LayerSet = "all"
    """Which layers get a run each: `all`, a list of numbers, `start:stop:step`, `middle:k`, or `{search: {budget,
    goal}}` to find the best for a share of the cost."""
    include_full: bool = True
    """Also train every parameter; without it no contribution can be computed."""
    combine: tuple[CombinedRun, ...] = ()
    """Runs over several layers, trained once the layer runs are finished: `only: best 5`, `boost: best 10`,
    `middle: 5`, `worst: 5`. Picked on the selection split, scored on the final split too."""
    profile: str | None = None
    """A finished sweep's folder or contribution.parquet to pick `combine`'s layers from; null is this sweep itself."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Every run is repeated with each of these."""
    training: TrainingConfig = TrainingConfig()
    rollout: RolloutConfig = RolloutConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: str = "runs"
    """A folder, or an fsspec URI; the sweep writes to `<output>/<name>`."""

    @field_validator("model", mode="before")
    @classmethod
    def _a_path_is_a_pretrained_model(cls, value: object) -> object:
        return {"type": "pretrained", "path": value} if isinstance(value, str) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, value: object) -> object:
        return [value] if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> "SweepSpec":
        if self.training.group_size < 2:
            raise ValueError(
                "training.group_size: advantages compare the responses of a group, and a group of 1 has nothing to "
                "compare; set it to 2 or more"
            )
        if isinstance(self.training.learning_rate, LearningRateTuning) and not self.include_full:
            raise ValueError(
                "training.learning_rate.tune: rates are tried on the full run; set include_full to true, or name rates"
            )
        whole = (
            "include_full" if self.include_full else "combine" if any(r.how == "boost" for r in self.combine) else ""
        )
        if whole and self.rollout.tensor_parallel_size > 1:
            # layersweep.rollout.engine.overlay would have to split the run's own embedding by vocabulary.
            raise ValueError(
                f"rollout.tensor_parallel_size: {self.rollout.tensor_parallel_size}: an engine over several GPUs "
                f"serves no run of the whole model, and {whole} asks for one; set it to 1"
            )
        if self.rollout.sleep and not 0 < self.resources.engine.gpus < 1:
            raise ValueError(
                f"rollout.sleep: makes room for trainers on an engine's GPU, and with resources.engine.gpus "
                f"{self.resources.engine.gpus:g} there are none; ask for a part of a GPU, or set sleep to false"
            )
        if self.algorithm.build().overlong_buffer >= self.training.max_response_tokens:
            raise ValueError("algorithm.overlong_buffer: must be below training.max_response_tokens")
        if self.algorithm.type == "gigpo" and not getattr(self.task, "multi_turn", False):
            raise ValueError(
                f"algorithm.type: gigpo compares the steps of episodes, and {self.task.type} has none; choose grpo or "
                "dr_grpo, or an environment as the task"
            )
        if isinstance(self.model, TinyModel) and not hasattr(type(self.task), "tiny"):
            raise ValueError(
                f"model.type: tiny needs a task with demonstrations; {self.task.type} has none. Name a pretrained model"
            )
        return self


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
