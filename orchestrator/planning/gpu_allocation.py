"""Allocation of actors to GPUs: arithmetic without Ray, so that a plan and a run count alike."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from layersweep.workers.actors.gpu_share import BASE_WEIGHTS_SHARE, EPSILON, shared_gpu_cpus, trainers_per_gpu
from layersweep.workers.config import ActorResources, ResourcesConfig

SUPPORT_ACTOR = ActorResources(cpus=0.05)
"""Resources of the collector, and of the rollout worker."""
LARGEST_SHARE = 0.5
"""Largest part of a GPU with which layer trainers share it, around one copy of the base weights."""


class PlacementError(ValueError):
    """Actors that these nodes can never take, however long they wait. The text starts with the spec's field."""


@dataclass
class Gpu:
    """One GPU and the actors on it."""

    node: int
    """Index of its node."""
    free: float = 1.0
    """Part of it that is not allocated."""
    engines: list[int] = field(default_factory=list)
    """Indices of the engines that span it."""
    whole_ranks: int = 0
    """Ranks of runs that train the whole model."""
    layer_ranks: int = 0
    """Ranks of layer runs that fit on it."""
    shared: float = 0.0
    """Part of it held for the base weights and the layer trainers that share it; 0 where they do not share."""


@dataclass
class FreeResources:
    """Resources that are not allocated yet."""

    gpus: list[Gpu]
    cpus: list[float]
    """CPUs of each node."""

    def take(self, needs: ActorResources) -> list[Gpu]:
        """Allocate the GPUs of one actor, all on one node that has its CPUs too; none where it does not fit."""
        near = [gpu for gpu in self.gpus if self.cpus[gpu.node] >= needs.cpus - EPSILON]
        if needs.gpus < 1:
            possible = [gpu for gpu in near if gpu.free >= needs.gpus - EPSILON]
            chosen = [min(possible, key=lambda gpu: gpu.free)] if possible else []
        else:
            empty: dict[int, list[Gpu]] = {}
            for gpu in near:
                if gpu.free == 1:
                    empty.setdefault(gpu.node, []).append(gpu)
            chosen = next((found[: int(needs.gpus)] for found in empty.values() if len(found) >= needs.gpus), [])
        for gpu in chosen:
            gpu.free = round(gpu.free - min(1.0, needs.gpus), 9)
        if chosen:
            self.cpus[chosen[0].node] -= needs.cpus
        return chosen


@dataclass(frozen=True)
class GpuAllocation:
    """GPUs of every actor, and the runs that fit at the same time."""

    gpus: tuple[Gpu, ...]
    whole_runs: int
    """Runs of the whole model that train at the same time."""
    layer_runs: int
    """Layer runs that train at the same time."""
    in_turn: bool = False
    """Whether whole-model runs and layer runs use the same GPUs one after the other, instead of others side by side."""
    support_nodes: tuple[int, ...] = ()
    """Node index of each support actor (collector, rollout worker)."""
    joining: tuple[float, ...] = ()
    """Part of each further GPU that layer trainers share as soon as the whole-model runs have ended."""
    last_layer_runs: int = 0
    """Layer runs that train at the same time from then on; 0 where nothing joins."""

    @property
    def runs(self) -> int:
        """Runs that train at the same time."""
        return max(self.whole_runs, self.layer_runs) if self.in_turn else self.whole_runs + self.layer_runs

    @property
    def shared_gpus(self) -> tuple[float, ...]:
        """Part of each GPU that layer trainers share (layersweep.orchestrator.execution.shared_gpus.SharedGpuPool)."""
        return tuple(gpu.shared for gpu in self.gpus if gpu.shared)

    @property
    def engine_nodes(self) -> tuple[int, ...]:
        """Node index of each engine."""
        node = {number: gpu.node for gpu in self.gpus for number in gpu.engines}
        return tuple(node[number] for number in sorted(node))


