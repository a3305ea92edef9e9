"""The driver of a sweep: one loop per run around shared engines, all of them in one process.

    drive()                    signals: the first stops every run at a checkpoint, the second ends at once
      |                        creates the actors, then owns every loop below (one TaskGroup)
      v
    Driver.run()               learning-rate trials -> runs -> combined runs, controls -> final scoring -> table
      |
      +-- BaseScore            once, beside the runs' first steps
      |
      +-- RunController.run()  one per run
      |     WAITING            for a run slot
      |     STARTING           trainers; the newest checkpoint
      |     +-> GENERATING     engine               -+
      |     |   UPDATING       trainers              +- a training step
      |     |   SYNCING        trainers to engine   -+
      |     |   EVALUATING     at evaluation steps
      |     +-- PAUSED_AT_RUNG in a search, at its rungs; leads to PRUNED or back
      |     FINISHING          overlay, last checkpoint
      |     EVALUATING         the last time; then COMPLETED
      |     RECOVERING         from any of these after a failure: goes on with what is not done
      |
      +-- checkpoint           one per run at most, in the background, beside its next GENERATING
      |
      +-- HealthMonitor.run()  every timeout / 4: do engines, collector, rollout worker and this node answer?
      |
      +-- SharedGpuPool.run()  every 5 s: is the base still on the GPUs that layer trainers share?
      |
      +-- _follow_cluster()    every 5 s: as many run slots as the cluster has room for; GPUs of ended whole-model runs

What each loop waits for, and what unblocks it:

    RunController   run slot           another run ends, or is paused at a rung; _follow_cluster raises the limit
                    room for trainers  Ray places them: another run's trainers stop; a node joins
                    generation phase   (engines that sleep) all updates of the training phase are done
                    responses          engine and rollout worker; a timeout or an engine's end -> RECOVERING
                    training phase     (engines that sleep) all responses of the generation phase are there
                    update slot        another run's update on the node is done
                    update, push       trainers and engine; a timeout or an actor's end -> RECOVERING
                    rung               the last of its runs is scored or has failed, and the base is scored
                    files              up to three more attempts, 20 s in all; then this run fails alone
    RECOVERING      engine slot        the replacement has started, whichever run or the HealthMonitor asked for it
    checkpoint      trainers, files    it is waited for by the next checkpoint, and before trainers stop
    BaseScore       responses          as above; in a search every rung waits for it
    HealthMonitor   sleep, answers     its timeouts; ends with the driver, or ends it where Ray is lost

Data never passes through here. The driver hands references on: experience from the rollout worker to the trainers,
weights from the trainers to the engine, scores to the collector.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.statistics.halving_schedule import FINAL_SAMPLES
from layersweep.policies.selection import run_name
from layersweep.workers.config import LearningRates, LearningRateTuning

from .actors import SweepActors
from .base_score import BaseScore
from .context import SweepContext
from .decisions import Decisions
from .evaluation import score_or_say
from .failures import AdaptiveTimeouts, RayLost, StoreUnavailable, first_error, reach_files
from .health import HealthMonitor
from .made_run import MadeRun
from .manifest import SweepManifest
from .own_session import STOP_SIGNALS, leave_terminal, restore_handlers, stop_handlers
from .progress import Progress
from .run_controller import RunController
from .run_state import RunState
from .sweep_session import SweepSession

Outcome = Literal["completed", "failed", "stopped"]
Controller = RunController | MadeRun
CLUSTER_CHECK_SECONDS = 5.0
"""Seconds between looks at the cluster's size."""


def run_plan(plan: Plan, manifest: SweepManifest, progress: Progress, session: SweepSession) -> tuple[Outcome, Any]:
    """Run a plan to its end on an initialised Ray, from wherever its run store says that it is.

    Args:
        manifest: what of the plan must stay the same from one start to the next.
        session: connected for this plan.

    Returns:
        How it ended, and the contribution table.

    Raises:
        ray.exceptions.RayError: an actor that all runs need could not be had. What was finished until then is in the
            run stores.
        RayLost: Ray does not run any more on this node.
        asyncio.CancelledError: stopped at once.
    """
    handlers = stop_handlers()
    try:
        return asyncio.run(drive(plan, manifest, progress, session))
    finally:  # the loop leaves the defaults behind
        restore_handlers(handlers)


