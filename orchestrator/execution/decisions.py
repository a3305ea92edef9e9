"""Decisions of a sweep by the scores so far: learning rates, a search's layers, layers to train together, finalists.

The manifest records those that decide how runs train: a sweep that is resumed keeps to them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from layersweep.orchestrator.planning.combined_runs import pick, read_profile
from layersweep.orchestrator.planning.plan import Run
from layersweep.orchestrator.spec.layers import LayerSearch
from layersweep.orchestrator.statistics.halving_schedule import Rung, survivors
from layersweep.orchestrator.statistics.score_arrays import gains_at
from layersweep.policies.selection import Selection
from layersweep.workers.config import LearningRates
from layersweep.workers.storage.run_store import RunStore, runs_of

from . import learning_rate_trials
from .actors import run_metadata
from .base_score import BaseScore
from .context import SweepContext
from .failures import reach_files, reach_store
from .halving_barrier import SuccessiveHalvingBarrier
from .manifest import SweepManifest


class Decisions:
    """The decisions of one sweep.

    Args:
        context: shared by all runs.
        manifest: records the decisions.
        base: what gains are counted from.
    """

    def __init__(self, context: SweepContext, manifest: SweepManifest, base: BaseScore):
        self.context, self.manifest, self.base = context, manifest, base
        self.plan, self.spec, self.collector = context.plan, context.plan.spec, context.actors.collector

    async def learning_rates(self, trials: Sequence[Run]) -> LearningRates | None:
        """Choose the learning rates by the scores of the trials that completed. None where none can be chosen."""
        say = self.context.progress.say
        if self.base.failure:
            say(f"no learning rate can be chosen: {self.base.failure}")
            return None
        scores = await self.collector.all_scores()
        try:
            rates = learning_rate_trials.learning_rates_of(self.spec.training.learning_rate, trials, scores)
        except ValueError as error:
            say(str(error))
            return None
        await reach_files("the sweep's manifest", self.manifest.record_learning_rates, rates.model_dump())
        say(f"learning rates: {rates.full:g} for full, {rates.layer:g} for layers")
        return rates

    def halving_barrier(self) -> SuccessiveHalvingBarrier | None:
        """Make the search's barrier, if the spec asks for one."""
        if not isinstance(self.spec.layers, LayerSearch):
            return None
        layers = {run.name: run.selection.layers[0] for run in self.plan.runs if run.selection.kind == "layer"}
        return SuccessiveHalvingBarrier(self.plan.rungs, layers, self.surviving_layers, self.manifest.rungs)

    async def surviving_layers(self, rung: Rung, layers: list[int]) -> list[int]:
        """Choose the layers that train on after a rung, by their scores smoothed along depth.

        Raises:
            BaseNotScored: they cannot be compared with the base.
        """
        await self.base.require()
        names = [Selection.layer(k).name for k in layers]
        scores = await self.collector.all_scores()
        gains = gains_at(scores, names, rung.step, seed_sd=self.spec.evaluation.seed_sd)
        promoted = survivors(layers, gains.mean, gains.covariance, rung.keep)
        self.context.progress.say(f"search: after step {rung.step} layers {', '.join(map(str, promoted))} go on")
        await reach_files("the sweep's manifest", self.manifest.record_rung, rung.step, promoted)
        return promoted

    async def combined_runs(self) -> list[Run]:
        """Pick the runs over several layers, from the layer runs that are finished now, or from another table."""
        if not self.spec.combine:
            return []
        context, profile = self.context, self.spec.profile
        try:
            table = await (asyncio.to_thread(read_profile, profile) if profile else self.collector.table())
        except ValueError as error:  # the profile was there when the sweep was planned
            context.failed = True
            context.progress.say(str(error))
            return []
        begun = set(await reach_files("the sweep's checkpoints", runs_of, self.plan.folder))
        runs = []
        for seed in self.spec.seeds:
            for wanted in self.spec.combine:
                try:
                    selection = pick(wanted, table, self.plan.architecture.layers)
                except ValueError as error:  # too many layer runs failed
                    context.failed = True
                    context.progress.say(str(error))
                    continue
                run = Run(selection, seed)
                if run.name in begun:  # with the layers that were best when it began
                    store = RunStore(self.plan.folder, run.name)
                    metadata = await reach_files("the run's metadata", store.metadata)
                    run = Run(replace(selection, layers=tuple(metadata.get("layers", selection.layers))), seed)
                runs.append(run)
        for run in runs:
            context.progress.say(f"{run.name}: layers {', '.join(map(str, run.selection.layers))}")
            context.progress.add(run.name)
            await reach_store("the run's metadata", partial(self.collector.add_run, run_metadata(self.plan, run)))
        return runs

    async def finalists(self) -> set[str]:
        """Choose the selections that are scored on the final split beside the base: full, the best, their controls."""
        table = await self.collector.table()
        scored = table[(table["status"] == "completed") & table["score"].notna()]
        swept = scored[scored["selection"].isin([run.selection.name for run in self.plan.runs])]
        best = swept.sort_values("score", ascending=False, kind="stable").groupby("kind")
        combined = scored.loc[(scored["kind"] == "layers") & ~scored["selection"].isin(swept["selection"]), "selection"]
        chosen = {"full", *best.head(self.spec.evaluation.finalists)["selection"], *combined}
        return chosen | {run.selection.name for run in self.plan.controls if run.control_of in chosen}