def allocate_gpus(
    resources: ResourcesConfig,
    whole_runs: int,
    node_gpus: Sequence[int],
    node_cpus: Sequence[float] | None = None,
    boosts: bool = False,
) -> GpuAllocation:
    """Allocate engines and support actors first; then as many whole-model runs at the same time as leave capacity for a
    layer run; then layer runs in all that is left.

    A fraction goes to the fullest GPU that can take it, as Ray places it. Layer trainers of at most half a GPU share
    GPUs that are held for the whole sweep: every GPU that is still empty, or where none is, the rest of each that has
    most left. Those of whole-model runs join them when these have ended. Larger trainers come and go with their run, so
    where both kinds do not fit side by side, whole-model and layer runs take turns.

    Args:
        whole_runs: runs of the whole model in the plan.
        node_gpus, node_cpus: numbers by node; CPUs count as unlimited where they are not given.
        boosts: whether some of the whole-model runs come after the layer runs, so that their GPUs stay free.

    Raises:
        PlacementError: not even one run of each kind fits beside the engines.
    """
    gpus = [Gpu(node) for node, count in enumerate(node_gpus) for _ in range(count)]
    free_resources = FreeResources(gpus, list(node_cpus) if node_cpus else [float("inf")] * len(node_gpus))
    try:
        return _allocate(free_resources, resources, whole_runs, boosts)
    except PlacementError as error:
        if node_cpus is None:
            raise
        allocate_gpus(resources, whole_runs, node_gpus)  # raises where the GPUs are too few, whatever the CPUs
        raise PlacementError(_missing_cpus(resources, whole_runs, node_cpus)) from error


def _allocate(
    free_resources: FreeResources, resources: ResourcesConfig, whole_runs: int, boosts: bool
) -> GpuAllocation:
    _place_engines(free_resources, resources)
    support = _place_support_actors(free_resources)
    for at_once in range(whole_runs, min(whole_runs, 1) - 1, -1):
        tried = copy.deepcopy(free_resources)
        seated = _place_whole_runs(tried, resources, at_once)
        if seated and (runs := _place_layer_runs(tried, resources)):
            found = GpuAllocation(tuple(tried.gpus), at_once, runs, support_nodes=support)
            return _join(found, free_resources, resources) if at_once and not boosts else found
    if resources.trainer.gpus > LARGEST_SHARE:
        tried, alone = copy.deepcopy(free_resources), copy.deepcopy(free_resources)
        whole, runs = _place_whole_runs(tried, resources, 1), _place_layer_runs(alone, resources)
        if whole and runs:
            for gpu, other in zip(tried.gpus, alone.gpus, strict=True):
                gpu.layer_ranks = other.layer_ranks
            return GpuAllocation(tuple(tried.gpus), 1, runs, in_turn=True, support_nodes=support)
    raise PlacementError(_missing_gpus(free_resources.gpus, resources, whole_runs))


def _join(found: GpuAllocation, free_resources: FreeResources, resources: ResourcesConfig) -> GpuAllocation:
    """Add the GPUs that layer trainers share once the whole-model runs have ended.

    Args:
        free_resources: beside engines and support actors.
    """
    alone = copy.deepcopy(free_resources)
    runs = _place_layer_runs(alone, resources)
    pairs = list(zip(found.gpus, alone.gpus, strict=True))
    joining = tuple(later.shared for now, later in pairs if later.shared and not now.shared)
    if not joining or any(now.shared and now.shared != later.shared for now, later in pairs):
        return found  # trainers hold the rest of GPUs, which cannot grow
    return replace(found, joining=joining, last_layer_runs=runs)


def _place_engines(free_resources: FreeResources, resources: ResourcesConfig) -> None:
    for number in range(resources.engines):
        taken = free_resources.take(resources.engine)
        if not taken:
            have = "1 GPU takes" if len(free_resources.gpus) == 1 else f"{len(free_resources.gpus)} GPUs take"
            raise PlacementError(
                f"resources.engines: {resources.engines} engines of {resources.engine.gpus:g} GPUs each, and "
                f"{have} {number}; lower engines, or resources.engine.gpus"
            )
        for gpu in taken:
            gpu.engines.append(number)


