"""Scoring of variants, weights made from those of finished runs, with the sweep's own engines, prompts and seeds.

    <sweep>/variants/    laid out as a sweep: run stores and tables, with base and finished runs beside the variants

What is scored there is scored once: a command that was interrupted goes on with what is missing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import pandas as pd
from ray.exceptions import RayError

from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.statistics.halving_schedule import FINAL_SAMPLES
from layersweep.policies.selection import Selection
from layersweep.policies.variant import Variant
from layersweep.workers.storage.run_store import RunStore, runs_of
from layersweep.workers.trackers.config import TrackingConfig

from .actors import SweepActors, run_metadata
from .clients import MadeVariant, Reference, VariantClient
from .context import SweepContext
from .evaluation import score
from .failures import AdaptiveTimeouts, CallTimeout, RayLost, RunFailure, first_error, reach_store, reason_of
from .health import HealthMonitor
from .manifest import SweepManifest
from .progress import Progress
from .ray_nodes import wait_for_room
from .ray_session import connected
from .sweep_lock import hold_lock

T = TypeVar("T")
FOLDER = "variants"
AT_ONCE = 4
"""Variants that an engine serves at a time: their weights are in its memory."""
REPORT_SECONDS = 20.0
"""Seconds between two lines of progress, at least."""


FAILURES = (RayError, RayLost, CallTimeout, RunFailure, OSError)
"""Errors by which a variant could not be scored, whatever was tried."""


class VariantsFailed(RuntimeError):
    """Some variants could not be scored; what is scored is kept."""


class WeightMaker(Protocol):
    """Maker of variants' weights."""

    def make(self, variant: Variant, seed: int) -> MadeVariant:
        """Begin to make a variant's weights of a seed."""


@dataclass
class VariantScorer:
    """Scores variants, a few at a time."""

    context: SweepContext
    maker: WeightMaker
    slots: asyncio.Semaphore
    done: set[tuple[str, int, str]] = field(default_factory=set)
    """Variants that were scored, by name, seed and split."""
    asked: int = 0
    """Variants that were to be scored so far."""
    reported: float = 0.0
    """Time of the last line of progress, by the loop's clock."""

    async def score(self, variants: Sequence[Variant], seeds: Sequence[int], split: str = "selection") -> pd.DataFrame:
        """Score variants that are not scored yet; return the content of scores.parquet, all runs and variants in it."""
        missing = [
            (variant, seed) for variant in variants for seed in seeds if (variant.name, seed, split) not in self.done
        ]
        self.asked += len(missing)
        if missing:
            self._report(f"{len(missing)} variants to score on the {split} split")
        async with asyncio.TaskGroup() as tasks:
            for variant, seed in missing:
                tasks.create_task(self._score(variant, seed, split))
        return await self.context.actors.collector.all_scores()

    async def _score(self, variant: Variant, seed: int, split: str) -> None:
        run, context = Run(Selection(variant.name, "layers"), seed), self.context
        collector, step = context.actors.collector, context.plan.spec.training.steps
        source = _VariantWeights(self.maker, variant, seed)
        async with self.slots:
            await reach_store("the variant's metadata", partial(collector.add_run, run_metadata(context.plan, run)))
            factor = FINAL_SAMPLES if split == "final" else 1
            await score(run, context, step, split, factor, source)
            context.actors.engines.slot_of(run.name).engine.drop(run.name)
            facts = await source.facts if source.facts else {}
            update = partial(collector.update_run, variant.name, seed, status="completed", **facts)
            await reach_store("the variant's metadata", update)
        self.done.add((variant.name, seed, split))
        late = asyncio.get_running_loop().time() - self.reported >= REPORT_SECONDS
        if late or len(self.done) == self.asked:
            self._report(f"{len(self.done)} of {self.asked} variants scored")

    def _report(self, said: str) -> None:
        self.context.progress.say(said)
        self.reported = asyncio.get_running_loop().time()


@dataclass
class _VariantWeights:
    """Source of a variant's weights: made when an engine needs them."""

    maker: WeightMaker
    variant: Variant
    seed: int
    facts: Awaitable[dict[str, float]] | None = None

    def weights(self) -> Reference:
        made = self.maker.make(self.variant, self.seed)
        self.facts = made.facts
        return made.weights


def score_variants(spec: SweepSpec, work: Callable[[VariantScorer, Plan], Awaitable[T]], address: str | None) -> T:
    """Start engines for a finished sweep, and do some work with a scorer of variants.

    Args:
        spec: of the sweep, as it stands in its folder.
        address: of a running Ray cluster; None starts one here.

    Raises:
        SpecError: what the spec refers to is not there or has changed since the sweep began, the cluster has no room,
            or a driver has the sweep.
        VariantsFailed: a variant could not be scored.
    """
    plan = make_plan(spec)
    if manifest := SweepManifest.load(plan.folder):
        manifest.asks_no_more_than_done(plan)

    async def scored(actor_environment: dict[str, Any]) -> T:
        inner = within(plan, FOLDER)
        await asyncio.to_thread(copy_scores, plan.folder, inner.folder)

        async def make(actors: SweepActors) -> VariantClient:
            return actors.create_variant_maker(plan.folder)

        async with variant_scorer(inner, actor_environment, make) as scorer:
            return await work(scorer, plan)

    with connected(address, f"layersweep-{spec.name}", spec.resources.on_gpu()) as actor_environment:
        wait_for_room(plan)
        with hold_lock(plan.folder):
            try:
                return asyncio.run(scored(actor_environment))
            except FAILURES as error:
                raise VariantsFailed(reason_of(error)) from error


def within(plan: Plan, folder: str) -> Plan:
    """Return a sweep's plan for a folder inside its own, where trackers see nothing of it."""
    return replace(
        plan, spec=plan.spec.model_copy(update={"output": plan.folder, "name": folder, "tracking": TrackingConfig()})
    )


@asynccontextmanager
async def variant_scorer(
    plan: Plan, actor_environment: dict[str, Any], create_maker: Callable[[SweepActors], Awaitable[WeightMaker]]
) -> AsyncIterator[VariantScorer]:
    """Start the actors of a plan, watch over them, and yield a scorer of variants.

    Args:
        plan: its folder gets run stores and tables.
        create_maker: makes, or finds, what makes the variants' weights.

    Raises:
        BaseException: the first failure, whatever task group it is of; one of FAILURES where an actor failed.
    """
    progress, patience = Progress([], 0), plan.spec.recovery.patience
    try:
        actors = await SweepActors.create(plan, actor_environment, progress.say, trains=False)
        monitor = HealthMonitor(actors.engines.slots, actors.restartable, patience, progress.say)
        maker = await create_maker(actors)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(monitor.run())
            context = SweepContext(plan, actors, progress, tasks, AdaptiveTimeouts(patience), 1, lambda digest: None)
            yield VariantScorer(context, maker, asyncio.Semaphore(AT_ONCE * plan.spec.resources.engines))
            watch.cancel()
        await actors.collector.close()
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        progress.close()


def copy_scores(sweep: str, target: str) -> None:
    """Copy scores and metadata of the sweep's own runs beside those of its variants."""
    for run in runs_of(sweep):
        source, copy = RunStore(sweep, run), RunStore(target, run)
        copy.write_metadata(source.metadata())
        done = copy.scored()
        for key, frame in source.scores():
            if key not in done:
                copy.write_scores(*key, frame)
