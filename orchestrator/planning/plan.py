"""From a spec to what will be run: models resolved, layers numbered, runs listed, sizes computed. Starts nothing."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.layers import CombinedRun, LayerSearch, middle_layers, resolve_layers
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection, run_name
from layersweep.rollout.config import TaskConfig
from layersweep.rollout.types import Split
from layersweep.workers.config import LearningRateTuning
from layersweep.workers.storage.files import is_object_store, located

from .model_architecture import shape_of

if TYPE_CHECKING:  # scipy, which most plans do without
    from layersweep.orchestrator.statistics.halving_schedule import Rung


@dataclass(frozen=True)
class Run:
    """One selection trained with one seed."""

    selection: Selection
    seed: int
    learning_rate: float | None = None
    """Of a trial; None is that of the run's kind."""

    @property
    def trial(self) -> bool:
        """Whether it only helps to find the learning rates."""
        return self.learning_rate is not None

    @property
    def name(self) -> str:
        return run_name(self.selection.name, self.seed)


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    spec: SweepSpec
    architecture: Architecture
    runs: tuple[Run, ...]
    """Every run that trains; the base is evaluated besides."""
    shape_source: str = ""
    """Where the architecture comes from, if not from the model's own config.json."""
    unchecked: tuple[str, ...] = ()
    """What only a run fetches, and only a run checks therefore."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of the prompts and their answers, by section of the spec; of sections that read data."""

    @property
    def folder(self) -> str:
        return self.spec.folder

    @property
    def trials(self) -> tuple[Run, ...]:
        """Runs that find the learning rates, with the first seed; none where the spec names the rates."""
        tuning = self.spec.training.learning_rate
        if not isinstance(tuning, LearningRateTuning):
            return ()
        tried = [Selection.full()]
        if tuning.reuse == "per_kind":
            tried.append(Selection.layer(*middle_layers(1, self.architecture.layers)))
        return tuple(
            Run(replace(selection, name=f"{selection.name}@lr-{rate:g}"), self.spec.seeds[0], rate)
            for selection in tried
            for rate in sorted(tuning.tune)
        )

    @property
    def combined(self) -> tuple[Run, ...]:
        """Runs over several layers, trained last. Which layers is known then; here they are those in the middle."""
        count = self.architecture.layers
        return tuple(
            Run(wanted.of(middle_layers(wanted.which[1], count)), seed)
            for seed in self.spec.seeds
            for wanted in self.spec.combine
        )

    def steps(self, run: Run) -> int:
        """That a run trains."""
        return self.spec.training.learning_rate.steps if run.trial else self.spec.training.steps

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
        from layersweep.orchestrator.statistics.halving_schedule import HalvingSchedule

        search = self.spec.layers.search
        layers = sum(run.selection.kind == "layer" for run in self.runs) // len(self.spec.seeds)
        return HalvingSchedule(search.budget, search.goal).rungs(layers, self.spec.training.steps)

    @property
    def evaluation_steps(self) -> set[int]:
        """Completed steps after which every run is scored, the end apart."""
        every, steps = self.spec.evaluation.every, self.spec.training.steps
        return set(range(every, steps, every) if every else ()) | {rung.step for rung in self.rungs[:-1]}

    @property
    def trunk_bytes(self) -> int:
        return self.architecture.parameters * self.element_bytes

    def expected_steps(self, run: Run) -> float:
        """That a run trains; of a search's layers, which may stop at any rung, the mean over all of them."""
        if run.selection.kind != "layer" or run.trial or not self.rungs:
            return self.steps(run)
        from layersweep.orchestrator.statistics.halving_schedule import cost

        return cost(self.rungs) / self.rungs[0].layers

    @property
    def training_responses(self) -> int:
        """Over all runs and trials; the first step's batch is shared by those of a seed."""
        training, runs = self.spec.training, (*self.runs, *self.trials, *self.combined)
        steps = round(sum(self.expected_steps(run) for run in runs))
        return training.prompts_per_step * training.group_size * (steps - len(runs) + len(self.spec.seeds))

    @property
    def evaluation_responses_by_suite(self) -> list[int]:
        """Over base, trials, runs and all times that they are scored, the final split included."""
        evaluation, seeds, rungs = self.spec.evaluation, len(self.spec.seeds), self.rungs
        layers = sum(run.selection.kind == "layer" for run in self.runs)
        others = len(self.runs) - layers + len(self.combined)
        scored = [(1 + len(self.trials), 1)]
        """Runs that are scored at some time, and the times the usual samples that they get."""
        for step in (*self.evaluation_steps, self.spec.training.steps):
            rung = next((rung for rung in rungs if step <= rung.step), None)
            searched = rung is not None and step == rung.step
            scored += [(others, 1), (seeds * rung.layers if rung else layers, rung.samples if searched else 1)]
        best = min(evaluation.finalists, scored[-1][0] // seeds)
        finalists = 1 + seeds * (self.spec.include_full + best) + len(self.combined)
        return [
            s.prompts * sum(runs * (s.samples * factor + evaluation.greedy) for runs, factor in scored)
            + 4 * s.final_prompts * s.samples * finalists
            for s in evaluation.suites
        ]

    @property
    def evaluation_responses(self) -> int:
        return sum(self.evaluation_responses_by_suite)


def make_plan(spec: SweepSpec, fetch: bool = True) -> Plan:
    """Resolve everything that the spec leaves to the model, and check what it refers to.

    Args:
        spec: of the sweep.
        fetch: load prompts from wherever they are, as a run must. Without it, what is not on this machine is left
            `unchecked`, and the study's models need no hub.

    Raises:
        SpecError: layers that the model lacks, a model or data that is not there, prompts that the task cannot
            give, an output that cannot be written.
    """
    problems: list[str] = []
    architecture = None
    try:
        architecture, source = shape_of(spec, from_table=not fetch)
        layers = resolve_layers(spec.layers, architecture.layers)
    except ValueError as error:
        problems.append(str(error))
    unchecked: list[str] = []
    fingerprints: dict[str, str] = {}
    for path, config, counts in _prompt_sources(spec):
        if not fetch and (needed := getattr(config, "fetched", None)):
            unchecked.append(needed)
        else:
            try:
                fingerprints |= _check_prompts(path, config, counts)
            except (ValueError, OSError) as error:
                problems.append(f"{path}: {error}")
    problems += _output_problems(spec)
    if architecture and architecture.heads % spec.rollout.tensor_parallel_size:
        problems.append(
            f"rollout.tensor_parallel_size: {spec.rollout.tensor_parallel_size} does not divide the model's "
            f"{architecture.heads} attention heads"
        )
    if problems:
        raise SpecError(problems)
    selections = ([Selection.full()] if spec.include_full else []) + [Selection.layer(k) for k in layers]
    runs = tuple(Run(selection, seed) for seed in spec.seeds for selection in selections)
    plan = Plan(spec, architecture, runs, source, tuple(dict.fromkeys(unchecked)), fingerprints)
    if problems := _search_problems(plan) or _combine_problems(plan):
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
    if not spec.profile:
        return [problem for i, run in enumerate(spec.combine) for problem in _pick_problems(plan, run, f"combine[{i}]")]
    from .combined_runs import pick, read_profile

    try:
        table = read_profile(spec.profile)
        for run in spec.combine:
            pick(run, table, plan.architecture.layers)
    except ValueError as error:
        return [str(error)]
    return []


def _pick_problems(plan: Plan, run: CombinedRun, where: str) -> list[str]:
    """Whether the sweep itself will have the layers to pick from."""
    kind, wanted = run.which
    if kind == "middle":
        there = plan.architecture.layers
    elif plan.rungs:
        if kind == "worst":
            return [f"{where}: a search stops the worst layers before it knows them; name another sweep as `profile`"]
        there = plan.rungs[-1].layers
    else:
        there = sum(run.selection.kind == "layer" for run in plan.runs) // len(plan.spec.seeds)
    if wanted <= there:
        return []
    which = "trains to the end" if kind != "middle" and plan.rungs else "has"
    return [f"{where}: {run.name} needs {wanted} layer runs, the sweep {which} {there}"]


def _prompt_sources(spec: SweepSpec) -> Iterator[tuple[str, TaskConfig, dict[Split, int]]]:
    """Each section that gives prompts, and how many of which split are needed of it."""
    yield "task", spec.task, {"train": spec.training.prompts_per_step}
    for i, suite in enumerate(spec.evaluation.suites):
        counts = {"selection": suite.prompts, "final": suite.final_prompts}
        yield f"evaluation.suites[{i}]", suite.task or spec.task, counts


def _check_prompts(path: str, config: TaskConfig, counts: dict[Split, int]) -> dict[str, str]:
    """Whether the task gives as many prompts as asked for; the fingerprint of its data, if it reads any.

    Raises:
        ValueError, OSError: it does not.
    """
    task = config.build()
    for split, count in counts.items():
        if count:
            task.prompts(split, count)
    return {path: task.data.fingerprint()} if hasattr(task, "data") else {}


def _output_problems(spec: SweepSpec) -> list[str]:
    """Whether a file can be written there, tried with one that is removed again with every folder made for it."""
    try:
        filesystem, path = located(spec.output)
    except (ValueError, ImportError) as error:
        return [f"output: {spec.output}: {error}"]
    probe = f"{path.rstrip('/')}/.layersweep-{uuid.uuid4().hex}"
    missing = []
    parent = probe.rsplit("/", 1)[0]
    try:
        if not is_object_store(filesystem):  # nobody wants a bucket made for a name that is misspelt
            while parent and not filesystem.exists(parent):
                missing.append(parent)
                parent = parent.rsplit("/", 1)[0]
            filesystem.makedirs(probe.rsplit("/", 1)[0], exist_ok=True)
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
        for folder in missing:
            if filesystem.exists(folder):
                filesystem.rmdir(folder)
    except Exception as error:  # object stores raise what they please, OSError the least of it
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        return [f"output: cannot write to {spec.output} ({reason}); name a folder or bucket that you may write to"]
    return []
