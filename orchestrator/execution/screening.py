"""Screening: each selection of a sweep is trained for a few optimizer steps on one batch of the base's responses, which
is the first of every run, and scored. It has no rollouts of its own.

    <sweep>/screening/    laid out as a sweep: run stores and tables

What is scored there is scored once: a screening that was interrupted goes on with what is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.layers import resolve_layers
from layersweep.orchestrator.statistics.variants import seed_gains
from layersweep.policies.selection import Selection, run_name
from layersweep.policies.variant import Variant
from layersweep.rollout.config import SuiteConfig
from layersweep.workers.config import LearningRates
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.training.setup import TrainingSetup

from .clients import MadeVariant, ProberClient, Reference
from .evaluation import score
from .manifest import SweepManifest
from .sweep_folder import clear
from .variant_scoring import VariantScorer, within

FOLDER = "screening"


@dataclass(frozen=True)
class Screening:
    """Extent of a screening."""

    steps: int
    """Optimizer steps of every selection, all on the whole batch."""
    prompts: int | None = None
    """Prompts of every suite at most; None is the sweep's own number."""

    def plan(self, sweep: Plan, manifest: SweepManifest | None) -> Plan:
        """Return the plan of the screening: a training step with so many epochs, at the peak learning rate.

        Args:
            manifest: of the sweep, where it has begun.

        Raises:
            SpecError: the learning rate is to be found by trials that are not done.
        """
        spec = sweep.spec
        rates = spec.training.learning_rate
        if not isinstance(rates, LearningRates):
            if manifest is None or manifest.rates is None:
                raise SpecError([
                    "training.learning_rate: a screening needs it, and it is found by trials when the sweep runs; "
                    "give one, such as training.learning_rate=1e-5"
                ])  # fmt: skip
            rates = LearningRates(**manifest.rates)
        training = spec.training.model_copy(
            update={
                "steps": self.steps, "epochs": self.steps, "minibatches": 1, "warmup_steps": 0, "schedule": "constant",
                "learning_rate": rates,
            }
        )  # fmt: skip
        suites = tuple(self._shortened(suite) for suite in spec.evaluation.suites if suite.counts)
        evaluation = spec.evaluation.model_copy(update={"suites": suites, "greedy": False, "every": 0})
        layers = resolve_layers(spec.layers, sweep.architecture.layers) or None  # all of a search
        changes = {"training": training, "evaluation": evaluation, "layers": layers, "combine": (), "controls": ()}
        return within(replace(sweep, spec=spec.model_copy(update=changes)), FOLDER)

    def _shortened(self, suite: SuiteConfig) -> SuiteConfig:
        prompts = suite.prompts if self.prompts is None else min(self.prompts, suite.prompts)
        return suite.model_copy(update={"prompts": prompts, "final_prompts": 0})


def screened_selections(plan: Plan) -> list[Selection]:
    """Return what a sweep trains beside the whole model."""
    return list(dict.fromkeys(run.selection for run in plan.runs if not run.selection.trains_all))


def begin(plan: Plan) -> str | None:
    """Keep what an earlier screening like this one has done; discard one of another spec, and say why."""
    if manifest := SweepManifest.load(plan.folder):
        try:
            manifest.update_spec(plan)
            return None
        except SpecError as error:
            clear(plan.folder)
            said = f"an earlier screening was of another spec and is discarded ({error.problems[0]})"
    else:
        said = None
    SweepManifest.begin(plan)
    return said


def cost_text(sweep: Plan, plan: Plan) -> str:
    """Say what a screening will do, and what the sweep would."""
    count, seeds, steps = len(screened_selections(plan)), len(plan.spec.seeds), plan.spec.training.epochs
    each = sum(suite.prompts * suite.samples for suite in plan.spec.evaluation.suites)
    whole = sweep.training_responses + sweep.evaluation_responses
    return (
        f"screening {count} selections with {seeds} seed{'s' * (seeds > 1)}: {steps} optimizer "
        f"step{'s' * (steps > 1)} each on the first rollout batch, then {each * (count * seeds + 1):,} responses to "
        f"evaluate (the sweep generates {whole:,})"
    )


class ScreeningWeights:
    """Maker of the weights of short trainings, as variants named after their selections.

    Args:
        plan: of the screening.
        prober: trains.
    """

    def __init__(self, plan: Plan, prober: ProberClient):
        self.plan, self.prober = plan, prober
        self.made: dict[tuple[str, int], MadeVariant] = {}
        """Weights of a seed that are to be scored, by selection and seed."""
        self.steps: dict[tuple[str, int], int] = {}
        """Steps that were made, now or by an earlier start."""

    async def train(self, batch: Reference, seed: int) -> int:
        """Train what is not scored yet with a seed, one selection after the other; returns their number."""
        spec, self.made = self.plan.spec, {}
        for selection in screened_selections(self.plan):
            run = selection.name, seed
            facts = RunStore(self.plan.folder, run_name(*run)).metadata()
            if "screened_steps" not in facts:  # which is written once it is scored
                precision = spec.rollout.precision(spec.training.dtype)
                setup = TrainingSetup(spec.algorithm, spec.training, spec.deepspeed, precision)
                made = self.prober.train(batch, selection, setup)
                self.made[run], facts = made, await made.facts
            self.steps[run] = facts["screened_steps"]
        return len(self.made)

    def make(self, variant: Variant, seed: int) -> MadeVariant:
        """Return the weights of a selection that is trained."""
        return self.made[variant.name, seed]


async def screen(scorer: VariantScorer, weights: ScreeningWeights, batches: Mapping[int, Reference]) -> pd.DataFrame:
    """Train and score all selections, those of a seed in one mixed evaluation.

    Args:
        scorer: over the screening's plan, with `weights` as its maker.
        batches: the base's first rollout batch of each seed.

    Returns:
        The columns of probe.parquet that a screening gives, by selection and seed; none where a batch has no signal.
    """
    plan, say = weights.plan, scorer.context.progress.say
    names = [selection.name for selection in screened_selections(plan)]
    await score(Run(Selection.base(), plan.spec.seeds[0]), scorer.context, 0)
    for seed, batch in batches.items():
        async with scorer.context.actors.engines.phases.hold("training"):
            trained = await weights.train(batch, seed)
        say(f"trained {trained} of {len(names)} selections on the first batch of seed {seed}"
            + ("; the others are scored already" if trained < len(names) else ""))  # fmt: skip
        await scorer.score([Variant(name, ()) for name in names], [seed])
    with_signal = {seed: [name for name in names if weights.steps[name, seed]] for seed in batches}
    gains = seed_gains(await scorer.context.actors.collector.all_scores(), with_signal, plan.spec.training.steps)
    return gains.rename(columns=lambda name: f"screened_{name}" if name not in ("selection", "seed") else name).assign(
        screened_steps=plan.spec.training.epochs
    )
