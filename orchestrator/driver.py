"""The driver: one coroutine per run around shared engines, all of them at once.

Data never passes through here. The driver hands object references on: experience from the rollout worker to the
trainer, weights from the trainer to the engine, and to the collector what is to be kept.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from policies.config import PretrainedModel, TinyModel
from policies.selection import Selection
from workers.collector import Collector
from workers.config import ActorResources
from workers.engine import Engine
from workers.rollout import RolloutWorker
from workers.trainer import Trainer

from .plan import Plan, Run
from .progress import Progress
from .table import sweep_table

ZERO_REWARD_PATIENCE = 20
"""Steps of no reward at all after which a run counts as collapsed: nothing is left to reinforce."""


class Collapsed(RuntimeError):
    """A run whose training has broken down; the others go on."""


@dataclass
class _State:
    """Of one run while it trains."""

    run: Run
    engine: Any
    trainers: list[Any] = field(default_factory=list)
    version: int = 0
    zero_reward: int = 0


class Driver:
    """Runs a plan to its end on an initialised Ray.

    Args:
        plan: what to run.
        progress: where it is shown.
        trainer_environment: Ray's runtime environment of trainer actors.
    """

    def __init__(self, plan: Plan, progress: Progress, trainer_environment: dict[str, Any]):
        self.plan, self.spec, self.progress = plan, plan.spec, progress
        self.trainer_environment = trainer_environment
        self.gpu = plan.spec.resources.on_gpu()
        self.first: dict[int, Any] = {}
        self.engine_of: dict[str, Any] = {}

    async def run(self) -> bool:
        """Everything: start, train, evaluate, write. True when every run completed."""
        began = time.monotonic()
        try:
            await self._start()
            self.progress.started(time.monotonic() - began)
            states = [_State(run, self._deal(run.name)) for run in self.plan.runs]
            slots = asyncio.Semaphore(self._concurrency())
            done = await asyncio.gather(self._evaluate_base(), *(self._guarded(state, slots) for state in states))
            await self._finals([state for state, fine in zip(states, done[1:], strict=True) if fine])
            await self.collector.write.remote()
            return all(done)
        finally:
            self.progress.close()

    async def table(self) -> Any:
        return await self.collector.table.remote()

    # -- starting ---------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Engines first: importing vLLM is what everything else can wait for, and overlaps with."""
        spec, resources = self.spec, self.spec.resources
        self.engines = [
            self._actor(Engine, f"Engine-{i}", resources.engine, max_concurrency=10_000).remote(i)
            for i in range(resources.engines)
        ]
        small = ActorResources(cpus=0.05)
        self.collector = self._actor(Collector, "Collector", small).remote(
            self.plan.folder, self._facts(), partial(sweep_table, self._constants())
        )
        self.model = await self._base_model()
        self.rollouts = self._actor(RolloutWorker, "RolloutWorker", small, max_concurrency=10_000).remote(
            self.model, spec.task, spec.evaluation.suites, spec.training
        )
        dtype = spec.training.dtype if spec.rollout.dtype == "auto" else spec.rollout.dtype
        await asyncio.gather(
            *(e.start.remote(self.model, self.plan.architecture.name, spec.rollout, dtype, 0) for e in self.engines)
        )

    def _actor(self, cls: type, name: str, needs: ActorResources, **options: Any) -> Any:
        return ray.remote(cls).options(name=name, num_cpus=needs.cpus, num_gpus=needs.gpus, **options)

    async def _base_model(self) -> str:
        """A folder or hub name that every node can load."""
        model = self.spec.model
        if isinstance(model, PretrainedModel):
            return model.path
        self.progress.say("warming up the tiny base model (cached afterwards)")
        return await ray.remote(_make_tiny_model).options(name="warm-up", num_cpus=0.1).remote(model, self.spec.task)

    def _concurrency(self) -> int:
        """How many runs train at the same time: as asked, else what the cluster has room for."""
        if self.spec.resources.concurrent_runs:
            return self.spec.resources.concurrent_runs
        free = ray.cluster_resources()
        rooms = [len(self.plan.runs)]
        needs, ranks = self.spec.resources.trainer, self.spec.resources.trainer_ranks
        for have, need in ((free.get("CPU", 0) - 1, needs.cpus), (free.get("GPU", 0) - 1, needs.gpus)):
            if need:
                rooms.append(int(have / (need * ranks)))
        return max(1, min(rooms))

    def _deal(self, name: str) -> Any:
        """Engines in turn; a run stays with its engine."""
        return self.engine_of.setdefault(name, self.engines[len(self.engine_of) % len(self.engines)])

    def _facts(self) -> list[dict[str, Any]]:
        """What the collector knows of base and runs from the start."""
        count, rates = self.plan.architecture.layers, self.spec.training.learning_rate
        base = Run(Selection.base(), self.spec.seeds[0])
        facts = []
        for run in (base, *self.plan.runs):
            selection = run.selection
            layer = selection.layers[0] if selection.kind == "layer" else None
            facts.append(
                {
                    "selection": selection.name,
                    "seed": run.seed,
                    "kind": selection.kind,
                    "layer": layer,
                    "depth": None if layer is None else layer / max(1, count - 1),
                    "learning_rate": {"base": None, "full": rates.full}.get(selection.kind, rates.layer),
                    "trainable_parameters": 0 if selection.kind == "base" else None,
                    "seconds": 0.0,
                }
            )
        return facts

    def _constants(self) -> dict[str, str]:
        spec = self.spec
        model = spec.model.path if isinstance(spec.model, PretrainedModel) else "tiny"
        return {"sweep": spec.name, "model": model, "algorithm": spec.algorithm.type, "task": spec.task.type}

    # -- one run ----------------------------------------------------------------------------------------------

    async def _guarded(self, state: _State, slots: asyncio.Semaphore) -> bool:
        """A run to its end; a failure is its own."""
        run = state.run
        async with slots:
            began = time.monotonic()
            try:
                await self._train(state)
                await self._evaluate(state, self.spec.training.steps)
                await self._report(run, status="completed", seconds=time.monotonic() - began)
                self.progress.finished(run.name)
                return True
            except (ray.exceptions.RayError, Collapsed) as error:
                reason = _reason(error)
                await self._report(run, status="failed", reason=reason, seconds=time.monotonic() - began)
                self.progress.failed(run.name, reason)
                return False
            finally:
                for trainer in state.trainers:
                    ray.kill(trainer)

    async def _train(self, state: _State) -> None:
        run, spec = state.run, self.spec
        await self._start_trainers(state)
        for step in range(spec.training.steps):
            if spec.evaluation.every and step and step % spec.evaluation.every == 0:
                await self._evaluate(state, step)
            began = time.monotonic()
            experience = self._rollout(state, step)
            updates = [
                trainer.update.options(num_returns=2).remote(experience, step) for trainer in state.trainers
            ]
            metrics = (await asyncio.gather(*(metrics for metrics, _ in updates)))[0]
            updated = time.monotonic()
            metrics["pushed_bytes"] = await state.engine.push.remote(run.name, state.version + 1, updates[0][1])
            state.version += 1
            finished = time.monotonic()
            metrics["sync_seconds"] = finished - updated
            worked = sum(metrics[f"{phase}_seconds"] for phase in ("rollout", "reward", "update"))
            metrics["wait_seconds"] = max(0.0, updated - began - worked)
            self.collector.record_step.remote(run.selection.name, run.seed, step, metrics)
            self.progress.stepped(run.name, step + 1, metrics, finished - began)
            self._check(state, metrics)
        await asyncio.gather(*(t.save_overlay.remote(f"{self.plan.folder}/overlays/{run.name}") for t in state.trainers))

    async def _start_trainers(self, state: _State) -> None:
        run, spec, resources = state.run, self.spec, self.spec.resources
        full = run.selection.kind == "full"
        needs = (resources.full_trainer if full else None) or resources.trainer
        ranks = resources.full_trainer_ranks if full else resources.trainer_ranks
        state.trainers = [
            self._actor(
                Trainer,
                f"Trainer-{run.name}" + (f"-rank{rank}" if ranks > 1 else ""),
                needs,
                runtime_env=self.trainer_environment,
            ).remote(run.selection, run.seed, rank, ranks, self.gpu)
            for rank in range(ranks)
        ]
        address = await state.trainers[0].address.remote()
        trust = isinstance(spec.model, PretrainedModel) and spec.model.trust_remote_code
        facts = await asyncio.gather(
            *(t.start.remote(self.model, address, spec.algorithm, spec.training, spec.deepspeed, trust)
              for t in state.trainers)
        )  # fmt: skip
        await self._report(run, trainable_parameters=facts[0]["trainable_parameters"])

    def _rollout(self, state: _State, step: int) -> Any:
        """A reference to the step's experience. At the first step every run is the base: one batch serves all."""
        seed = state.run.seed
        if step:
            return self.rollouts.rollout.remote(state.engine, state.run.name, state.version, seed, step)
        if seed not in self.first:
            self.first[seed] = self.rollouts.rollout.remote(state.engine, None, 0, seed, 0)
        return self.first[seed]

    def _check(self, state: _State, metrics: dict[str, float]) -> None:
        state.zero_reward = state.zero_reward + 1 if metrics["reward_mean"] == 0 else 0
        if state.zero_reward >= ZERO_REWARD_PATIENCE:
            raise Collapsed(f"collapsed: no reward at all for {ZERO_REWARD_PATIENCE} steps")

    async def _report(self, run: Run, **facts: Any) -> None:
        await self.collector.update_run.remote(run.selection.name, run.seed, **facts)

    # -- evaluation -------------------------------------------------------------------------------------------

    async def _evaluate_base(self) -> bool:
        run = Run(Selection.base(), self.spec.seeds[0])
        began = time.monotonic()
        await self._evaluate(_State(run, self.engines[0]), 0)
        await self._report(run, status="completed", seconds=time.monotonic() - began)
        return True

    async def _evaluate(self, state: _State, step: int, split: str = "selection") -> None:
        """All suites of one run, at the same time as whatever else the engine has to do."""
        factor = 4 if split == "final" else 1
        name = state.run.name if state.version else None
        suites = [s for s in self.spec.evaluation.suites if split == "selection" or s.final_prompts]
        calls = [
            self.rollouts.evaluate.remote(
                state.engine, name, state.version, s.name, split, state.run.seed, s.samples * factor, greedy
            )
            for s in suites
            for greedy in ((False, True) if self.spec.evaluation.greedy else (False,))
        ]
        for columns in calls:
            await self.collector.record_scores.remote(state.run.selection.name, state.run.seed, step, columns)

    async def _finals(self, states: list[_State]) -> None:
        """Base, full and the best layers once more, on prompts that picked none of them, with four times the samples."""
        if not any(suite.final_prompts for suite in self.spec.evaluation.suites):
            return
        table = await self.table()
        layers = table[table["kind"].isin(["layer", "layers"])].nlargest(self.spec.evaluation.finalists, "score")
        chosen = {"full", *layers["selection"]}
        self.progress.say(f"scoring base, full and {', '.join(layers['selection'])} on the final split")
        base = _State(Run(Selection.base(), self.spec.seeds[0]), self.engines[0])
        finalists = [state for state in states if state.run.selection.name in chosen]
        await asyncio.gather(
            self._evaluate(base, 0, "final"),
            *(self._evaluate(state, self.spec.training.steps, "final") for state in finalists),
        )


def _make_tiny_model(model: TinyModel, task: Any) -> str:
    from workers.base_model import make_tiny_model

    return make_tiny_model(model, task)


def _reason(error: Exception) -> str:
    """One line that a person understands: the cause itself, not Ray's report of it."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:500]


def run_plan(plan: Plan, progress: Progress, trainer_environment: dict[str, Any]) -> tuple[bool, Any]:
    """Run to the end on an initialised Ray. Returns whether every run completed, and the contribution table."""

    async def everything() -> tuple[bool, Any]:
        driver = Driver(plan, progress, trainer_environment)
        return await driver.run(), await driver.table()

    return asyncio.run(everything())


