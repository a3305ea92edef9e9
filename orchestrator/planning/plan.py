"""The plan of a sweep: its runs, their sizes and counts. checks.py makes it from a spec."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from layersweep.orchestrator.spec.controls import Control
from layersweep.orchestrator.spec.layers import LayerSearch, middle_layers
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection, run_name
from layersweep.rollout.data.prompt_data import DataReport
from layersweep.rollout.data.window import OverlongPrompts
from layersweep.workers.config import LearningRates, LearningRateTuning
from layersweep.workers.startup.model_source import ModelSource

from .controls import controlled_selections
from .selections import count_served, count_trained

if TYPE_CHECKING:  # scipy, which most plans do without
    from layersweep.orchestrator.statistics.halving_schedule import Rung
    from layersweep.workers.storage.completions import CompletionStore


@dataclass(frozen=True)
class Run:
    """One selection trained with one seed."""

    selection: Selection
    seed: int
    learning_rate: float | None = None
    """Learning rate of a trial; None is that of the run's kind."""
    control: Control | None = None
    """Difference from the run that it is a control of; None for the sweep's own runs."""
    control_of: str | None = None
    """Name of the selection that it is a control of."""

    @property
    def trial(self) -> bool:
        """Whether it only helps to find the learning rates."""
        return self.learning_rate is not None

    @property
    def name(self) -> str:
        return run_name(self.selection.name, self.seed)

    def peak_rate(self, rates: LearningRates | None) -> float:
        """Return its peak learning rate.

        Args:
            rates: of the sweep; None while trials look for them.
        """
        if self.trial:
            return self.learning_rate
        return rates.of(self.selection.trains_all) * (self.control.rate_factor if self.control else 1.0)


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep will do."""

    spec: SweepSpec
    architecture: Architecture
    runs: tuple[Run, ...]
    """Every run that trains; the base is evaluated besides."""
    shape_source: str = ""
    """Origin of the architecture, if not the model's own config.json."""
    unchecked: tuple[str, ...] = ()
    """Names of what only a run fetches, and therefore only a run checks."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of prompts and their answers by section of the spec, where a section reads data; of the prompts' tokens by
    section and split, where the tokenizer is at hand."""
    code: dict[str, str] = field(default_factory=dict)
    """Source text of each file of the user's own code."""
    source: ModelSource | None = None
    """Source that all actors load a pretrained base from: folder or hub name, commit, trust, template. None for the
    tiny model."""
    data: dict[str, DataReport] = field(default_factory=dict)
    """Counts of what became of a data set's rows, by section of the spec."""
    first_rollouts: "CompletionStore | None" = None
    """Store of what it shares of the base's first batches with other sweeps of one spec with factors."""
    overlong: tuple[OverlongPrompts, ...] = ()
    """Prompts too long for the model that were dropped or replaced, by section and split, where the tokenizer is at
    hand."""

    prompt_tokens: Mapping[str, float] = field(default_factory=dict)
    """Mean tokens of the prompts of `task` and of `evaluation.suites[0]` and so on, where the tokenizer is at hand."""

    @property
    def folder(self) -> str:
        return self.spec.folder

    @property
    def window(self) -> int:
        """Tokens of a prompt and its response at most; CPUs take a prompt in one pass, which bounds it too."""
        rollout, limit = self.spec.rollout, self.architecture.max_positions
        if not self.spec.resources.on_gpu():
            limit = min(limit, rollout.max_num_batched_tokens)
        return rollout.max_model_len or limit

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

    @property
    def controls(self) -> tuple[Run, ...]:
        """Runs that the sweep's own are held against, once these are finished."""
        selections = list(dict.fromkeys(run.selection for run in self.runs))
        return tuple(
            Run(selection, seed, control=control, control_of=of)
            for seed in self.spec.seeds
            for selection, of, control in controlled_selections(self.spec, selections)
        )

    @property
    def trained(self) -> tuple[Run, ...]:
        """Every run that trains at some time."""
        controls = (run for run in self.controls if run.control.trained)
        return (*self.runs, *self.trials, *self.combined, *controls)

    def steps(self, run: Run) -> int:
        """Training steps of a run."""
        return self.spec.training.learning_rate.steps if run.trial else self.spec.training.steps

    @property
    def element_bytes(self) -> int:
        return 4 if self.spec.training.dtype == "float32" else 2

    def trainable_parameters(self, selection: Selection) -> int:
        return count_trained(selection, self.architecture)

    def push_bytes(self, selection: Selection) -> int:
        """Return the bytes that travel from trainer to engine after each step."""
        return count_served(selection, self.architecture) * self.element_bytes

    def trainer_bytes(self, selection: Selection) -> int:
        """Return a trainer's own memory beside the shared trunk and activations: weights, gradients in float32, Adam's
        two moments in 8 or 32 bits, and with bfloat16 the float32 master weights; with adapters also the merged
        weights."""
        moments = 2 if self.spec.training.optimizer == "adamw_8bit" else 8
        per_parameter = self.element_bytes + 4 + moments + (4 if self.element_bytes == 2 else 0)
        merged = self.push_bytes(selection) if selection.lora else 0
        return self.trainable_parameters(selection) * per_parameter + merged

    @property
    def rungs(self) -> "list[Rung]":
        """Rungs of the spec's search; empty without one."""
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
    def final_evaluations(self) -> frozenset[int]:
        """Completed steps of evaluations that the contribution table is made of: the base's, the rungs of a search, and
        the end."""
        return frozenset({0, self.spec.training.steps, *(rung.step for rung in self.rungs)})

    @property
    def trunk_bytes(self) -> int:
        return self.architecture.parameters * self.element_bytes

    def expected_steps(self, run: Run) -> float:
        """Expected training steps of a run. For layers in a search this is the mean over all of them, since each may be
        pruned."""
        if run.selection.kind != "layer" or run.trial or run.control or not self.rungs:
            return self.steps(run)
        from layersweep.orchestrator.statistics.halving_schedule import cost

        return cost(self.rungs) / self.rungs[0].layers

    @property
    def training_responses(self) -> int:
        """Training responses over all runs and trials; the first step's batch is shared by those of a seed."""
        training, runs = self.spec.training, self.trained
        steps = round(sum(self.expected_steps(run) for run in runs))
        return training.prompts_per_step * training.group_size * (steps - len(runs) + len(self.spec.seeds))

    @property
    def evaluation_responses_by_suite(self) -> list[int]:
        """Evaluation responses by suite, over base, trials, runs and all times that they are scored; with the final
        split."""
        evaluation, seeds, rungs = self.spec.evaluation, len(self.spec.seeds), self.rungs
        layers = sum(run.selection.kind == "layer" for run in self.runs)
        others = len(self.runs) - layers + len(self.combined)
        scored = [(1 + len(self.trials) + len(self.controls), 1)]
        """Runs that are scored at some time, and the times the usual samples that they get."""
        for step in (*self.evaluation_steps, self.spec.training.steps):
            rung = next((rung for rung in rungs if step <= rung.step), None)
            searched = rung is not None and step == rung.step
            scored += [(others, 1), (seeds * rung.layers if rung else layers, rung.samples if searched else 1)]
        swept = Counter(run.selection.kind for run in self.runs if run.selection.kind not in ("full", "layer"))
        best = sum(min(evaluation.finalists, runs // seeds) for runs in (scored[-1][0], *swept.values()))
        finalists = 1 + seeds * (self.spec.include_full + best) + len(self.combined) + len(self.controls)
        return [
            s.prompts * sum(runs * (s.samples * factor + evaluation.greedy) for runs, factor in scored)
            + 4 * s.final_prompts * s.samples * finalists
            for s in evaluation.suites
        ]

    @property
    def evaluation_responses(self) -> int:
        return sum(self.evaluation_responses_by_suite)

    @property
    def exhaustive(self) -> "Plan":
        """The plan of the same sweep with every layer trained to the end."""
        return replace(self, spec=self.spec.model_copy(update={"layers": "all"}))
