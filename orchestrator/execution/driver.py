"""The driver: one coroutine per run around shared engines, all of them at once.

Data never passes through here. The driver hands object references on: experience from the rollout worker to the
trainer, weights from the trainer to the engine, and to the collector what is to be kept.
"""

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Any, Literal

from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.layers import LayerSearch
from layersweep.orchestrator.statistics.halving_schedule import FINAL_SAMPLES, Rung, survivors
from layersweep.policies.selection import Selection
from layersweep.workers.config import LearningRates
from layersweep.workers.storage.run_store import RunStore, runs_of

from .actors import SweepActors
from .context import SweepContext
from .failures import AdaptiveTimeouts
from .halving_barrier import SuccessiveHalvingBarrier
from .health import HealthMonitor
from .manifest import SweepManifest
from .progress import Progress
from .run_controller import RunController
from .run_slots import RunSlots

Outcome = Literal["completed", "failed", "stopped"]


class Driver:
    """Runs a plan to its end on an initialised Ray, from wherever its ledger says that it is.

    Args:
        plan: what to run.
        experiment: what of it must stay the same from one start to the next.
        progress: where it is shown.
        actor_environment: Ray's runtime environment of engines and trainers.
    """

    def __init__(self, plan: Plan, experiment: SweepManifest, progress: Progress, actor_environment: dict[str, Any]):
        self.plan, self.spec, self.experiment, self.progress = plan, plan.spec, experiment, progress
        self.stage = SweepActors(plan, actor_environment)
        self.working: set[asyncio.Task] = set()
        self.stopping = self.unpicked = False

    async def run(self) -> tuple[Outcome, Any]:
        """Everything: start, train, evaluate, write. How it ended, and the contribution table.

        Raises:
            ray.exceptions.RayError: what all runs need (an engine, the base model) could not be had. What was
                finished until then is in the ledger.
            RayLost: Ray does not run any more on this node.
        """
        self._listen()
        try:
            await self._start()
            outcome = await self._watched(asyncio.create_task(self._everything()))
            table = await self.stage.collector.table.remote()
            await self.stage.collector.close.remote()
            return outcome, table
        finally:
            self.progress.close()

    async def _watched(self, work: asyncio.Task) -> Outcome:
        """The work, ended early where Ray itself is lost."""
        await asyncio.wait({work, self.watching}, return_when=asyncio.FIRST_COMPLETED)
        if self.watching.done():
            self.sweep.lost = True
            work.cancel()
            self.watching.result()
        return await work

    async def _everything(self) -> Outcome:
        # Nobody has trained: the base's evaluation can wait until trainers have work.
        if self.experiment.trunk is None and not self.spec.rollout.sleep:  # there each run takes its turn for it
            for run in self.plan.runs:
                self.sweep.first_rollout(run.seed, self.stage.place(run.name).actor)
        self.base = asyncio.create_task(self._score_base())
        self.working.add(self.base)
        if not await self._tune():
            return "stopped" if self.stopping else "failed"
        courses = await self._all(self.plan.runs)
        if not self.stopping:
            await self.base
            courses += await self._all(await self._combined())
        if not self.stopping:
            await self._finals([course for course in courses if course.status == "completed"])
        if self.stopping:
            return "stopped"
        if self.unpicked or any(course.status == "failed" for course in courses):
            return "failed"
        self.experiment.finish()
        return "completed"

    async def _start(self) -> None:
        began = time.monotonic()
        await self.stage.start(self.progress.say)
        self.progress.started(time.monotonic() - began)
        rooms = RunSlots(self.stage.rooms)
        self.sweep = SweepContext(
            self.plan,
            self.stage,
            self.progress,
            rooms,
            AdaptiveTimeouts(self.spec.recovery.patience),
            halving=self._halving(),
            crowded=rooms.there < len(self.plan.runs) or not self.stage.has_places_for_all(),
            trunk=self.experiment.trunk,
            on_trunk=self.experiment.know_trunk,
        )
        watch = HealthMonitor(self.stage.places, self.stage.standing, self.spec.recovery.patience, self.progress.say)
        self.watching = asyncio.create_task(watch.forever())
        self.following = asyncio.create_task(rooms.follow())

    # -- stopping ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """To Ctrl-C and SIGTERM: once, every run goes to a checkpoint; twice, all ends at once."""
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, main)

    def _stop(self, main: asyncio.Task) -> None:
        if self.stopping or not hasattr(self, "sweep"):
            main.cancel()
            return
        self.stopping = True
        self.progress.say("stopping: checkpoints are being written (once more to stop at once)")
        for task in self.working:
            task.cancel()

    # -- runs -------------------------------------------------------------------------------------------------

    async def _all(self, runs: Sequence[Run]) -> list[RunController]:
        """These runs, side by side, each to its own end. Those that are there already are left alone."""
        courses = [RunController(run, self.sweep) for run in runs]
        todo = []
        for course in courses:
            course.status = await asyncio.to_thread(self._known_status, course.run)
            if course.status == "running":
                todo.append(asyncio.create_task(course.go(), name=course.name))
            else:
                self.progress.already(course.name, course.status)
        self.working |= set(todo)
        for end in await asyncio.gather(*todo, return_exceptions=True):
            if isinstance(end, Exception):  # of the collector, say: not one run's own
                raise end
        return courses

    def _known_status(self, run: Run) -> str:
        """From the ledger: "completed" with all its steps, "pruned", or "running", which failed ones do once more."""
        ledger = RunStore(self.plan.folder, run.name)
        status = ledger.facts().get("status")
        if status == "completed":
            records, _ = ledger.records()
            if records and records[0].step == self.plan.steps(run):
                return "completed"
        return "pruned" if status == "pruned" else "running"

    async def _tune(self) -> bool:
        """Whether there are learning rates to train with: the spec's, those found before, or those that trials find."""
        if not self.plan.trials:
            return True
        if self.experiment.rates is None:
            from .learning_rate_trials import tuned

            for run in self.plan.trials:
                self.progress.add(run.name, self.plan.steps(run))
            courses = await self._all(self.plan.trials)
            if self.stopping:
                return False
            await self.base
            completed = [course.run for course in courses if course.status == "completed"]
            scores = await self.stage.collector.all_scores.remote()
            try:
                rates = tuned(self.spec.training.learning_rate, completed, scores)
            except ValueError as error:
                self.progress.say(str(error))
                return False
            self.experiment.tune(rates.model_dump())
            self.progress.say(f"learning rates: {rates.full:g} for full, {rates.layer:g} for layers")
            for course in courses:
                await asyncio.to_thread(course.ledger.release)
        self.stage.rates = LearningRates(**self.experiment.rates)
        return True

    def _halving(self) -> SuccessiveHalvingBarrier | None:
        """The search, if the spec asks for one."""
        if not isinstance(self.spec.layers, LayerSearch):
            return None
        layers = {run.name: run.selection.layers[0] for run in self.plan.runs if run.selection.kind == "layer"}
        return SuccessiveHalvingBarrier(self.plan.rungs, layers, self._survivors, self.experiment.rungs)

    async def _survivors(self, rung: Rung, layers: list[int]) -> list[int]:
        """The layers that train on after a rung, by their scores smoothed along depth."""
        from layersweep.orchestrator.statistics.score_arrays import gains_at

        await asyncio.shield(self.base)  # should it fail, so do those who wait for this decision
        names = [Selection.layer(k).name for k in layers]
        gains = gains_at(await self.stage.collector.all_scores.remote(), names, rung.step)
        kept = survivors(layers, gains.mean, gains.covariance, rung.keep)
        self.progress.say(f"search: after step {rung.step} layers {', '.join(map(str, kept))} go on")
        self.experiment.decide(rung.step, kept)
        return kept

    async def _combined(self) -> list[Run]:
        """The runs over several layers, picked from the layer runs that are finished now, or from another table."""
        if not self.spec.combine:
            return []
        from layersweep.orchestrator.planning.combined_runs import pick, read_profile

        table = read_profile(self.spec.profile) if self.spec.profile else await self.stage.collector.table.remote()
        begun = set(runs_of(self.plan.folder))
        runs = []
        for seed in self.spec.seeds:
            for wanted in self.spec.combine:
                try:
                    selection = pick(wanted, table, self.plan.architecture.layers)
                except ValueError as error:  # too many layer runs failed
                    self.unpicked = True
                    self.progress.say(str(error))
                    continue
                run = Run(selection, seed)
                if run.name in begun:  # with the layers that were best when it began
                    known = RunStore(self.plan.folder, run.name).facts().get("layers", selection.layers)
                    run = Run(Selection(selection.name, selection.kind, tuple(known)), seed)
                runs.append(run)
        for run in runs:
            self.progress.say(f"{run.name}: layers {', '.join(map(str, run.selection.layers))}")
            self.progress.add(run.name)
            await self.stage.collector.add_run.remote(self.stage.fact(run))
        return runs

    # -- evaluation -------------------------------------------------------------------------------------------

    def _base(self) -> RunController:
        return RunController(Run(Selection.base(), self.spec.seeds[0]), self.sweep)

    async def _score_base(self) -> None:
        course = self._base()
        await course.score()
        await course.report(status="completed", seconds=time.monotonic() - course.began)

    async def _finals(self, courses: list[RunController]) -> None:
        """Base, full and the best once more, on prompts that picked none of them, with four times the samples."""
        if not any(suite.final_prompts for suite in self.spec.evaluation.suites):
            return
        table = await self.stage.collector.table.remote()
        scored = table[(table["status"] == "completed") & table["score"].notna()]
        layers = scored[scored["kind"] == "layer"].nlargest(self.spec.evaluation.finalists, "score")
        chosen = {"full", *layers["selection"], *scored.loc[scored["kind"] == "layers", "selection"]}
        self.progress.say(f"scoring base and {', '.join(sorted(chosen))} on the final split")
        finalists = [self._base(), *(course for course in courses if course.run.selection.name in chosen)]
        todo = [asyncio.create_task(course.score("final", FINAL_SAMPLES)) for course in finalists]
        self.working |= set(todo)
        await asyncio.gather(*todo)


def run_plan(
    plan: Plan, experiment: SweepManifest, progress: Progress, actor_environment: dict[str, Any]
) -> tuple[Outcome, Any]:
    """Run to the end on an initialised Ray. Returns how it ended, and the contribution table."""
    return asyncio.run(_drive(plan, experiment, progress, actor_environment))


async def _drive(*args: Any) -> tuple[Outcome, Any]:
    return await Driver(*args).run()
