"""Evaluation: one run's responses to the suites, and the scoring of base and finalists."""

from functools import partial

import ray

from layersweep.orchestrator.planning.plan import Run
from layersweep.rollout.config import SuiteConfig
from layersweep.workers.storage.run_store import RunStore

from .clients import Produced
from .context import SweepContext
from .engine_slot import EngineSlot
from .failures import CallTimeout, RunFailure, reach_files, reach_store, reason_of
from .run_recovery import RunRecovery
from .weight_sync import WeightSource, WeightSync


class Evaluator:
    """Scores one run's weights.

    Args:
        slot: the run's engine slot.
        weights: what its engine has of the run.
    """

    def __init__(self, run: Run, context: SweepContext, slot: EngineSlot, weights: WeightSync):
        self.run, self.context, self.slot, self.weights = run, context, slot, weights
        self.store = RunStore(context.plan.folder, run.name)

    async def evaluate(
        self, step: int, source: WeightSource | None = None, split: str = "selection", factor: int = 1
    ) -> None:
        """Score all suites that are not scored yet, with `factor` times their samples.

        Args:
            step: version of the weights, 0 for the base.
            source: as for WeightSync.sync.
        """
        done = await reach_files("the run's scores", self.store.scored)
        if not (missing := self._missing(step, split, done)):
            return
        await self.weights.sync(step, source)
        async with self.context.actors.engines.phases.hold("generation"):
            for scored in self._evaluations(step, split, factor, missing):
                # Ray would keep back every later call of the collector until this one's columns are there.
                self.context.tell(await scored.done)
                record = partial(
                    self.context.actors.collector.record_scores, self.run.selection.name, self.run.seed, step,
                    scored.value,
                )  # fmt: skip
                await reach_store("the run's scores", record)

    def _missing(self, step: int, split: str, done: set[tuple[int, str, str]]) -> list[tuple[SuiteConfig, bool]]:
        """List the suites that are not scored yet, and whether greedily."""
        config = self.context.plan.spec.evaluation
        suites = [suite for suite in config.suites if split == "selection" or suite.final_prompts]
        return [
            (suite, greedy)
            for suite in suites
            for greedy in ((False, True) if config.greedy else (False,))
            if (step, split, f"{suite.name}@greedy" if greedy else suite.name) not in done
        ]

    def _evaluations(
        self, step: int, split: str, factor: int, missing: list[tuple[SuiteConfig, bool]]
    ) -> list[Produced]:
        """Ask for all of them at the same time."""
        rollout_worker = self.context.actors.rollout_worker
        return [
            rollout_worker.evaluate(
                self.slot.engine, self.run.name if step else None, step, suite.name, split, self.run.seed,
                suite.samples * factor, greedy, self.run.name,
            )
            for suite, greedy in missing
        ]  # fmt: skip


async def score(
    run: Run, context: SweepContext, step: int, split: str = "selection", factor: int = 1,
    source: WeightSource | None = None,
) -> None:  # fmt: skip
    """Score a run without trainers: the base, at step 0, a run that has ended, from its overlay, or a variant.

    Args:
        source: of a variant's weights.

    Raises:
        ray.exceptions.RayError, CallTimeout: as often as `recovery.retries` allows.
        StoreUnavailable: its scores could not be read or written.
    """
    slot = context.actors.engines.slot_of(run.name)
    evaluator = Evaluator(run, context, slot, WeightSync(run.name, context, slot))
    recovery = RunRecovery(run, context, slot)
    while True:
        try:
            return await evaluator.evaluate(step, source, split, factor)
        except (ray.exceptions.RayError, CallTimeout) as error:
            await recovery.recover(error, step)


async def score_or_say(
    run: Run, context: SweepContext, step: int, split: str = "selection", factor: int = 1
) -> str | None:
    """Score a run without trainers. Return and say the reason if it cannot be, which leaves the others alone."""
    try:
        await score(run, context, step, split, factor)
    except (ray.exceptions.RayError, CallTimeout, RunFailure) as error:
        context.failed, reason = True, reason_of(error)
        context.progress.say(f"{run.name} could not be scored: {reason}")
        return reason
    return None
