"""From a spec to what will be run: models resolved, layers numbered, runs listed, sizes computed. Starts nothing."""

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import fsspec

from policies.architecture import Architecture
from policies.config import PretrainedModel, TinyModel
from policies.selection import Selection

from .layers import LayerSearch, resolve_layers
from .spec import SpecError, SweepSpec

if TYPE_CHECKING:  # scipy, which most plans do without
    from .search import Rung


@dataclass(frozen=True)
class Run:
    """One selection trained with one seed."""

    selection: Selection
    seed: int

    @property
    def name(self) -> str:
        return f"{self.selection.name}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    spec: SweepSpec
    architecture: Architecture
    runs: tuple[Run, ...]
    """Every run that trains; the base is evaluated besides."""

    @property
    def folder(self) -> str:
        return f"{self.spec.output.rstrip('/')}/{self.spec.name}"

    @property
    def element_bytes(self) -> int:
        return 4 if self.spec.training.dtype == "float32" else 2

    def trainable_parameters(self, selection: Selection) -> int:
        if selection.whole:
            return self.architecture.parameters
        return len(selection.layers) * self.architecture.layer_parameters

    def push_bytes(self, selection: Selection) -> int:
        """What travels from trainer to engine after each step."""
        return self.trainable_parameters(selection) * self.element_bytes

    def trainer_bytes(self, selection: Selection) -> int:
        """A trainer's own memory beside the shared trunk and activations: weights, gradients, Adam's two moments,
        and with bfloat16 the float32 master weights."""
        per_parameter = 2 * self.element_bytes + 8 + (4 if self.element_bytes == 2 else 0)
        return self.trainable_parameters(selection) * per_parameter

    @property
    def rungs(self) -> "list[Rung]":
        """Of the spec's search; empty without one."""
        if not isinstance(self.spec.layers, LayerSearch):
            return []
        from .search import Schedule

        search = self.spec.layers.search
        layers = sum(run.selection.kind == "layer" for run in self.runs) // len(self.spec.seeds)
        return Schedule(search.budget, search.goal).rungs(layers, self.spec.training.steps)

    @property
    def evaluation_steps(self) -> set[int]:
        """Completed steps after which every run is scored, the end apart."""
        every, steps = self.spec.evaluation.every, self.spec.training.steps
        return set(range(every, steps, every) if every else ()) | {rung.step for rung in self.rungs[:-1]}

    @property
    def trunk_bytes(self) -> int:
        return self.architecture.parameters * self.element_bytes

    @property
    def training_responses(self) -> int:
        """Over all runs; the first step's batch is shared by the runs of a seed."""
        training = self.spec.training
        batch = training.prompts_per_step * training.group_size
        return batch * (len(self.runs) * (training.steps - 1) + len(self.spec.seeds))

    @property
    def evaluation_responses(self) -> int:
        evaluation, steps = self.spec.evaluation, self.spec.training.steps
        times = 1 + len([step for step in self.evaluation_steps if step < steps])
        once = sum(s.prompts * (s.samples + evaluation.greedy) for s in evaluation.suites)
        finalists = 1 + len(self.spec.seeds) * (evaluation.finalists + self.spec.include_full)
        final = sum(4 * s.final_prompts * s.samples for s in evaluation.suites)
        return once * (1 + times * len(self.runs)) + final * finalists


def make_plan(spec: SweepSpec) -> Plan:
    """Resolve everything that the spec leaves to the model, and check what it refers to.

    Raises:
        SpecError: layers that the model lacks, a model or data that is not there, prompts that the task cannot
            give, an output that cannot be written.
    """
    problems: list[str] = []
    architecture = None
    try:
        architecture = _architecture(spec)
        layers = resolve_layers(spec.layers, architecture.layers)
    except ValueError as error:
        problems.append(str(error))
    problems += _task_problems(spec) + _output_problems(spec)
    if architecture and architecture.heads % spec.rollout.tensor_parallel_size:
        problems.append(
            f"rollout.tensor_parallel_size: {spec.rollout.tensor_parallel_size} does not divide the model's "
            f"{architecture.heads} attention heads"
        )
    if problems:
        raise SpecError(problems)
    selections = ([Selection.full()] if spec.include_full else []) + [Selection.layer(k) for k in layers]
    runs = tuple(Run(selection, seed) for seed in spec.seeds for selection in selections)
    plan = Plan(spec, architecture, runs)
    if problems := _search_problems(plan) + _combine_problems(plan):
        raise SpecError(problems)
    return plan