async def drive(plan: Plan, manifest: SweepManifest, progress: Progress, session: SweepSession) -> tuple[Outcome, Any]:
    """`run_plan`, on the current event loop."""
    loop, main, began = asyncio.get_running_loop(), asyncio.current_task(), time.monotonic()
    _on_stop_signals(loop, main.cancel)  # nothing to save yet
    try:
        engines = session.take_engines()
        actors = await SweepActors.create(plan, session.environment, progress.say, engines=engines)
        progress.started(time.monotonic() - began)
        async with asyncio.TaskGroup() as tasks:
            driver = Driver(plan, manifest, progress, actors, tasks)
            _on_stop_signals(loop, partial(driver.stop, main))
            outcome, table = await driver.run()
        if outcome == "completed":
            session.engines = actors.leave_engines()
        return outcome, table
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        progress.close()


def _on_stop_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> None:
    def hang_up() -> None:
        leave_terminal()
        stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, hang_up if number == signal.SIGHUP else stop)


class Driver:
    """Runs a plan to its end.

    Args:
        plan, manifest, progress: as for `run_plan`.
        actors: started.
        tasks: owns the driver's loops; it is left when the driver ends.
    """

    def __init__(
        self, plan: Plan, manifest: SweepManifest, progress: Progress, actors: SweepActors, tasks: asyncio.TaskGroup
    ):
        self.plan, self.spec, self.manifest, self.progress = plan, plan.spec, manifest, progress
        self.actors, self.tasks = actors, tasks
        self.stoppable: set[asyncio.Task[Any]] = set()
        """Tasks of runs and of scoring, which a stop cancels."""
        self.stopping = False
        """Whether the sweep is told to stop."""
        self.controllers: dict[str, Controller] = {}
        """Controllers of the runs that have begun, by name."""
        limit = actors.max_concurrent_runs()
        rates = self.spec.training.learning_rate
        self.context = SweepContext(
            plan,
            actors,
            progress,
            tasks,
            AdaptiveTimeouts(self.spec.recovery.patience),
            max_concurrent_runs=limit,
            record_base_digest=manifest.record_base_digest,
            base_digest=manifest.trunk,
            learning_rates=None if isinstance(rates, LearningRateTuning) else rates,
            release_while_paused=limit < len(plan.runs) or not actors.all_runs_fit(),
        )
        # In sleep mode each run generates its own first batch within a generation phase. Else runs share theirs, and
        # it comes before the base's evaluation, which can wait until trainers have work.
        if manifest.trunk is None and not self.spec.rollout.sleep:
            for run in plan.runs:
                self.context.first_rollout(run.seed, actors.engines.slot_of(run.name).engine)
        self.base = BaseScore(self.context, partial(self._stoppable, tasks))
        self.decisions = Decisions(self.context, manifest, self.base)
        self.context.halving = self.decisions.halving_barrier()

    async def run(self) -> tuple[Outcome, Any]:
        """Train, evaluate, write: how it ended, and the contribution table."""
        background = [self.tasks.create_task(self._watch_health()), self.tasks.create_task(self._follow_cluster())]
        if self.actors.shared_gpus:
            background.append(self.tasks.create_task(self.actors.shared_gpus.run(self.progress.say)))
        try:
            outcome = await self._run_everything()
        except StoreUnavailable as error:  # of the manifest: no run's own
            self.progress.say(str(error))
            outcome = "failed"
        table = await self.actors.collector.table()
        await self.actors.collector.close()
        for task in background:
            task.cancel()
        return outcome, table

    async def _run_everything(self) -> Outcome:
        controllers: list[Controller] = []
        if await self._tune_learning_rates():
            controllers = await self._run_all(self.plan.runs)
            if not self.stopping:
                await self.base.wait()
            if not self.stopping:
                combined = await self.decisions.combined_runs()
                controllers += await self._run_all(combined, self._controls(controllers))
            if not self.stopping:
                await self._score_finalists(controllers)
        elif not self.stopping:
            self.context.failed = True
        if self.stopping:
            return "stopped"
        if self.context.failed or self.base.failure or any(run.state is RunState.FAILED for run in controllers):
            return "failed"
        await reach_files("the sweep's manifest", self.manifest.finish)
        return "completed"

    # -- background -------------------------------------------------------------------------------------------

    async def _watch_health(self) -> None:
        """Check health until cancelled; where Ray is lost, everything ends."""
        actors, recovery = self.actors, self.spec.recovery
        monitor = HealthMonitor(actors.engines.slots, actors.restartable, recovery.patience, self.progress.say)
        try:
            await monitor.run()
        except RayLost:
            self.context.ray_lost = True
            raise

    async def _follow_cluster(self) -> None:
        """Adapt the run slots to what the cluster has room for, while nodes come and go and whole-model runs end."""
        wholes = [run.name for run in self.plan.runs if run.selection.trains_all]
        while True:
            await asyncio.sleep(CLUSTER_CHECK_SECONDS)
            ended = [run in self.controllers and self.controllers[run].state.ended for run in wholes]
            if self.actors.shared_gpus and all(ended):
                self.actors.shared_gpus.join()
            self.context.max_concurrent_runs = await asyncio.to_thread(self.actors.max_concurrent_runs)
            self.context.run_slots.refresh()

    # -- stopping ---------------------------------------------------------------------------------------------

    def stop(self, main: asyncio.Task[Any]) -> None:
        """Have every run stop at a checkpoint; when called a second time, cancel the main task."""
        if self.stopping:
            main.cancel()
            return
        self.stopping = True
        self.progress.say("stopping: checkpoints are being written (once more to stop at once)")
        for task in self.stoppable:
            task.cancel()

    def _stoppable(self, tasks: asyncio.TaskGroup, work: Any, name: str | None = None) -> asyncio.Task[Any]:
        """Create a task of a group that `stop` cancels."""
        task = tasks.create_task(work, name=name)
        self.stoppable.add(task)
        task.add_done_callback(self.stoppable.discard)
        return task

    # -- runs -------------------------------------------------------------------------------------------------

    async def _run_all(self, runs: Sequence[Run], more: Sequence[Controller] = ()) -> list[Controller]:
        """Run these side by side, each to its own end, and more that have a controller already."""
        controllers = [*(RunController(run, self.context) for run in runs), *more]
        self.controllers |= {controller.name: controller for controller in controllers}
        async with asyncio.TaskGroup() as tasks:
            for controller in controllers:
                self._stoppable(tasks, controller.run(), controller.name)
        return controllers

    def _controls(self, finished: Sequence[Controller]) -> list[Controller]:
        """Make controllers of the controls: of those that train, and of those made of finished runs' weights."""
        controls = self.plan.controls
        for run in controls:
            self.progress.add(run.name, self.plan.steps(run) if run.control.trained else 0)
        maker = cache(partial(self.actors.create_variant_maker, self.plan.folder))
        completed = {run.name for run in finished if run.state is RunState.COMPLETED}
        return [
            RunController(run, self.context)
            if run.control.trained
            else MadeRun(run, self.context, maker, run_name(run.control_of, run.seed) in completed)
            for run in controls
        ]

    async def _tune_learning_rates(self) -> bool:
        """Find learning rates: the spec's, those of an earlier start, or the trials'. False where there are none."""
        if not self.plan.trials:
            return True
        if self.manifest.rates is not None:
            self.context.learning_rates = LearningRates(**self.manifest.rates)
            return True
        for run in self.plan.trials:
            self.progress.add(run.name, self.plan.steps(run))
        trials = await self._run_all(self.plan.trials)
        if not self.stopping:
            await self.base.wait()
        if self.stopping:
            return False
        rates = await self.decisions.learning_rates([run.planned for run in trials if run.state is RunState.COMPLETED])
        if rates is None:
            return False
        self.context.learning_rates = rates
        for trial in trials:
            await reach_files("a trial's checkpoints", trial.checkpoints.store.delete_weights)
        return True

    async def _score_finalists(self, controllers: Sequence[Controller]) -> None:
        """Score base, full, the best, and their controls once more, on prompts that picked none of them, with four
        times the samples."""
        if not any(suite.final_prompts for suite in self.spec.evaluation.suites):
            return
        chosen = await self.decisions.finalists()
        self.progress.say(f"scoring base and {', '.join(sorted(chosen))} on the final split")
        completed = [run.planned for run in controllers if run.state is RunState.COMPLETED]
        finalists = [run for run in completed if run.selection.name in chosen]
        async with asyncio.TaskGroup() as tasks:
            for run, step in [(self.base.run, 0), *((run, self.spec.training.steps) for run in finalists)]:
                self._stoppable(tasks, score_or_say(run, self.context, step, "final", FINAL_SAMPLES))