def _place_whole_runs(free_resources: FreeResources, resources: ResourcesConfig, runs: int) -> bool:
    """Place so many whole-model runs; False where they do not fit."""
    needs = resources.full_trainer or resources.trainer
    ranks = [free_resources.take(needs) for _ in range(runs * resources.full_trainer_ranks)]
    for gpu in (gpu for rank in ranks for gpu in rank):
        gpu.whole_ranks += 1
    return all(ranks)


def _place_layer_runs(free_resources: FreeResources, resources: ResourcesConfig) -> int:
    """Fill the free resources with ranks of layer runs; returns the number of runs."""
    trainer, ranks = resources.trainer, 0
    if trainer.gpus <= LARGEST_SHARE:
        gpus = free_resources.gpus
        # Parts of one size, so that Ray cannot place one where another has to go.
        largest = max(gpu.free for gpu in gpus)
        for gpu in [gpu for gpu in gpus if gpu.free == largest]:
            capacity, cpus = trainers_per_gpu(gpu.free, trainer.gpus), shared_gpu_cpus(gpu.free, trainer)
            if capacity and cpus <= free_resources.cpus[gpu.node] + EPSILON:
                gpu.layer_ranks, gpu.shared = capacity, gpu.free
                free_resources.cpus[gpu.node] -= cpus
                ranks += capacity
    else:
        while taken := free_resources.take(trainer):
            ranks += 1
            for gpu in taken:
                gpu.layer_ranks += 1
    return ranks // resources.trainer_ranks


def _place_support_actors(free_resources: FreeResources) -> tuple[int, ...]:
    """Node indices of the collector and the rollout worker: where most CPUs are free."""
    nodes = []
    for _ in range(2):
        node = max(range(len(free_resources.cpus)), key=free_resources.cpus.__getitem__)
        if free_resources.cpus[node] < SUPPORT_ACTOR.cpus - EPSILON:
            raise PlacementError("resources: no CPUs for the collector and the rollout worker")
        free_resources.cpus[node] -= SUPPORT_ACTOR.cpus
        nodes.append(node)
    return tuple(nodes)


def _missing_gpus(gpus: list[Gpu], resources: ResourcesConfig, whole_runs: int) -> str:
    """Problem of a plan whose engines fit and whose trainers do not."""
    full, shared = resources.full_trainer or resources.trainer, resources.trainer.gpus <= LARGEST_SHARE
    asked = f"a layer run's {resources.trainer_ranks} x {resources.trainer.gpus:g}"
    if shared:
        asked += f" and {BASE_WEIGHTS_SHARE:g} of a GPU for the base weights that they share"
    if whole_runs:
        beside = "beside" if shared else "or"
        asked += f", {beside} the whole model's {resources.full_trainer_ranks} x {full.gpus:g}"
    left, have = sum(gpu.free for gpu in gpus), "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    return f"resources.trainer: {asked}: of {have} the engines leave {left:g}; ask for less, or for fewer engines"


def _missing_cpus(resources: ResourcesConfig, whole_runs: int, node_cpus: Sequence[float]) -> str:
    """Problem of a plan that fits by its GPUs and not by its CPUs."""
    trainer, full = resources.trainer, resources.full_trainer or resources.trainer
    capacity = trainers_per_gpu(1.0, trainer.gpus)
    layers = f"a rank of a layer run {trainer.cpus:g}"
    if trainer.gpus <= LARGEST_SHARE:
        layers = f"the {capacity} trainers around a whole GPU {shared_gpu_cpus(1.0, trainer):g} together"
    whole = f", each of the whole model's {resources.full_trainer_ranks} ranks {full.cpus:g}" if whole_runs else ""
    nodes = ", ".join(f"{cpus:g}" for cpus in sorted(node_cpus, reverse=True)[:8])
    return (f"resources: the GPUs are enough, the CPUs beside them are not: each of {resources.engines} engines asks "
            f"for {resources.engine.cpus:g} on one node, {layers}{whole}; the nodes have {nodes}"
            f"{', ...' if len(node_cpus) > 8 else ''}; lower the cpus of engine or trainers")  # fmt: skip
