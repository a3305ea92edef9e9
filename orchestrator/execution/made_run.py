"""A run that does not train: its weights are made from those of a finished run, then scored like any other's."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import ray

from layersweep.orchestrator.planning.plan import Run
from layersweep.policies.variant import RunChange, Variant
from layersweep.workers.storage.run_store import RunStore

from .clients import VariantClient
from .context import SweepContext
from .evaluation import score
from .failures import CallTimeout, NothingToMakeFrom, RunFailure, StoreUnavailable, reach_files, reach_store, reason_of
from .run_state import RunLifecycle, RunState
from .weight_sync import overlay_folder


class MadeRun:
    """A random direction as long as a finished run's change of the base; what the driver knows of a RunController.

    Args:
        run: a control that is not trained.
        maker: gives what makes its weights.
        finished: whether the run that it is made of has completed.
    """

    def __init__(self, run: Run, context: SweepContext, maker: Callable[[], VariantClient], finished: bool):
        self.planned, self.context, self.name = run, context, run.name
        self.maker, self.finished = maker, finished
        self.lifecycle = RunLifecycle(self.name, context.progress.entered)
        self.reason: str | None = None
        """Reason why it failed or was stopped."""

    @property
    def state(self) -> RunState:
        return self.lifecycle.state

    async def run(self) -> None:
        """Make the weights, write them as an overlay, score them. A failure is this run's own."""
        began, facts = time.monotonic(), {}
        try:
            if await reach_files("the run's scores", self._made_before):
                self.lifecycle.enter(RunState.COMPLETED)
                self.context.progress.already(self.name, RunState.COMPLETED)
                return
            facts = await self._make_and_score()
            ending = RunState.COMPLETED
        except asyncio.CancelledError:
            if self.context.ray_lost:
                raise
            ending, self.reason = RunState.STOPPED, "stopped; `layersweep resume` goes on from there"
        except (ray.exceptions.RayError, CallTimeout, RunFailure) as error:
            ending, self.reason = RunState.FAILED, reason_of(error)
        seconds = time.monotonic() - began
        changes = {"status": ending.status, "reason": self.reason, "seconds": seconds, **facts}
        update = self.context.actors.collector.update_run
        call = partial(update, self.planned.selection.name, self.planned.seed, **changes)
        try:
            await reach_store("the run's metadata", call)
        except StoreUnavailable as error:
            ending, self.reason = RunState.FAILED, reason_of(error)
        self.lifecycle.enter(ending)
        self.context.progress.ended(self.name, self.reason)

    def _made_before(self) -> bool:
        """Tell whether an earlier start has made it, of a run of as many steps."""
        store = RunStore(self.context.plan.folder, self.name)
        scored = {step for step, split, _ in store.scored() if split == "selection"}
        return store.metadata().get("status") == "completed" and self.context.plan.spec.training.steps in scored

    async def _make_and_score(self) -> dict[str, float]:
        """Return facts about the change of the base."""
        run, context = self.planned, self.context
        self.lifecycle.enter(RunState.STARTING)
        if not self.finished:
            raise NothingToMakeFrom(f"{run.control_of} of seed {run.seed} has not completed")
        change = RunChange(run.control_of, random=True, draw=run.seed)
        self.lifecycle.enter(RunState.FINISHING)
        folder = overlay_folder(context, self.name)
        facts = await self.maker().write_overlay(Variant(run.selection.name, (change,)), run.seed, folder)
        self.lifecycle.enter(RunState.EVALUATING)
        await score(run, context, context.plan.spec.training.steps)
        context.actors.engines.slot_of(run.name).engine.drop(run.name)
        return facts
