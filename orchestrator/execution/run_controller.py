"""The controller of one run: generate, update, sync, until its end."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray

from layersweep.orchestrator.planning.plan import Run
from layersweep.workers.storage.run_store import RunStore

from .clients import Produced, Reference, TrainerGroup
from .context import SweepContext
from .evaluation import Evaluator
from .failures import CallTimeout, RunFailure, StoreUnavailable, reach_files, reach_store, reason_of
from .run_checkpointer import RunCheckpointer
from .run_recovery import RunRecovery
from .run_state import RunLifecycle, RunState
from .step_checks import StepChecks
from .weight_sync import WeightSync, overlay_folder

T = TypeVar("T")


@dataclass
class UnsyncedStep:
    """A step whose update is done and whose weights are on the way to the engine."""

    row: dict[str, Any]
    """Row of steps.parquet."""
    began: float
    updated: float
    """Times at which it began and its update was done, in seconds of the monotonic clock."""
    weights: Reference | None
    """Weights for one attempt to push; afterwards the trainers are asked."""


class RunController:
    """Takes one run from its newest checkpoint to its end.

    `_train` is the whole of it. After a failure it is called again, and goes on with what is not done: all that it
    needs to know for that is in the attributes.

    Args:
        run: the run as planned.
        context: shared by all runs.
    """

    def __init__(self, run: Run, context: SweepContext):
        self.planned, self.context, self.name = run, context, run.name
        spec, actors = context.plan.spec, context.actors
        self.lifecycle = RunLifecycle(self.name, context.progress.entered)
        self.reason: str | None = None
        """Reason why it failed or was stopped."""
        self.step = 0
        """Training steps done; also the version of the weights."""
        self.ahead: tuple[int, Produced] | None = None
        """Step whose experience is being generated while the one before it is trained on, and that experience."""
        self.unsynced: UnsyncedStep | None = None
        self.finished_step: int | None = None
        """Step whose overlay and checkpoint are written."""
        self.trainers: TrainerGroup | None = None
        self.run_slot = context.run_slot()
        self.engine_slot = actors.engines.slot_of(self.name)
        self.seconds, self.began = 0.0, None
        """Seconds at earlier starts of the driver; when this one began."""
        self.weights = WeightSync(self.name, context, self.engine_slot)
        self.evaluator = Evaluator(run, context, self.engine_slot, self.weights)
        self.checkpoints = RunCheckpointer(run, context, self._elapsed)
        self.recovery = RunRecovery(run, context, self.engine_slot)
        collapse = run.control is not None
        dtype = spec.training.dtype
        self.checks = StepChecks(dtype, spec.rollout.precision(dtype), may_collapse=collapse)
        self.last_step = context.plan.steps(run)
        self.evaluation_steps = set() if run.trial or run.control else context.plan.evaluation_steps
        self.by_base = run.control is not None and run.control.supervised
        """Whether it trains on the base's responses."""

    @property
    def state(self) -> RunState:
        return self.lifecycle.state

    # -- the run ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Train to the end. A failure is this run's own; a cancellation ends in a checkpoint."""
        async with contextlib.AsyncExitStack() as cleanup:
            cleanup.push_async_exit(self.run_slot)  # released if it is held then
            cleanup.push_async_callback(self._stop_trainers)
            try:
                if await self._ended_before():
                    return
                ending = await self._train_with_recovery()
            except asyncio.CancelledError:
                if self.context.ray_lost:
                    raise
                if self.began is not None:
                    await self._save_before_stopping()
                ending = RunState.STOPPED
            except (ray.exceptions.RayError, CallTimeout, RunFailure) as error:
                ending, self.reason = RunState.FAILED, reason_of(error)
        if ending is RunState.FAILED and self.context.halving:
            await self.context.halving.withdraw(self.name)
        if self.began is not None:
            self.weights.drop()
        if self.began is not None or ending is RunState.FAILED:
            ending = await self._report_ending(ending)
        self.lifecycle.enter(ending)
        self.context.progress.ended(self.name, self.reason)

    async def _train_with_recovery(self) -> RunState:
        """Train, and again after every failure that can be recovered from. Returns how the run ended."""
        while True:
            try:
                return await self._train()
            except (ray.exceptions.RayError, CallTimeout) as error:
                self.lifecycle.enter(RunState.RECOVERING)
                self.ahead = None
                await self.recovery.recover(error, self.step)
                if self.trainers and not await self.trainers.in_sync(self.context.plan.spec.recovery.patience):
                    await self._stop_trainers()  # _train starts others

    async def _train(self) -> RunState:
        """Do everything that is not done yet."""
        await self._start_trainers()
        await self._sync_and_record()  # a step that failed after its update
        while self.step < self.last_step:
            if self.step in self.evaluation_steps:
                await self._evaluate()
            if not await self._survives_rung():
                return RunState.PRUNED
            await self._generate_and_update()
            await self._sync_and_record()
        await self._finish()
        await self._evaluate()
        return RunState.COMPLETED

    # -- a step -----------------------------------------------------------------------------------------------

    async def _generate_and_update(self) -> None:
        """Take the training step after `self.step`: rollout and update."""
        began, step = time.monotonic(), self.step
        actors, timeouts = self.context.actors, self.context.timeouts
        await self._sync_weights()  # a new engine has none
        self.lifecycle.enter(RunState.GENERATING)
        async with actors.engines.phases.hold("generation"):
            ahead, self.ahead = self.ahead, None
            experience = ahead[1] if ahead and ahead[0] == step else self._rollout(step, step)
            self.context.tell(await timeouts.wait("rollout", experience.done))
        if self.context.plan.spec.rollout.staleness and step + 1 < self.last_step:
            self.ahead = step + 1, self._rollout(step + 1, step)
        # A node's CPUs, at most as many as it has: more ranks than that get it for themselves.
        cpus = {
            node: min(ranks, actors.update_slots.capacity(node)) for node, ranks in Counter(self.trainers.nodes).items()
        }
        self.lifecycle.enter(RunState.UPDATING)
        async with actors.engines.phases.hold("training"), actors.update_slots.hold_all(cpus):
            # An update cannot be taken back: once begun it is seen to its end, also when the sweep is told to stop.
            await to_the_end(self._update(experience.value, began), unless=lambda: self.context.ray_lost)

    def _rollout(self, step: int, version: int) -> Produced:
        """Ask for a step's experience, generated by the weights of a version; by the base it is shared at first."""
        context, engine, seed = self.context, self.engine_slot.engine, self.planned.seed
        if version == 0:
            return context.first_rollout(seed, engine, step)
        sampler = (None, 0) if self.by_base else (self.name, version)
        return context.actors.rollout_worker.rollout(engine, *sampler, seed, step)

    async def _update(self, experience: Reference, began: float) -> None:
        """Train on the experience, and count the step."""
        step = self.step
        metrics, weights = await self.context.timeouts.wait("update", self.trainers.update(experience, step))
        updated = time.monotonic()
        worked = sum(metrics[f"{phase}_seconds"] for phase in ("rollout", "reward", "update"))
        row = {
            "step": step,
            **metrics,
            "driver_cpu_seconds": self.context.own_cpu_seconds(),
            "checkpoint_cpu_seconds": self.checkpoints.take_cpu_seconds(),
            "wait_seconds": max(0.0, updated - began - worked),
        }
        self.step = step + 1
        self.checkpoints.rows.append(row)
        self.unsynced = UnsyncedStep(row, began, updated, weights)

    async def _sync_and_record(self) -> None:
        """Bring the step's weights to the engine, record the step, check it, and every so often save a checkpoint."""
        step = self.unsynced
        if step is None:
            return
        weights, step.weights = step.weights, None
        pushed = await self._sync_weights(weights)
        self.unsynced, finished = None, time.monotonic()
        step.row["sync_seconds"] = finished - step.updated
        if pushed:
            step.row |= {"pushed_bytes": pushed.bytes, "push_cpu_seconds": pushed.cpu_seconds}
        collector = self.context.actors.collector
        collector.record_step(self.planned.selection.name, self.planned.seed, step.row["step"], step.row)
        self.context.progress.stepped(self.name, self.step, step.row, finished - step.began)
        self.checks.check(step.row)
        if self.step % self.context.plan.spec.recovery.checkpoint_every == 0:
            await self.checkpoints.save_in_background(self.trainers, self.step)

    async def _sync_weights(self, weights: Reference | None = None) -> Any:
        """Have the engine serve the run's weights as they are now; what it took, None if it had them."""
        if self.weights.is_current(self.step):
            return None
        self.lifecycle.enter(RunState.SYNCING)
        if self.ahead:  # no response may be by two versions
            await self.context.timeouts.wait("rollout", self.ahead[1].done)
        return await self.weights.sync(self.step, self.trainers, weights)

    # -- evaluation, and a search's rungs ---------------------------------------------------------------------

    async def _evaluate(self) -> None:
        """Score what is not scored yet at this step; what a search decides by, with more samples."""
        halving = self.context.halving
        factor = halving.sample_factor(self.name, self.step) if halving else 1
        await self._sync_weights()
        self.lifecycle.enter(RunState.EVALUATING)
        await self.evaluator.evaluate(self.step, self.trainers, factor=factor)

    async def _survives_rung(self) -> bool:
        """Tell whether the run trains on, where a search decides about it here."""
        halving = self.context.halving
        if halving is None or not halving.decides(self.name, self.step):
            return True
        await self._finish()
        self.lifecycle.enter(RunState.PAUSED_AT_RUNG)
        if self.context.release_while_paused and self.step not in halving.decided:
            await self._stop_trainers()
            self.run_slot.release()
        survives = await halving.survives_rung(self.name, self.step)
        if survives:
            await self._start_trainers()
        return survives

    async def _finish(self) -> None:
        """Write the overlay, of all but trials, and a checkpoint for more steps to begin with."""
        self.lifecycle.enter(RunState.FINISHING)
        if self.finished_step == self.step:
            return
        await self.checkpoints.wait()
        if not self.planned.trial:
            folder = overlay_folder(self.context, self.name)
            await reach_store("the run's overlay", partial(self.trainers.write_overlay, folder))
        if self.checkpoints.step < self.step:
            await self.checkpoints.save(self.trainers, self.step)
        self.finished_step = self.step

    # -- trainers ---------------------------------------------------------------------------------------------

    async def _start_trainers(self) -> None:
        """Have trainers, in a run slot, in the state of the newest checkpoint that all ranks can read."""
        if not self.run_slot.is_held:
            self.lifecycle.enter(RunState.WAITING)
            await self.run_slot.acquire()
            self.began = self.began or time.monotonic()
        if self.trainers:
            return
        context = self.context
        self.lifecycle.enter(RunState.STARTING)
        rate = self.planned.peak_rate(context.learning_rates)
        trainers, info = await context.actors.start_trainers(self.planned, self.engine_slot, rate)
        try:
            context.actors.collector.set_location(self.name, info.hosts)
            await context.check_base(info.base_digest)
            restored = await self.checkpoints.restore(trainers)
            parameters = info.trainable_parameters
            await self._report(learning_rate=rate, trainable_parameters=parameters, status="running", reason=None)
        except BaseException:
            await trainers.stop()
            raise
        self.trainers = trainers
        self.step, self.unsynced, self.finished_step = restored.step, None, None
        self.weights.forget()
        self.checks.restart(restored.rows)
        if self.step:
            context.progress.resumed(self.name, self.step)

    async def _stop_trainers(self) -> None:
        """End the trainers, once a checkpoint that is being written is done."""
        if self.context.ray_lost:
            return
        await self.checkpoints.wait()
        trainers, self.trainers = self.trainers, None
        if trainers:
            self.context.actors.collector.set_location(self.name, None)
            await trainers.stop()

    # -- beginning and end ------------------------------------------------------------------------------------

    async def _ended_before(self) -> bool:
        """Tell whether an earlier start has brought the run to its end. Failed runs are tried once more."""
        ending = await reach_files("the run's checkpoints", self._read_ending)
        if ending is None:
            return False
        self.lifecycle.enter(ending)
        self.context.progress.already(self.name, ending)
        return True

    def _read_ending(self) -> RunState | None:
        """Read the run's end from its store: completed with all its steps, or pruned."""
        store = RunStore(self.context.plan.folder, self.name)
        metadata = store.metadata()
        self.seconds = metadata.get("seconds", 0.0)
        if metadata.get("status") == "completed":
            records, _ = store.records()
            if records and records[0].step == self.last_step:
                return RunState.COMPLETED
        return RunState.PRUNED if metadata.get("status") == "pruned" else None

    async def _save_before_stopping(self) -> None:
        """Save what is done so far as a checkpoint: the sweep stops."""
        self.reason = f"stopped after step {self.step}; `layersweep resume` goes on from there"
        try:
            if self.step > self.checkpoints.step and self.trainers:
                if self.trainers.step != self.step:
                    raise RunFailure("the update under way failed")
                await self._sync_and_record()
                await self.checkpoints.save(self.trainers, self.step)
        except (ray.exceptions.RayError, CallTimeout, RunFailure) as error:
            self.reason = f"stopped; the last checkpoint is of step {self.checkpoints.step}: {reason_of(error)}"

    async def _report_ending(self, ending: RunState) -> RunState:
        """Write down how the run ended; how it then did: one whose end cannot be written has failed."""
        try:
            await self._report(status=ending.status, reason=self.reason, seconds=self._elapsed())
        except StoreUnavailable as error:
            ending, self.reason = RunState.FAILED, reason_of(error)
        return ending

    async def _report(self, **changes: Any) -> None:
        """Tell the collector what became known of the run."""
        update = self.context.actors.collector.update_run
        call = partial(update, self.planned.selection.name, self.planned.seed, **changes)
        await reach_store("the run's metadata", call)

    def _elapsed(self) -> float:
        """Count the seconds that the run has taken, those of earlier starts included."""
        return self.seconds + (time.monotonic() - self.began if self.began is not None else 0.0)


async def to_the_end(work: Coroutine[Any, Any, T], unless: Callable[[], bool]) -> T:
    """Await a coroutine that a cancellation does not interrupt: it is raised afterwards.

    Args:
        unless: whether it interrupts it all the same. A second cancellation always does.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not unless():
            await asyncio.wait({task})
        raise
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # seen
