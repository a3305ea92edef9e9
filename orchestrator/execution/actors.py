"""The actors of a sweep, started where they belong."""

import asyncio
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from layersweep.orchestrator.planning.gpu_allocation import SUPPORT_ACTOR, PlacementError
from layersweep.orchestrator.planning.placement import all_at_once, homes, placement_problems, places, whole_runs
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.policies.config import PretrainedModel, TinyModel
from layersweep.policies.selection import Selection
from layersweep.workers.actors.collector import Collector
from layersweep.workers.actors.engine import Engine
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.actors.shared_gpu import SharedGpu, SharedGpuPool, gang, near, on, placed
from layersweep.workers.actors.trainer import Trainer
from layersweep.workers.config import ActorResources, LearningRates
from layersweep.workers.startup.tiny_model import ModelSource, cache_folder, is_made, pack

from .engine_slot import EngineSlot
from .ray_nodes import alive_nodes, cpus_of, resources_of
from .sleep_phases import Kind, NoSleepPhases, SleepPhases
from .update_slots import UpdateSlots

RESTARTABLE = {"max_restarts": -1, "max_task_retries": -1}
"""Of the collector and the rollout worker: Ray starts them again and repeats their calls, which may come twice."""


class TrainerGroup:
    """The trainers of one run: an actor per data-parallel rank, rank 0 first."""

    def __init__(self, trainers: list[Any], berths: list[SharedGpu]):
        self.trainers, self.berths = trainers, berths
        self.group: PlacementGroup | None = None
        """Of several ranks that do not share GPUs with other runs."""
        self.nodes: list[str] = []
        """Ray's id of each rank's node, where its CPUs compute; none on GPUs."""


