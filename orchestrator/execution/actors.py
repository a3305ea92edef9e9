"""The actors of a sweep: created, placed and replaced here."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import ray
from ray.util.placement_group import remove_placement_group

from layersweep.orchestrator.planning.gpu_allocation import SUPPORT_ACTOR, PlacementError
from layersweep.orchestrator.planning.placement import all_runs_fit, allocate, placement_problems, preferred_nodes
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.policies.algorithms.rejection_sampling import RejectionSampling
from layersweep.policies.config import PretrainedModel, TinyModel
from layersweep.policies.selection import Selection
from layersweep.workers.actors.collector import Collector
from layersweep.workers.actors.engine import Engine
from layersweep.workers.actors.ray_placement import bundle_of, gang, node_affinity, wait_until_placed
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.actors.trainer import Trainer
from layersweep.workers.actors.variant_maker import VariantMaker
from layersweep.workers.config import ActorResources, LearningRates
from layersweep.workers.startup.environment import enter_folder
from layersweep.workers.startup.model_cache import exists
from layersweep.workers.startup.model_source import ModelSource, read_folder
from layersweep.workers.startup.tiny_model import cache_folder
from layersweep.workers.storage.responses import ResponseKeeper
from layersweep.workers.training.setup import TrainingSetup

from .clients import CollectorClient, EngineClient, RolloutClient, TrainerGroup, TrainerInfo, VariantClient
from .engine_pool import EnginePool, engine_dtype
from .engine_slot import EngineSlot
from .ray_nodes import alive_nodes, cpus_of, resources_of
from .shared_gpus import SharedGpuPool
from .slots import Slots

RESTARTABLE = {"max_restarts": -1, "max_task_retries": -1}
"""Ray's options for the collector, the rollout worker and the maker of variants: it restarts them and repeats their
calls, which may therefore come twice."""


class SweepActors:
    """Engines, rollout worker, collector and trainers of one plan, on an initialised Ray.

    `create` makes one; the constructor takes what it has created.

    Args:
        plan: what will be run.
        actor_environment: Ray's runtime environment of engines and trainers.
        model: the base model, at hand for every actor.
        shared_gpus: GPUs that layer trainers share; None on CPUs.
    """

    def __init__(
        self,
        plan: Plan,
        actor_environment: dict[str, Any],
        engines: EnginePool,
        collector: CollectorClient,
        rollout_worker: RolloutClient,
        model: ModelSource,
        shared_gpus: SharedGpuPool | None = None,
    ):
        self.plan, self.spec, self.actor_environment = plan, plan.spec, actor_environment
        self.engines, self.collector, self.rollout_worker = engines, collector, rollout_worker
        self.model, self.shared_gpus = model, shared_gpus
        self.restartable = {"the collector": collector, "the rollout worker": rollout_worker}
        """The actors that Ray restarts, by what they are called in messages."""
        self.update_slots: Slots[str] = Slots(cpus_of)
        """CPUs of each node, by Ray's id; a rank holds one while it updates.

        Ray lets more trainers onto a node than it has CPUs, since most of them wait for the engine. If all updated at
        once they would end together, long after the first could have, and leave the engine without work until then;
        and the activations of all of them would be in memory.
        """
        self.placing = asyncio.Lock()
        """Held by a run while Ray finds room for all its ranks."""

    @classmethod
    async def create(
        cls,
        plan: Plan,
        actor_environment: dict[str, Any],
        say: Callable[[str], None],
        trains: bool = True,
        engines: Mapping[str, EngineClient] | None = None,
    ) -> "SweepActors":
        """Create and start all actors but the trainers.

        Engines come first: importing vLLM is what everything else waits for, and can overlap with.

        Args:
            trains: whether there will be trainers, which GPUs are prepared for.
            engines: those that another sweep left, by name; the first of each slot.
        """
        spec, resources, nodes = plan.spec, plan.spec.resources, alive_nodes()
        engine_nodes, support_nodes = (
            [node_affinity(nodes[number]["NodeID"]) for number in numbers]
            for numbers in preferred_nodes(plan, resources_of(nodes))
        )

        def create_engine(number: int, name: str) -> EngineClient:
            options: dict[str, Any] = {"max_concurrency": 10_000, "runtime_env": actor_environment}
            if engine_nodes:
                options["scheduling_strategy"] = engine_nodes[number]
            return EngineClient(create_actor(Engine, name, resources.engine, **options).remote(number))

        names = [f"Engine-{number}" for number in range(resources.engines)]
        first_engines = [engines[name] if engines else create_engine(number, name) for number, name in enumerate(names)]
        collector_options, rollout_options = (
            {"scheduling_strategy": node, **RESTARTABLE} for node in support_nodes or ["DEFAULT"] * 2
        )
        base = Run(Selection.base(), spec.seeds[0])
        metadata = [run_metadata(plan, run) for run in (base, *plan.runs, *plan.trials, *plan.controls)]
        table = partial(sweep_table, _table_constants(plan), seed_sd=spec.evaluation.seed_sd)
        by_suite = partial(suite_table, spec.name, seed_sd=spec.evaluation.seed_sd)
        collector = CollectorClient(
            create_actor(Collector, "Collector", SUPPORT_ACTOR, **collector_options).remote(
                plan.folder, metadata, table, by_suite, spec.training.steps, spec.name, spec.tracking
            )
        )  # fmt: skip
        model = await base_model(plan, say)
        rollout_options["max_concurrency"] = 10_000
        rollout_worker = RolloutClient(
            create_actor(RolloutWorker, "RolloutWorker", SUPPORT_ACTOR, **rollout_options).remote(
                model,
                spec.task,
                spec.evaluation.suites,
                spec.training,
                plan.window,
                ResponseKeeper(plan.folder, spec.responses, plan.final_evaluations),
                spec.algorithm.build().max_num_gen_batches,
                plan.first_rollouts,
            )
        )  # fmt: skip
        pool = EnginePool(plan, first_engines, create_engine, model, collector)
        await (pool.take_over() if engines else pool.start())
        shared_gpus = None
        if trains and resources.on_gpu() and (found := allocate(plan, resources_of(nodes))).shared_gpus:
            shared_gpus = await SharedGpuPool.create(
                found.shared_gpus, found.joining, resources.trainer, model, spec.training.dtype
            )
        return cls(plan, actor_environment, pool, collector, rollout_worker, model, shared_gpus)

    def max_concurrent_runs(self) -> int:
        """Count the runs that can train at the same time now."""
        return max_concurrent_runs(self.plan, joined=self.shared_gpus is not None and self.shared_gpus.joined.is_set())

    def all_runs_fit(self) -> bool:
        """Tell whether all runs can train at the same time now: a search may then keep trainers while runs wait."""
        return all_runs_fit(self.plan, resources_of(alive_nodes()))

    def leave_engines(self) -> dict[str, EngineClient]:
        """Return the engines for another sweep, none if one had to be replaced; the trainers' GPUs go back to Ray."""
        if self.shared_gpus:
            self.shared_gpus.close()
        slots = self.engines.slots
        return {} if any(slot.attempts for slot in slots) else {slot.name: slot.engine for slot in slots}

    # -- trainers ---------------------------------------------------------------------------------------------

    async def start_trainers(
        self, run: Run, engine: EngineSlot, learning_rate: float
    ) -> tuple[TrainerGroup, TrainerInfo]:
        """Place and start trainers for a run, at step 0.

        Raises:
            ray.exceptions.RayError: they could not be; what they held is released.
        """
        spec, rates = self.spec, LearningRates(layer=learning_rate, full=learning_rate)
        setup = TrainingSetup(
            RejectionSampling() if run.control and run.control.supervised else spec.algorithm,
            spec.training.model_copy(update={"learning_rate": rates}),
            spec.deepspeed,
            engine_dtype(self.plan),
            stale=spec.rollout.staleness > 0,
        )
        trainers = await self.create_trainers(run)
        try:
            device = await engine.engine.device()
            info = await trainers.start(self.model, setup, device, spec.rollout.weight_transfer)
        except BaseException:
            await trainers.stop()
            raise
        return trainers, info

    async def create_trainers(self, run: Run) -> TrainerGroup:
        """Create an actor for each rank, all of them placed.

        All ranks get their resources or none does: half a gang, of one sweep or of two on the same cluster, would wait
        for ever.
        """
        resources, trains_all = self.spec.resources, run.selection.trains_all
        needs = (resources.full_trainer if trains_all else None) or resources.trainer
        ranks = resources.full_trainer_ranks if trains_all else resources.trainer_ranks
        async with contextlib.AsyncExitStack() as held:
            group = shared_gpu = None
            if self.shared_gpus and not trains_all:  # one rank: plans refuse several that could share a GPU
                shared_gpu = await held.enter_async_context(self.shared_gpus.hold())
            else:
                # First come, first served: ranks that wait for several nodes would else see each of them taken, as
                # soon as it is free, by a run that needs but one.
                async with self.placing:
                    if ranks > 1 and needs.cpus + needs.gpus:
                        group = gang(needs, ranks)
                        held.callback(remove_placement_group, group)
                        while not await wait_until_placed(group) and self._could_be_placed():
                            pass
            trainers, reward = [], run.control.reward if run.control else None
            for rank in range(ranks):
                options: dict[str, Any] = {"runtime_env": self.actor_environment}
                if shared_gpu:
                    options["scheduling_strategy"] = shared_gpu.strategy()
                elif group:
                    options["scheduling_strategy"] = bundle_of(group, rank)
                name = f"Trainer-{run.name}" + (f"-rank{rank}" if ranks > 1 else "")
                factory = create_actor(Trainer, name, needs, **options)
                trainers.append(factory.remote(run.selection, run.seed, rank, ranks, needs.gpus, reward))
                held.callback(ray.kill, trainers[-1])
                if shared_gpu:
                    shared_gpu.trainers.append(trainers[-1])
                    held.callback(shared_gpu.trainers.remove, trainers[-1])
            nodes = await asyncio.gather(*(trainer.node.remote() for trainer in trainers))
            base_weights = shared_gpu.base_weights if shared_gpu else None
            return TrainerGroup(trainers, [] if resources.on_gpu() else nodes, held.pop_all(), base_weights)

    def create_variant_maker(self, folder: str) -> VariantClient:
        """Create the actor that makes weights from the overlays in a sweep's folder."""
        create = create_actor(VariantMaker, "VariantMaker", SUPPORT_ACTOR, **RESTARTABLE)
        return VariantClient(create.remote(self.model, folder))

    def _could_be_placed(self) -> bool:
        """Tell whether only other actors are in the way of the plan's trainers."""
        return not placement_problems(self.plan, resources_of(alive_nodes()))


