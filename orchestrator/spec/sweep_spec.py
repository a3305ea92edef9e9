"""The spec of a sweep: one YAML file, read into typed models, refused with field, reason and fix."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.config import AlgorithmConfig, ModelConfig, TinyModel
from layersweep.policies.strict import Location, StrictModel, written_as
from layersweep.rollout.config import EvaluationConfig, RolloutConfig, TaskConfig
from layersweep.workers.config import (
    DeepSpeedConfig,
    LearningRateTuning,
    RecoveryConfig,
    ResourcesConfig,
    TrainingConfig,
)
from layersweep.workers.trackers.config import TrackingConfig

from .controls import ControlConfig
from .factors import FieldPath, Levels
from .layers import CombinedRun, LayerSet
from .overrides import long_form
from .selections import SweptSelections

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
MOST_EVALUATIONS = 10_000
"""Evaluations of a run in the course of its training."""


class SweepSpec(StrictModel):
    """One sweep: which layers of which model carry the gains of which training."""

    name: Annotated[
        str,
        written_as(
            r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", "1 to 100 letters, digits, `_`, `.`, `-`, the first a letter or a digit"
        ),
    ]
    """Names the output folder and the Ray job: letters, digits, `_`, `.`, `-`."""
    model: ModelConfig
    """The base model. A plain string is short for `{type: pretrained, path: ...}`."""
    task: TaskConfig
    """Task that is trained: prompts and rewards."""
    algorithm: AlgorithmConfig = GRPO()
    """Rule by which rewards become updates. A plain string is short for `{type: ...}`."""
    layers: LayerSet | None = "all"
    """Layers that get a run each: `all`, a list of numbers, `start:stop:step`, `middle:k`, or `{search: {budget,
    goal}}` to find the best for a share of the cost. null, the default beside `sweep`, is none."""
    sweep: tuple[SweptSelections, ...] = ()
    """Selections of any grain, a list such as `[{layers: all, modules: mlp}, {layers: all, modules: attention},
    {layers: [[3, 7]]}]`: parts of layers, layers that train together, parameters outside of layers."""
    include_full: bool = True
    """Whether to train every parameter in a run of its own; without it no contribution can be computed."""
    combine: tuple[CombinedRun, ...] = ()
    """Runs over several layers, trained once the layer runs are finished: `only: best 5`, `boost: best 10`,
    `middle: 5`, `worst: 5`. Picked on the selection split, scored on the final split too."""
    controls: tuple[ControlConfig, ...] = ()
    """Runs beside those of the sweep that say what else could explain their gain, such as `{type: random_reward, of:
    [full, 3]}`: `random_reward`, `constant_reward`, `random_direction`, `supervised`, `learning_rate`. Each has a row
    of kind `control` in the tables, and no part in ranks, searches and claims. They train once the runs are finished;
    `resume` adds more."""
    factors: dict[FieldPath, Levels] = {}
    """Fields in which several sweeps differ, each with its values: `{algorithm: [grpo, gspo]}`, or by name,
    `{task: {short: {...}, long: {...}}}`. Every value of each field with every one of the others is a sweep of its own,
    in `<output>/<name>/<name>-<value>`; they run one after the other, on the same engines where they
    need the same, and are compared at the end."""
    profile: Location | None = None
    """A finished sweep's folder or contribution.parquet to pick `combine`'s layers from; null is this sweep itself."""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """Seeds, from 0 on; every run is repeated with each of them."""
    training: TrainingConfig = TrainingConfig()
    rollout: RolloutConfig = RolloutConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    responses: str = "final"
    """Responses that are kept, in `responses/`, to be read (`layersweep responses`) and scored once more
    (`layersweep rescore`): `final`, those of each run's last evaluation (in a search also at its rungs); `all`, of
    every evaluation and of training; `sample:N`, of all of these but of N prompts each, the same for every run;
    `none`."""
    recovery: RecoveryConfig = RecoveryConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: Location = "runs"
    """A folder, or an fsspec URI; the sweep writes to `<output>/<name>`."""

    @property
    def folder(self) -> str:
        """Folder or URI that the sweep writes to: `<output>/<name>`."""
        return f"{self.output.rstrip('/')}/{self.name}"

    @model_validator(mode="before")
    @classmethod
    def _sweep_replaces_all_layers(cls, data: Any) -> Any:
        return (
            data | {"layers": None} if isinstance(data, dict) and data.get("sweep") and "layers" not in data else data
        )

    @field_validator("model", mode="before", json_schema_input_type=str | ModelConfig)
    @classmethod
    def _a_path_is_a_pretrained_model(cls, value: object) -> object:
        return long_form("model", value)

    @field_validator("algorithm", mode="before", json_schema_input_type=str | AlgorithmConfig)
    @classmethod
    def _a_name_is_an_algorithm(cls, value: object) -> object:
        return long_form("algorithm", value)

    @field_validator("seeds", mode="before", json_schema_input_type=Seed | tuple[Seed, ...])
    @classmethod
    def _one_seed(cls, value: object) -> object:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ")
        return seeds

    @field_validator("responses")
    @classmethod
    def _responses_are_known(cls, responses: str) -> str:
        if not re.fullmatch(r"all|final|none|sample:[1-9]\d{0,8}", responses):
            raise ValueError(f"{responses!r:.60} is none of all, final, none and sample:N, such as sample:20")
        return responses

    @field_validator("combine")
    @classmethod
    def _combined_runs_differ(cls, combine: tuple[CombinedRun, ...]) -> tuple[CombinedRun, ...]:
        names = [run.name for run in combine]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names the run {twice[0]} twice")
        return combine

    @model_validator(mode="after")
    def _runs_can_be_trained_and_compared(self) -> "SweepSpec":
        if self.training.group_size < 2:
            raise ValueError(
                "training.group_size: advantages compare the responses of a group, and a group of 1 has nothing to "
                "compare; set it to 2 or more"
            )
        if self.layers is None and not self.sweep:
            raise ValueError("layers: null leaves nothing to sweep; name layers, or selections as `sweep`")
        if isinstance(self.training.learning_rate, LearningRateTuning) and not self.include_full:
            raise ValueError(
                "training.learning_rate.tune: rates are tried on the full run; set include_full to true, or name rates"
            )
        stages = {name: getattr(self.deepspeed, name) for name in ("layer_zero_stage", "full_zero_stage")}
        if self.training.optimizer == "muon" and (split := [name for name, stage in stages.items() if stage]):
            raise ValueError(
                f"deepspeed.{split[0]}: {stages[split[0]]}: Muon works on whole matrices, and ZeRO splits them between "
                "ranks; set it to 0, or training.optimizer to adamw"
            )
        every = self.evaluation.every
        if every and self.training.steps // every > MOST_EVALUATIONS:
            raise ValueError(
                f"evaluation.every: {every} would score every run {self.training.steps // every} times; raise it to "
                f"have at most {MOST_EVALUATIONS}"
            )
        if self.profile and not self.combine:
            raise ValueError("profile: only `combine` picks layers from it, and there is none; remove it")
        return self

    @model_validator(mode="after")
    def _engines_can_serve_the_runs(self) -> "SweepSpec":
        if self.rollout.sleep and not 0 < self.resources.engine.gpus < 1:
            raise ValueError(
                f"rollout.sleep: makes room for trainers on an engine's GPU, and with resources.engine.gpus "
                f"{self.resources.engine.gpus:g} there are none; ask for a part of a GPU, or set sleep to false"
            )
        if self.rollout.tensor_parallel_size > 1 and not self.resources.on_gpu():
            raise ValueError(
                f"rollout.tensor_parallel_size: {self.rollout.tensor_parallel_size} GPUs, and engines are on CPUs, as "
                "resources.engine.gpus is 0; set it to 1"
            )
        if self.rollout.cuda_graphs and not self.resources.on_gpu():
            raise ValueError("rollout.cuda_graphs: engines are on CPUs, as resources.engine.gpus is 0; set it to false")
        if self.rollout.sleep and self.rollout.staleness:
            raise ValueError(
                f"rollout.staleness: {self.rollout.staleness} generates while trainers train, and with sleep they take "
                "turns; set one of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _algorithm_and_model_fit_the_task(self) -> "SweepSpec":
        if self.algorithm.build().overlong_buffer >= self.training.max_response_tokens:
            raise ValueError("algorithm.overlong_buffer: must be below training.max_response_tokens")
        if self.algorithm.build().compares_steps and not getattr(self.task, "multi_turn", False):
            raise ValueError(
                f"algorithm.type: {self.algorithm.type} compares the steps of episodes, and {self.task.type} has none; "
                "choose grpo or dr_grpo, or an environment as the task"
            )
        if self.algorithm.build().max_num_gen_batches > 1 and getattr(self.task, "multi_turn", False):
            raise ValueError(
                f"algorithm.max_num_gen_batches: dynamic sampling replaces prompts, and {self.task.type} has episodes; "
                "set it to 1"
            )
        if isinstance(self.model, TinyModel) and not hasattr(type(self.task), "tiny"):
            raise ValueError(
                f"model.type: tiny needs a task with demonstrations; {self.task.type} has none. Name a pretrained model"
            )
        return self