class SweepActors:
    """Engines, rollout worker, collector and trainers of one plan, on an initialised Ray.

    Args:
        plan: what will be run.
        actor_environment: Ray's runtime environment of engines and trainers.
    """

    def __init__(self, plan: Plan, actor_environment: dict[str, Any]):
        self.plan, self.spec = plan, plan.spec
        self.actor_environment = actor_environment
        self.gpu = plan.spec.resources.on_gpu()
        rates = self.spec.training.learning_rate
        self.rates = rates if isinstance(rates, LearningRates) else None
        """Of all but trials; None until they are found."""
        self.place_of: dict[str, EngineSlot] = {}
        self.berths: SharedGpuPool | None = None
        self.queue = asyncio.Lock()
        self.turns = UpdateSlots(cpus_of)
        self.phases = SleepPhases(self.begin_phase) if plan.spec.rollout.sleep else NoSleepPhases()
        """That runs take part in while they write and while they train."""

    async def start(self, say: Callable[[str], None]) -> None:
        """Engines first: importing vLLM is what everything else can wait for, and overlaps with."""
        spec, resources = self.spec, self.spec.resources
        nodes = alive_nodes()
        self.engine_homes, small_homes = (
            [near(nodes[k]["NodeID"]) for k in numbers] for numbers in homes(self.plan, resources_of(nodes))
        )
        collector, rollouts = ({"scheduling_strategy": home} for home in small_homes or ["DEFAULT"] * 2)
        self.places = [
            EngineSlot(partial(self._engine, i), self._start_engine, f"Engine-{i}") for i in range(resources.engines)
        ]
        base = Run(Selection.base(), spec.seeds[0])
        facts = [self.fact(run) for run in (base, *self.plan.runs, *self.plan.trials)]
        self.collector = self._actor(Collector, "Collector", SUPPORT_ACTOR, **RESTARTABLE, **collector).remote(
            self.plan.folder, facts, partial(sweep_table, self._constants()), spec.training.steps, spec.name,
            spec.tracking,
        )  # fmt: skip
        self.model = await self._base_model(say)
        rollouts |= {"max_concurrency": 10_000} | RESTARTABLE
        self.rollouts = self._actor(RolloutWorker, "RolloutWorker", SUPPORT_ACTOR, **rollouts).remote(
            self.model, spec.task, spec.evaluation.suites, spec.training
        )
        self.standing = {"the collector": self.collector, "the rollout worker": self.rollouts}
        # vLLM measures how much of its GPU is free, twice: nobody may take memory there meanwhile.
        await asyncio.gather(*(place.start() for place in self.places))
        if self.gpu and (shares := places(self.plan, resources_of(nodes)).berths):
            self.berths = SharedGpuPool(shares, resources.trainer)
            await self.berths.load(self.model, spec.training.dtype, self._trusted())

    def rooms(self) -> int:
        """How many runs can train at the same time: as asked, else what the cluster has room for now."""
        resources, runs = self.spec.resources, len(self.plan.runs)
        if resources.concurrent_runs:
            return resources.concurrent_runs
        try:
            found = places(self.plan, resources_of(alive_nodes()))
        except PlacementError:  # nodes were lost, and others may come
            return 1
        there = found.runs if self.gpu else found.layer_ranks // resources.trainer_ranks
        return max(1, min(runs, there))

    def has_places_for_all(self) -> bool:
        """Whether all runs can train at the same time now: a search may then keep trainers while runs wait for each
        other."""
        return all_at_once(self.plan, resources_of(alive_nodes()))

    def place(self, run: str) -> EngineSlot:
        """Engines are dealt out in turn; a run stays with its engine's place."""
        return self.place_of.setdefault(run, self.places[len(self.place_of) % len(self.places)])

    def _could_be_placed(self) -> bool:
        """Whether nothing but other actors is in the way of the plan's crews."""
        return not placement_problems(self.plan, resources_of(alive_nodes()))

    def _engine(self, number: int, name: str) -> Any:
        options: dict[str, Any] = {"max_concurrency": 10_000, "runtime_env": self.actor_environment}
        if self.engine_homes:
            options["scheduling_strategy"] = self.engine_homes[number]
        return self._actor(Engine, name, self.spec.resources.engine, **options).remote(number)

    async def _start_engine(self, engine: Any) -> None:
        rollout, training = self.spec.rollout, self.spec.training
        dtype = training.dtype if rollout.dtype == "auto" else rollout.dtype
        async with self.phases.of("writing"):  # it starts awake
            whole = whole_runs(self.plan) > 0
            start = engine.start.remote(self.model, self.plan.architecture.name, rollout, dtype, 0, whole)
            who, where = await start
        self.collector.place.remote(who, where)

    async def begin_phase(self, kind: Kind) -> None:
        """Engines asleep for training, awake for writing. One that fails at it is ended, so that it holds no memory:
        whoever needs it next has it replaced."""

        async def change(engine: Any) -> None:
            answer = engine.wake.remote() if kind == "writing" else engine.sleep.remote()
            try:
                await asyncio.wait_for(answer, self.spec.recovery.patience)
            except (ray.exceptions.RayError, TimeoutError):
                ray.kill(engine)

        await asyncio.gather(*(change(place.actor) for place in self.places))

    async def hire(self, run: Run, place: EngineSlot) -> tuple[TrainerGroup, dict[str, Any]]:
        """Trainers for a run, started; and what is known of it then (trainable_parameters, learning_rate,
        trunk, where)."""
        spec, crew = self.spec, TrainerGroup([], [])
        rate = run.learning_rate or self.rates.of(run.selection.whole)
        training = spec.training.model_copy(update={"learning_rate": LearningRates(layer=rate, full=rate)})
        try:
            address = await self._assemble(crew, run)
            engine_device = await place.actor.device.remote()
            facts = await asyncio.gather(
                *(
                    trainer.start.remote(
                        self.model, address, spec.algorithm.build(), training, spec.deepspeed, self._trusted(),
                        engine_device, spec.rollout.weight_transfer, crew.berths[rank].shared if crew.berths else None,
                    )
                    for rank, trainer in enumerate(crew.trainers)
                )
            )  # fmt: skip
        except (ray.exceptions.RayError, asyncio.CancelledError):
            await self.dismiss(crew)
            raise
        known = {name: facts[0][name] for name in ("trainable_parameters", "trunk")}
        known["where"] = " + ".join(dict.fromkeys(fact["where"] for fact in facts))
        return crew, {"learning_rate": rate} | known

    async def _assemble(self, crew: TrainerGroup, run: Run) -> tuple[str, int]:
        """A trainer for each rank, all of them placed; the address of rank 0."""
        resources, whole = self.spec.resources, run.selection.whole
        needs = (resources.full_trainer if whole else None) or resources.trainer
        ranks = resources.full_trainer_ranks if whole else resources.trainer_ranks
        aboard = self.berths is not None and not whole
        if not aboard:
            # First come, first served: ranks that wait for several places would else see each of them taken, as soon
            # as it is free, by a run that needs but one.
            async with self.queue:
                if ranks > 1 and needs.cpus + needs.gpus:
                    crew.group = gang(needs, ranks)
                    while not await placed(crew.group) and self._could_be_placed():
                        pass
        for rank in range(ranks):
            options: dict[str, Any] = {"runtime_env": self.actor_environment}
            if aboard:  # alone: ranks that could share a GPU are refused
                crew.berths.append(await self.berths.board())
                options["scheduling_strategy"] = crew.berths[-1].strategy()
            elif crew.group:
                options["scheduling_strategy"] = on(crew.group, rank)
            name = f"Trainer-{run.name}" + (f"-rank{rank}" if ranks > 1 else "")
            actor = self._actor(Trainer, name, needs, **options)
            crew.trainers.append(actor.remote(run.selection, run.seed, rank, ranks, self.gpu))
        addresses = await asyncio.gather(*(trainer.address.remote() for trainer in crew.trainers))
        if not self.gpu:
            crew.nodes = await asyncio.gather(*(trainer.node.remote() for trainer in crew.trainers))
        return addresses[0]

    async def dismiss(self, crew: TrainerGroup) -> None:
        """End a run's trainers and free what they held."""
        for trainer in crew.trainers:
            ray.kill(trainer)
        if crew.group:
            remove_placement_group(crew.group)
        for berth in crew.berths:
            await self.berths.leave(berth)

    def fact(self, run: Run) -> dict[str, Any]:
        """What the collector knows of a run (or of the base) before it starts."""
        selection, count = run.selection, self.plan.architecture.layers
        kind = "trial" if run.trial else "layers" if selection.kind == "boost" else selection.kind
        layer = selection.layers[0] if kind == "layer" else None
        return {
            "selection": selection.name,
            "seed": run.seed,
            "kind": kind,
            "layer": layer,
            "depth": None if layer is None else layer / max(1, count - 1),
            "layers": list(selection.layers),
            "learning_rate": None,
            "trainable_parameters": 0 if selection.kind == "base" else None,
            "seconds": 0.0,
        }

    def _actor(self, cls: type, name: str, needs: ActorResources, **options: Any) -> Any:
        return _remote(cls).options(name=name, num_cpus=needs.cpus, num_gpus=needs.gpus, **options)

    def _trusted(self) -> bool:
        return isinstance(self.spec.model, PretrainedModel) and self.spec.model.trust_remote_code

    async def _base_model(self, say: Callable[[str], None]) -> ModelSource:
        model = self.spec.model
        if isinstance(model, PretrainedModel):
            return ModelSource(model.path)
        if is_made(folder := cache_folder(model, self.spec.task)):
            return ModelSource(str(folder), ray.put(pack(folder)))
        say("warming up the tiny base model (cached afterwards)")
        made = ray.remote(_make_tiny_model).options(name="warm-up", num_cpus=0.1).remote(model, self.spec.task)
        place, files = await made
        return ModelSource(place, ray.put(files))

    def _constants(self) -> dict[str, str | int]:
        """Columns of the contribution table that are the same in every row."""
        spec = self.spec
        model = spec.model.path if isinstance(spec.model, PretrainedModel) else "tiny"
        return {
            "sweep": spec.name,
            "model": model,
            "algorithm": spec.algorithm.type,
            "task": spec.task.type,
            "learning_rate_policy": spec.training.learning_rate.policy,
            "model_layers": self.plan.architecture.layers,
        }


@cache
def _remote(cls: type) -> Any:
    """Once for each class: Ray would export it anew for every actor, 12 ms of the driver and memory that stays."""
    return ray.remote(cls)


def _make_tiny_model(model: TinyModel, task: Any) -> tuple[str, dict[str, bytes]]:
    folder = cache_folder(model, task)
    if not is_made(folder):  # on this node
        from layersweep.workers.startup.tiny_model_training import (
            make_tiny_model,  # imports torch and transformers: seconds
        )

        make_tiny_model(model, task)
    return str(folder), pack(folder)