def _search_problems(plan: Plan) -> list[str]:
    try:
        plan.rungs  # noqa: B018  computed to see whether the budget is feasible
    except ValueError as error:
        return [f"layers.search: {error}"]
    return []


def _combine_problems(plan: Plan) -> list[str]:
    """Whether the profile is there and has layers enough; picking from this sweep itself comes later."""
    spec = plan.spec
    own = sum(run.selection.kind == "layer" for run in plan.runs) // len(spec.seeds)
    if not spec.profile:
        return [
            f"combine[{i}]: {run.name} needs {run.which[1]} layer runs, the sweep has {own}"
            for i, run in enumerate(spec.combine)
            if run.which[1] > (plan.architecture.layers if run.middle else own)
        ]
    from .combine import pick, read_profile

    try:
        table = read_profile(spec.profile)
        for run in spec.combine:
            pick(run, table, plan.architecture.layers)
    except ValueError as error:
        return [str(error)]
    return []


def _architecture(spec: SweepSpec) -> Architecture:
    if isinstance(spec.model, TinyModel):
        from workers.tiny import tiny_config

        # Two special tokens beside the alphabet.
        vocabulary = len(set(spec.task.build().alphabet)) + 2
        return Architecture.from_config(tiny_config(spec.model, vocabulary))
    try:
        return Architecture.from_folder(model_folder(spec.model))
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error


def model_folder(model: PretrainedModel) -> Path:
    """A local folder as it is; of a hub name, the folder with its config.json (weights come when they are needed).

    Raises:
        ValueError: neither a folder here nor a name that the hub knows (or the hub is out of reach).
    """
    path = Path(model.path).expanduser()
    looks_local = path.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1
    if path.is_dir() or looks_local:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        offline = not _hub_resolves()  # the library itself would try for half a minute
        config = hf_hub_download(model.path, "config.json", revision=model.revision, local_files_only=offline)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"there is no folder {model.path}, and the model hub did not give its config.json "
            f"({type(error).__name__}); name an existing folder in Hugging Face format"
        ) from error
    return Path(config).parent


def _hub_resolves() -> bool:
    """Whether the hub's name can be looked up from here, or a proxy does that for us."""
    from huggingface_hub.constants import ENDPOINT

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _task_problems(spec: SweepSpec) -> list[str]:
    problems = []
    sections = [("task", spec.task, None)]
    sections += [(f"evaluation.suites[{i}]", s.task or spec.task, s) for i, s in enumerate(spec.evaluation.suites)]
    for path, config, suite in sections:
        try:
            task = config.build()
            if suite is None:
                task.prompts("train", spec.training.prompts_per_step)
            else:
                task.prompts("selection", suite.prompts)
                if suite.final_prompts:
                    task.prompts("final", suite.final_prompts)
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    return problems


def _output_problems(spec: SweepSpec) -> list[str]:
    """Whether a file can be written there, tried with one that is removed again with every folder made for it."""
    try:
        filesystem, path = fsspec.core.url_to_fs(spec.output)
    except (ValueError, ImportError) as error:
        return [f"output: {spec.output}: {error}"]
    probe = f"{path.rstrip('/')}/.layersweep-{uuid.uuid4().hex}"
    missing = []
    parent = probe.rsplit("/", 1)[0]
    try:
        while parent and not filesystem.exists(parent):
            missing.append(parent)
            parent = parent.rsplit("/", 1)[0]
        filesystem.makedirs(probe.rsplit("/", 1)[0], exist_ok=True)
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
        for folder in missing:
            if filesystem.exists(folder):
                filesystem.rmdir(folder)
    except OSError as error:
        return [
            f"output: cannot write to {spec.output} ({error.strerror or error}); name a folder that you may write to"
        ]
    return []
