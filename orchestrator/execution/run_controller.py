"""The course of one run: rollout, update, push, record, until its end; after a failure, from its last checkpoint."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import takewhile
from typing import Any, TypeVar

import ray

from layersweep.orchestrator.planning.plan import Run
from layersweep.workers.storage.run_store import RunStore

from .actors import TrainerGroup
from .context import SweepContext
from .failures import BaseModelChanged, CallTimeout, RewardCollapse, mendable, reason_of

T = TypeVar("T")
ZERO_REWARD_PATIENCE = 20
"""Steps of no reward at all after which a run counts as collapsed: nothing is left to reinforce."""


class RunController:
    """Takes one run from wherever its ledger says it is to its end, and mends what fails on the way."""

    def __init__(self, run: Run, sweep: SweepContext):
        self.run, self.sweep, self.name = run, sweep, run.name
        self.spec, self.stage = sweep.plan.spec, sweep.stage
        self.place = sweep.stage.place(run.name)
        self.ledger = RunStore(sweep.plan.folder, run.name)
        self.crew: TrainerGroup | None = None
        self.status, self.reason = "running", None
        self.steps = 0
        """Done; also the version of the weights."""
        self.served: tuple[int, int] | None = None
        """Generation of the engine and version of the weights that it has."""
        self.rows: list[dict[str, Any]] = []
        """Of steps since the last checkpoint."""
        self.kept = self.furthest = self.failures = self.zero_reward = 0
        self.checkpoint_cpu = 0.0
        """Seconds of checkpoints since the last step."""
        self.staffed = self.updating = False
        """Whether trainers should be there; whether their update is under way, or ended badly."""
        self.learning: asyncio.Task | None = None
        self.saving: asyncio.Task | None = None
        self.seconds, self.began = 0.0, time.monotonic()

    # -- the whole --------------------------------------------------------------------------------------------

    async def go(self) -> None:
        """To the end; a failure is the run's own. On cancellation, to a checkpoint."""
        async with self.sweep.rooms:
            self.began = time.monotonic()
            try:
                self.seconds = (await asyncio.to_thread(self.ledger.facts)).get("seconds", 0.0)
                self.status = await self._train()
            except asyncio.CancelledError:
                if self.sweep.lost:
                    raise
                await self._pause()
            except (ray.exceptions.RayError, RewardCollapse, CallTimeout, BaseModelChanged) as error:
                self.status, self.reason = "failed", reason_of(error)
                if self.sweep.halving:
                    await self.sweep.halving.leave(self.name)
            finally:
                await self._dismiss()
            self.place.actor.drop.remote(self.name)
            self.served = None
            await self.report(status=self.status, reason=self.reason, seconds=self._elapsed())
            self.sweep.progress.ended(self.name, self.status, self.reason)

    async def _train(self) -> str:
        """All steps and evaluations; "completed", or "pruned" where a search stopped it."""
        last = self.sweep.plan.steps(self.run)
        scored = set() if self.run.trial else self.sweep.plan.evaluation_steps
        await self._insist(self._hire)
        while self.steps < last:
            if self.steps in scored:
                await self._insist(lambda: self.evaluate(factor=self._samples()))
            if not await self._passes_rung():
                return "pruned"
            await self._insist(self._step)
        await self._insist(self._finish)
        await self._insist(lambda: self.evaluate(factor=self._samples()))
        return "completed"

    def _samples(self) -> int:
        """Times the usual samples now: what a search decides by is scored with more."""
        return self.sweep.halving.samples(self.name, self.steps) if self.sweep.halving else 1

    async def _passes_rung(self) -> bool:
        """Whether the run trains on, where a search decides about it here."""
        halving = self.sweep.halving
        if halving is None or self.name not in halving.layers or self.steps not in halving.rungs:
            return True
        await self._insist(self._finish)
        if self.sweep.crowded:
            await self._dismiss()
            await self.sweep.rooms.release()
        goes_on = await halving.goes_on(self.name, self.steps)
        if self.sweep.crowded:
            await self.sweep.rooms.acquire()
            if goes_on:
                await self._insist(self._hire)
        return goes_on

    async def _pause(self) -> None:
        """The sweep stops: what is done so far becomes a checkpoint."""
        if self.learning and not self.learning.done():
            await asyncio.wait({self.learning})
        self.reason = f"stopped after step {self.steps}; `layersweep resume` goes on from there"
        try:
            if self.crew and self.steps > self.kept:
                await self._saved()
                await self._save()
        except ray.exceptions.RayError as error:
            self.reason = f"stopped; the last checkpoint is of step {self.kept}: {reason_of(error)}"

    async def report(self, **facts: Any) -> None:
        await self.stage.collector.update_run.remote(self.run.selection.name, self.run.seed, **facts)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    # -- trainers ---------------------------------------------------------------------------------------------

    async def _hire(self) -> None:
        """Trainers, in the state of the newest checkpoint that all ranks can read."""
        await self._dismiss()
        self.staffed, self.updating = True, False
        self.crew, facts = await self.stage.hire(self.run, self.place)
        self._check_trunk(facts.pop("trunk"))
        self.stage.collector.place.remote(self.name, facts.pop("where"))
        folder, trainers = self.sweep.plan.folder, self.crew.trainers
        records, problems = await asyncio.to_thread(self.ledger.records)
        self.steps = self.zero_reward = 0
        for record in records:
            found = await asyncio.gather(*(trainer.problem.remote(folder, record) for trainer in trainers))
            if not any(found):
                await asyncio.gather(*(trainer.restore.remote(folder, record) for trainer in trainers))
                self.steps = record.step
                self.zero_reward = steps_without_reward(record.rows)
                break
            problems += [problem for problem in found if problem]
        for problem in problems:
            self.sweep.progress.say(f"{self.name}: {problem}; going on from step {self.steps}")
        self.kept, self.rows, self.served = self.steps, [], None
        await self.report(**facts, status="running", reason=None)
        if self.steps:
            self.sweep.progress.resumed(self.name, self.steps)

    def _check_trunk(self, digest: str) -> None:
        if self.sweep.trunk is None:
            self.sweep.trunk = digest
            self.sweep.on_trunk(digest)
        if digest != self.sweep.trunk:
            raise BaseModelChanged(
                f"the base model's weights have the digest {digest}, the sweep began with {self.sweep.trunk}"
            )

    async def _dismiss(self) -> None:
        crew, self.crew, self.staffed = self.crew, None, False
        if self.sweep.lost:
            return
        if self.saving:
            await asyncio.wait({self.saving})
        if crew:
            self.stage.collector.place.remote(self.name, None)
            await self.stage.dismiss(crew)

    # -- failures ---------------------------------------------------------------------------------------------

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do it, again after mending what failed, as often as the spec allows."""
        while True:
            try:
                return await action()
            except (ray.exceptions.RayError, CallTimeout) as error:
                if not mendable(error):
                    raise
                await self._mend(error)

    async def _mend(self, error: Exception) -> None:
        """Replace whoever is not there any more."""
        while True:
            self.failures = 1 if self.steps > self.furthest else self.failures + 1
            self.furthest = max(self.furthest, self.steps)
            if self.failures > self.spec.recovery.retries:
                raise error
            self.sweep.progress.say(f"{self.name}: {reason_of(error)}; mending ({self.failures})")
            try:
                await self._mend_once(error)
                return
            except (ray.exceptions.RayError, CallTimeout) as another:
                if not mendable(another):
                    raise
                error = another

    async def _mend_once(self, error: Exception) -> None:
        patience, place, seen = self.spec.recovery.patience, self.place, self.place.generation
        if isinstance(error, CallTimeout) and error.phase == "rollout":
            ray.kill(self.stage.rollouts, no_restart=False)
        self.sweep.first.pop(self.run.seed, None)  # may have been lost; the same is written again
        try:
            async with place.changing:  # whoever is replacing it comes first
                pass
            await asyncio.wait_for(place.actor.stuck_for.remote(), patience)
        except (ray.exceptions.RayError, TimeoutError):
            await place.renew(seen)
        if self.staffed and not await self._crew_is_well(patience):
            await self._hire()

    async def _crew_is_well(self, patience: float) -> bool:
        """Whether all trainers answer and stand where the driver thinks they do."""
        if self.crew is None or self.updating:
            return False
        try:
            answers = asyncio.gather(*(trainer.completed.remote() for trainer in self.crew.trainers))
            return set(await asyncio.wait_for(answers, patience)) == {self.steps}
        except (ray.exceptions.RayError, TimeoutError):
            return False

    # -- a step -----------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        """Rollout, update, push, record."""
        began, step = time.monotonic(), self.steps
        await self._serve()
        async with self.stage.phases.of("writing"):
            experience = await self._rollout(step)
        # A task of its own: once begun it is seen to its end, also when the sweep is told to stop.
        self.learning = asyncio.create_task(self._learn(experience, step, began))
        row = await asyncio.shield(self.learning)
        self._check(row)
        if self.steps % self.spec.recovery.checkpoint_every == 0:
            await self._saved()
            self.saving = asyncio.create_task(self._save_if_possible())

    async def _rollout(self, step: int) -> Any:
        """A reference to the step's experience. At the first step every run is the base: one batch serves all."""
        seed = self.run.seed
        if step:
            named = self.stage.rollouts.rollout.options(num_returns=2, name=f"RolloutWorker.rollout {self.name}")
            done, experience = named.remote(self.place.actor, self.name, step, seed, step)
        else:
            done, experience = self.sweep.first_rollout(seed, self.place.actor)
        await self.sweep.deadlines.within("rollout", done)
        return experience

    async def _learn(self, experience: Any, step: int, began: float) -> dict[str, Any]:
        """Update, push, record; the row of steps.parquet."""
        self.updating = True
        async with self.stage.phases.of("training"), self.stage.turns.of(self.crew.nodes):
            updates = [trainer.update.options(num_returns=2).remote(experience, step) for trainer in self.crew.trainers]
            answers = asyncio.gather(*(metrics for metrics, _ in updates))
            metrics = (await self.sweep.deadlines.within("update", answers))[0]
        updated = time.monotonic()
        self.steps, self.updating = step + 1, False
        row = {"step": step, **metrics, "driver_cpu_seconds": self.sweep.own_cpu()}
        row["checkpoint_cpu_seconds"], self.checkpoint_cpu = self.checkpoint_cpu, 0.0
        worked = sum(metrics[f"{phase}_seconds"] for phase in ("rollout", "reward", "update"))
        row["wait_seconds"] = max(0.0, updated - began - worked)
        self.rows.append(row)
        weights = [packed for _, packed in updates][:1]  # for the first try; afterwards the trainers are asked
        pushed = await self._insist(lambda: self._serve(weights.pop() if weights else None))
        finished = time.monotonic()
        row["sync_seconds"] = finished - updated
        if pushed:
            row |= {"pushed_bytes": pushed.bytes, "push_cpu_seconds": pushed.cpu_seconds}
        self.stage.collector.record_step.remote(self.run.selection.name, self.run.seed, step, row)
        self.sweep.progress.stepped(self.name, step + 1, row, finished - began)
        return row

    async def _serve(self, weights: Any = None) -> Any:
        """Have the engine serve this run's weights as they are now; what it took, None if it had them."""
        wanted = (self.place.generation, self.steps)
        if self.served == wanted or not self.steps:
            return None
        actor = self.place.actor
        if weights is None and self.crew:
            # All ranks: at ZeRO 3 they gather them together.
            weights = [trainer.weights.remote() for trainer in self.crew.trainers][0]
        if weights is None:
            path = f"{self.sweep.plan.folder}/overlays/{self.name}/model.safetensors"
            push = actor.load.options(name=f"Engine.load {self.name}").remote(self.name, self.steps, path)
        else:
            push = actor.push.options(name=f"Engine.push {self.name}").remote(self.name, self.steps, weights)
        pushed = await self.sweep.deadlines.within("push", push)
        self.served = wanted
        return pushed

    def _check(self, row: dict[str, Any]) -> None:
        self.zero_reward = self.zero_reward + 1 if steps_without_reward([row]) else 0
        if self.zero_reward >= ZERO_REWARD_PATIENCE:
            raise RewardCollapse(f"collapsed: no reward at all for {ZERO_REWARD_PATIENCE} steps")

    # -- what is kept -----------------------------------------------------------------------------------------

    async def _save(self) -> None:
        """A checkpoint of the steps done so far."""
        step, rows, folder = self.steps, list(self.rows), self.sweep.plan.folder
        parts = await asyncio.gather(*(trainer.save.remote(folder, step) for trainer in self.crew.trainers))
        files = {name: checksum for name, checksum, _ in parts}
        committing = await self.stage.collector.commit.remote(
            self.run.selection.name, self.run.seed, step, files, rows, self._elapsed(), self.spec.recovery.keep
        )
        self.checkpoint_cpu += committing + sum(cpu for _, _, cpu in parts)
        self.kept, self.rows = step, self.rows[len(rows) :]

    async def _save_if_possible(self) -> None:
        """Beside the next rollout. One that fails costs nothing but the steps since the one before."""
        step = self.steps
        try:
            await self._save()
        except ray.exceptions.RayError as error:
            if not mendable(error):  # else the run's own next call meets it too, and mends
                self.sweep.progress.say(f"{self.name}: no checkpoint of step {step}: {reason_of(error)}")

    async def _saved(self) -> None:
        """Once the checkpoint that is being written is done."""
        if self.saving:
            await self.saving

    async def _finish(self) -> None:
        """The overlay, of all but trials, and a checkpoint for more steps to begin with."""
        await self._saved()
        if not self.run.trial:
            overlay = f"{self.sweep.plan.folder}/overlays/{self.name}"
            await asyncio.gather(*(trainer.finish.remote(overlay) for trainer in self.crew.trainers))
        if self.kept < self.steps:
            await self._save()

    # -- evaluation -------------------------------------------------------------------------------------------

    async def evaluate(self, split: str = "selection", factor: int = 1) -> None:
        """All suites that are not scored yet, with `factor` times their samples."""
        await self._serve()
        done = await asyncio.to_thread(self.ledger.scored)
        async with self.stage.phases.of("writing"):
            await self._evaluate(split, factor, done)

    async def _evaluate(self, split: str, factor: int, done: set[tuple[int, str, str]]) -> None:
        suites = [s for s in self.spec.evaluation.suites if split == "selection" or s.final_prompts]
        calls = [
            self.stage.rollouts.evaluation.options(num_returns=2, name=f"RolloutWorker.evaluation {self.name}").remote(
                self.place.actor, self.name if self.steps else None, self.steps, s.name, split, self.run.seed,
                s.samples * factor, greedy,
            )
            for s in suites
            for greedy in ((False, True) if self.spec.evaluation.greedy else (False,))
            if (self.steps, split, f"{s.name}@greedy" if greedy else s.name) not in done
        ]  # fmt: skip
        for scored, columns in calls:
            await scored  # Ray would keep back every later call of the collector until this one's columns are there
            await self.stage.collector.record_scores.remote(self.run.selection.name, self.run.seed, self.steps, columns)

    async def score(self, split: str = "selection", factor: int = 1) -> None:
        """Of the base, or of a run that has ended, from its overlay."""
        self.steps = 0 if self.run.selection.kind == "base" else self.spec.training.steps
        await self._insist(lambda: self.evaluate(split, factor))


def steps_without_reward(rows: list[dict[str, Any]]) -> int:
    """How many of the last steps, in a row, brought no reward at all. Penalties keep an environment's mean reward from
    being exactly 0: its success says it."""
    return sum(1 for _ in takewhile(lambda row: row.get("success_rate", row["reward_mean"]) == 0, reversed(rows)))
