"""The driver: one coroutine per run around shared engines, all of them at once.

Data never passes through here. The driver hands object references on: experience from the rollout worker to the
trainer, weights from the trainer to the engine, and to the collector what is to be kept.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from policies.selection import Selection

from .halving import Halving
from .layers import LayerSearch
from .plan import Plan, Run
from .progress import Progress
from .search import FINAL_SAMPLES, Rung, survivors
from .stage import Crew, Stage

ZERO_REWARD_PATIENCE = 20
"""Steps of no reward at all after which a run counts as collapsed: nothing is left to reinforce."""


class PlanError(RuntimeError):
    """A plan that this cluster cannot carry out."""


class Collapsed(RuntimeError):
    """A run whose training has broken down; the others go on."""


@dataclass
class _State:
    """Of one run while it trains."""

    run: Run
    engine: Any
    crew: Crew | None = None
    version: int = 0
    steps: int = 0
    zero_reward: int = 0
    status: str = "running"


class Driver:
    """Runs a plan to its end on an initialised Ray.

    Args:
        plan: what to run.
        progress: where it is shown.
        trainer_environment: Ray's runtime environment of trainer actors.
    """

    def __init__(self, plan: Plan, progress: Progress, trainer_environment: dict[str, Any]):
        self.plan, self.spec, self.progress = plan, plan.spec, progress
        self.stage = Stage(plan, trainer_environment)
        self.first: dict[int, Any] = {}
        self.cpu = time.process_time()
        self.base_scored = asyncio.Event()
        self.halving = self._halving()

    async def run(self) -> bool:
        """Everything: start, train, evaluate, write. True when every run completed.

        Raises:
            ray.exceptions.RayError: what all runs need (an engine, the base model) could not be had. What was
                finished until then is written.
        """
        began = time.monotonic()
        try:
            await self.stage.start(self.progress.say)
            self.progress.started(time.monotonic() - began)
            slots = asyncio.Semaphore(self._slots())
            base = asyncio.create_task(self._evaluate_base())
            states = await self._all(self.plan.runs, slots)
            await base
            states += await self._all(await self._combined(), slots)
            await self._finals([state for state in states if state.status == "completed"])
            return all(state.status != "failed" for state in states)
        finally:
            await self.stage.collector.write.remote()
            self.progress.close()

    async def table(self) -> Any:
        return await self.stage.collector.table.remote()

    def _slots(self) -> int:
        """How many runs train at the same time.

        Raises:
            PlanError: a search, which pauses layer runs in their trainers, on a cluster without room for all.
        """
        rooms, runs = self.stage.rooms(), len(self.plan.runs)
        if self.halving and rooms < runs:
            raise PlanError(
                f"layers.search: a search keeps every layer's trainer while it is paused, {runs} runs in all, and "
                f"there is room for {rooms}: lower resources.trainer, or name fewer layers"
            )
        return rooms

    def _halving(self) -> Halving | None:
        """The search, if the spec asks for one."""
        if not isinstance(self.spec.layers, LayerSearch):
            return None
        runs = {run.name: run.selection.layers[0] for run in self.plan.runs if run.selection.kind == "layer"}
        return Halving(self.plan.rungs, runs, self._survivors)

    async def _survivors(self, rung: Rung, layers: list[int]) -> list[int]:
        """The layers that train on after a rung, by their scores smoothed along depth."""
        from .scores import gains_at

        await self.base_scored.wait()
        names = [Selection.layer(k).name for k in layers]
        gains = gains_at(await self.stage.collector.all_scores.remote(), names, rung.step)
        kept = survivors(layers, gains.mean, gains.covariance, rung.keep)
        self.progress.say(f"search: after step {rung.step} layers {', '.join(map(str, kept))} go on")
        return kept

    # -- one run ----------------------------------------------------------------------------------------------

    async def _all(self, runs: Sequence[Run], slots: asyncio.Semaphore) -> list[_State]:
        """These runs, side by side, each to its own end."""
        states = [_State(run, self.stage.engine(run.name)) for run in runs]
        await asyncio.gather(*(self._guarded(state, slots) for state in states))
        return states

    async def _combined(self) -> list[Run]:
        """The runs over several layers, picked from the layer runs that are finished now, or from another table."""
        if not self.spec.combine:
            return []
        from .combine import pick, read_profile

        table = read_profile(self.spec.profile) if self.spec.profile else await self.table()
        selections = [pick(run, table, self.plan.architecture.layers) for run in self.spec.combine]
        for selection in selections:
            self.progress.say(f"{selection.name}: layers {', '.join(map(str, selection.layers))}")
        runs = [Run(selection, seed) for seed in self.spec.seeds for selection in selections]
        for run in runs:
            self.progress.add(run.name)
            await self.stage.collector.add_run.remote(self.stage.fact(run))
        return runs

    async def _guarded(self, state: _State, slots: asyncio.Semaphore) -> None:
        """A run to its end; a failure is its own."""
        run = state.run
        async with slots:
            began = time.monotonic()
            reason = None
            try:
                state.status = await self._train(state)
            except (ray.exceptions.RayError, Collapsed) as error:
                state.status, reason = "failed", reason_of(error)
                if self.halving:
                    await self.halving.leave(run.name)
            finally:
                if state.crew:
                    await self.stage.dismiss(state.crew)
            await self._report(run, status=state.status, reason=reason, seconds=time.monotonic() - began)
            self.progress.ended(run.name, state.status, reason)

    async def _train(self, state: _State) -> str:
        """All steps and evaluations of a run; "completed", or "pruned" where a search stopped it."""
        spec, last = self.spec, self.spec.training.steps
        state.crew, facts = await self.stage.hire(state.run)
        await self._report(state.run, **facts)
        while state.steps < last:
            await self._step(state, state.steps)
            if state.steps in self.plan.evaluation_steps:
                await self._evaluate(state, state.steps)
            if self.halving and state.run.name in self.halving.runs and state.steps in self.halving.rungs:
                if not await self.halving.goes_on(state.run.name, state.steps):
                    break
        folder = f"{self.plan.folder}/overlays/{state.run.name}"
        await asyncio.gather(*(trainer.finish.remote(folder) for trainer in state.crew.trainers))
        if state.steps < last:
            return "pruned"
        # Choosing among a search's finalists is where most would otherwise be lost: they get more samples.
        searched = self.halving is not None and state.run.name in self.halving.runs
        has_final = any(suite.final_prompts for suite in spec.evaluation.suites)
        await self._evaluate(state, last, factor=self.halving.final_samples if searched and not has_final else 1)
        return "completed"

    async def _step(self, state: _State, step: int) -> None:
        """Rollout, update, push, record."""
        run, began = state.run, time.monotonic()
        experience = self._rollout(state, step)
        updates = [trainer.update.options(num_returns=2).remote(experience, step) for trainer in state.crew.trainers]
        metrics = (await asyncio.gather(*(metrics for metrics, _ in updates)))[0]
        updated = time.monotonic()
        pushed = await state.engine.push.remote(run.name, state.version + 1, updates[0][1])
        state.version, state.steps = state.version + 1, step + 1
        finished = time.monotonic()
        metrics |= {
            "pushed_bytes": pushed.bytes,
            "push_cpu_seconds": pushed.cpu_seconds,
            "driver_cpu_seconds": self._own_cpu(),
            "sync_seconds": finished - updated,
        }
        worked = sum(metrics[f"{phase}_seconds"] for phase in ("rollout", "reward", "update"))
        metrics["wait_seconds"] = max(0.0, updated - began - worked)
        self.stage.collector.record_step.remote(run.selection.name, run.seed, step, metrics)
        self.progress.stepped(run.name, step + 1, metrics, finished - began)
        self._check(state, metrics)

    def _own_cpu(self) -> float:
        """CPU seconds of this process, Ray's client in it included, since any run's last step: their sum is all."""
        before, self.cpu = self.cpu, time.process_time()
        return self.cpu - before

    def _rollout(self, state: _State, step: int) -> Any:
        """A reference to the step's experience. At the first step every run is the base: one batch serves all."""
        seed = state.run.seed
        if step:
            return self.stage.rollouts.rollout.remote(state.engine, state.run.name, state.version, seed, step)
        if seed not in self.first:
            self.first[seed] = self.stage.rollouts.rollout.remote(state.engine, None, 0, seed, 0)
        return self.first[seed]

    def _check(self, state: _State, metrics: dict[str, float]) -> None:
        # Penalties keep an environment's mean reward from being exactly 0: its success says it.
        reward = metrics.get("success_rate", metrics["reward_mean"])
        state.zero_reward = state.zero_reward + 1 if reward == 0 else 0
        if state.zero_reward >= ZERO_REWARD_PATIENCE:
            raise Collapsed(f"collapsed: no reward at all for {ZERO_REWARD_PATIENCE} steps")

    async def _report(self, run: Run, **facts: Any) -> None:
        await self.stage.collector.update_run.remote(run.selection.name, run.seed, **facts)

    # -- evaluation -------------------------------------------------------------------------------------------

    async def _evaluate_base(self) -> None:
        run = Run(Selection.base(), self.spec.seeds[0])
        began = time.monotonic()
        await self._evaluate(_State(run, self.stage.engines[0]), 0)
        await self._report(run, status="completed", seconds=time.monotonic() - began)
        self.base_scored.set()

    async def _evaluate(self, state: _State, step: int, split: str = "selection", factor: int = 1) -> None:
        """All suites of one run with `factor` times their samples, beside whatever else the engine has to do."""
        name = state.run.name if state.version else None
        suites = [s for s in self.spec.evaluation.suites if split == "selection" or s.final_prompts]
        calls = [
            self.stage.rollouts.evaluate.remote(
                state.engine, name, state.version, s.name, split, state.run.seed, s.samples * factor, greedy
            )
            for s in suites
            for greedy in ((False, True) if self.spec.evaluation.greedy else (False,))
        ]
        for columns in calls:
            await self.stage.collector.record_scores.remote(state.run.selection.name, state.run.seed, step, columns)

    async def _finals(self, states: list[_State]) -> None:
        """Base, full and the best once more, on prompts that picked none of them, with four times the samples."""
        if not any(suite.final_prompts for suite in self.spec.evaluation.suites):
            return
        table = await self.table()
        scored = table[(table["status"] == "completed") & table["score"].notna()]
        layers = scored[scored["kind"] == "layer"].nlargest(self.spec.evaluation.finalists, "score")
        chosen = {"full", *layers["selection"], *scored.loc[scored["kind"] == "layers", "selection"]}
        self.progress.say(f"scoring base and {', '.join(sorted(chosen))} on the final split")
        base = _State(Run(Selection.base(), self.spec.seeds[0]), self.stage.engines[0])
        finalists = [state for state in states if state.run.selection.name in chosen]
        await asyncio.gather(
            self._evaluate(base, 0, "final", FINAL_SAMPLES),
            *(self._evaluate(state, self.spec.training.steps, "final", FINAL_SAMPLES) for state in finalists),
        )


def reason_of(error: Exception) -> str:
    """One line that a person understands: the cause itself, not Ray's report of it."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:500]


def run_plan(plan: Plan, progress: Progress, trainer_environment: dict[str, Any]) -> tuple[bool, Any]:
    """Run to the end on an initialised Ray. Returns whether every run completed, and the contribution table."""

    async def everything() -> tuple[bool, Any]:
        driver = Driver(plan, progress, trainer_environment)
        return await driver.run(), await driver.table()

    return asyncio.run(everything())