def max_concurrent_runs(plan: Plan, joined: bool = False) -> int:
    """Count the runs of a plan that can train at the same time: as its spec says, else what the cluster has room for
    now, at least 1.

    Args:
        joined: whether the GPUs of whole-model runs take layer runs by now.
    """
    resources = plan.spec.resources
    if resources.concurrent_runs:
        return resources.concurrent_runs
    try:
        found = allocate(plan, resources_of(alive_nodes()))
    except PlacementError:  # nodes were lost, and others may come
        return 1
    if resources.on_gpu():
        fitting = joined and found.last_layer_runs or found.runs
    else:
        fitting = found.layer_ranks // resources.trainer_ranks
    return max(1, min(len(plan.runs), fitting))


def run_metadata(plan: Plan, run: Run) -> dict[str, Any]:
    """Describe a run (or the base) before it starts, for the collector."""
    selection, count = run.selection, plan.architecture.layers
    kind = (
        "trial" if run.trial else
        "control" if run.control else
        "layers" if selection.kind == "boost" else selection.kind
    )  # fmt: skip
    one = len(selection.layers) == 1 and kind in ("layer", "part", "control")
    layer = selection.layers[0] if one else None
    return {
        "selection": selection.name,
        "seed": run.seed,
        "kind": kind,
        "layer": layer,
        "depth": None if layer is None else layer / max(1, count - 1),
        "layers": list(selection.layers),
        "modules": selection.modules,
        "lora_rank": selection.lora and selection.lora.rank,
        "lora_alpha": selection.lora and selection.lora.alpha,
        "control": run.control and run.control.type,
        "control_of": run.control_of,
        "learning_rate": None,
        "trainable_parameters": 0 if selection.kind == "base" else None,
        "seconds": 0.0,
    }


def create_actor(cls: type, name: str, needs: ActorResources, **options: Any) -> Any:
    """Make Ray's factory of an actor: its `remote` takes the constructor's arguments."""
    return _remote(cls).options(name=name, num_cpus=needs.cpus, num_gpus=needs.gpus, **options)


@cache
def _remote(cls: type) -> Any:
    """Make Ray's actor class once: it would be exported anew for every actor, 12 ms of the driver and memory."""
    return ray.remote(cls)


async def base_model(plan: Plan, say: Callable[[str], None]) -> ModelSource:
    """Have the base at hand for every actor; a tiny one is made first."""
    model, task = plan.spec.model, plan.spec.task
    if isinstance(model, PretrainedModel):
        return plan.source
    if exists(folder := cache_folder(model, task)):
        return ModelSource.of_tiny(str(folder), read_folder(folder))
    say("warming up the tiny base model (cached afterwards)")
    path, files = await ray.remote(_make_tiny_model).options(name="warm-up", num_cpus=0.1).remote(model, task)
    return ModelSource.of_tiny(path, files)


def _make_tiny_model(model: TinyModel, task: Any) -> tuple[str, dict[str, bytes]]:
    enter_folder()
    folder = cache_folder(model, task)
    if not exists(folder):  # on this node
        from layersweep.workers.startup.tiny_model_training import (
            make_tiny_model,  # imports torch and transformers: seconds
        )

        make_tiny_model(model, task)
    return str(folder), read_folder(folder)


def _table_constants(plan: Plan) -> dict[str, str | int]:
    """Return columns of the contribution table that are the same in every row."""
    spec = plan.spec
    return {
        "sweep": spec.name,
        "model": spec.model.path if isinstance(spec.model, PretrainedModel) else "tiny",
        "algorithm": spec.algorithm.type,
        "task": spec.task.type,
        "learning_rate_policy": spec.training.learning_rate.policy,
        "model_layers": plan.architecture.layers,
    }
