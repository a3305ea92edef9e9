"""Which GPU takes whom: the arithmetic of placement, without Ray, so that a plan and a run count alike."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from layersweep.workers.actors.gpu_share import BASE_WEIGHTS_SHARE, EPSILON, aboard, berth_cpus
from layersweep.workers.config import ActorResources, ResourcesConfig

SUPPORT_ACTOR = ActorResources(cpus=0.05)
"""Of the collector and of the rollout worker."""
SHARED = 0.5
"""Layer trainers that ask for at most this much of a GPU share it, around one trunk."""


class PlacementError(ValueError):
    """Actors that these GPUs can never take, however long they wait. The text starts with the spec's field."""


@dataclass
class Gpu:
    """One GPU and who is on it."""

    node: int
    free: float = 1.0
    engines: list[int] = field(default_factory=list)
    """Numbers of the engines that span it."""
    whole_ranks: int = 0
    """Ranks of runs that train the whole model."""
    layer_ranks: int = 0
    """Room for ranks of layer runs."""
    berth: float = 0.0
    """Share held for a trunk and the layer trainers around it; 0 where they do not share."""


@dataclass
class FreeResources:
    """What is free while places are given out."""

    cards: list[Gpu]
    cpus: list[float]
    """By node."""

    def take(self, needs: ActorResources) -> list[Gpu]:
        """The GPUs of one actor, all on one node that has its CPUs too; none where there is no room."""
        near = [card for card in self.cards if self.cpus[card.node] >= needs.cpus - EPSILON]
        if needs.gpus < 1:
            room = [card for card in near if card.free >= needs.gpus - EPSILON]
            chosen = [min(room, key=lambda card: card.free)] if room else []
        else:
            empty: dict[int, list[Gpu]] = {}
            for card in near:
                if card.free == 1:
                    empty.setdefault(card.node, []).append(card)
            chosen = next((found[: int(needs.gpus)] for found in empty.values() if len(found) >= needs.gpus), [])
        for card in chosen:
            card.free = round(card.free - min(1.0, needs.gpus), 9)
        if chosen:
            self.cpus[chosen[0].node] -= needs.cpus
        return chosen


@dataclass(frozen=True)
class GpuAllocation:
    """Everybody's place."""

    cards: tuple[Gpu, ...]
    whole_runs: int
    """Runs of the whole model that train at the same time."""
    layer_runs: int
    """Layer runs that train at the same time."""
    in_turn: bool = False
    """Whole-model runs and layer runs take the same GPUs, one after the other, instead of others side by side."""
    small_nodes: tuple[int, ...] = ()
    """Number of each small actor's node."""

    @property
    def runs(self) -> int:
        """That train at the same time."""
        return max(self.whole_runs, self.layer_runs) if self.in_turn else self.whole_runs + self.layer_runs

    @property
    def berths(self) -> tuple[float, ...]:
        """Share of a GPU of each berth (layersweep.workers.actors.shared_gpu.Berths)."""
        return tuple(card.berth for card in self.cards if card.berth)

    @property
    def engine_nodes(self) -> tuple[int, ...]:
        """Number of each engine's node."""
        node = {number: card.node for card in self.cards for number in card.engines}
        return tuple(node[number] for number in sorted(node))


def seat(
    resources: ResourcesConfig, whole_runs: int, node_gpus: Sequence[int], node_cpus: Sequence[float] | None = None
) -> GpuAllocation:
    """Engines and small actors first; then as many of the whole-model runs at the same time as leave room for a layer
    run; then layer runs in all that is left.

    A fraction goes to the fullest GPU that has room, as Ray places it. Layer trainers of at most half a GPU share
    berths, held for the whole sweep: every GPU that is still empty, or where none is, what is left of one. Larger ones
    come and go with their run, so where both do not fit side by side, whole-model and layer runs take turns.

    Args:
        whole_runs: runs of the whole model in the plan.
        node_gpus, node_cpus: of each node; CPUs are enough where they are not given.

    Raises:
        PlacementError: not even one run of each kind finds its place beside the engines.
    """
    cards = [Gpu(node) for node, gpus in enumerate(node_gpus) for _ in range(gpus)]
    floor = FreeResources(cards, list(node_cpus) if node_cpus else [float("inf")] * len(node_gpus))
    try:
        return _seat(floor, resources, whole_runs)
    except PlacementError as error:
        if node_cpus is None:
            raise
        seat(resources, whole_runs, node_gpus)  # raises where the GPUs are too few, whatever the CPUs
        raise PlacementError(_cpus_missing(resources, whole_runs, node_cpus)) from error


def _seat(floor: FreeResources, resources: ResourcesConfig, whole_runs: int) -> GpuAllocation:
    _seat_engines(floor, resources)
    small = _seat_small(floor)
    for at_once in range(whole_runs, min(whole_runs, 1) - 1, -1):
        tried = copy.deepcopy(floor)
        seated = _seat_whole(tried, resources, at_once)
        if seated and (runs := _seat_layers(tried, resources)):
            return GpuAllocation(tuple(tried.cards), at_once, runs, small_nodes=small)
    if resources.trainer.gpus > SHARED:
        tried, alone = copy.deepcopy(floor), copy.deepcopy(floor)
        whole, runs = _seat_whole(tried, resources, 1), _seat_layers(alone, resources)
        if whole and runs:
            for card, other in zip(tried.cards, alone.cards, strict=True):
                card.layer_ranks = other.layer_ranks
            return GpuAllocation(tuple(tried.cards), 1, runs, in_turn=True, small_nodes=small)
    raise PlacementError(_what_is_missing(floor.cards, resources, whole_runs))


def _seat_engines(floor: FreeResources, resources: ResourcesConfig) -> None:
    for number in range(resources.engines):
        taken = floor.take(resources.engine)
        if not taken:
            there = "1 GPU takes" if len(floor.cards) == 1 else f"{len(floor.cards)} GPUs take"
            raise PlacementError(
                f"resources.engines: {resources.engines} engines of {resources.engine.gpus:g} GPUs each, and "
                f"{there} {number}; lower engines, or resources.engine.gpus"
            )
        for card in taken:
            card.engines.append(number)


def _seat_whole(floor: FreeResources, resources: ResourcesConfig, runs: int) -> bool:
    """Seat so many whole-model runs; False where there is no room."""
    needs = resources.full_trainer or resources.trainer
    ranks = [floor.take(needs) for _ in range(runs * resources.full_trainer_ranks)]
    for card in (card for rank in ranks for card in rank):
        card.whole_ranks += 1
    return all(ranks)


def _seat_layers(floor: FreeResources, resources: ResourcesConfig) -> int:
    """Fill what is free with ranks of layer runs; returns how many runs that makes."""
    trainer, ranks = resources.trainer, 0
    if trainer.gpus <= SHARED:
        empty = [card for card in floor.cards if card.free == 1] or [max(floor.cards, key=lambda card: card.free)]
        for card in empty:
            room, cpus = aboard(card.free, trainer.gpus), berth_cpus(card.free, trainer)
            if room and cpus <= floor.cpus[card.node] + EPSILON:
                card.layer_ranks, card.berth = room, card.free
                floor.cpus[card.node] -= cpus
                ranks += room
    else:
        while taken := floor.take(trainer):
            ranks += 1
            for card in taken:
                card.layer_ranks += 1
    return ranks // resources.trainer_ranks


def _seat_small(floor: FreeResources) -> tuple[int, ...]:
    """Nodes of the collector and the rollout worker: where most CPUs are free."""
    nodes = []
    for _ in range(2):
        node = max(range(len(floor.cpus)), key=floor.cpus.__getitem__)
        if floor.cpus[node] < SUPPORT_ACTOR.cpus - EPSILON:
            raise PlacementError("resources: no CPUs for the collector and the rollout worker")
        floor.cpus[node] -= SUPPORT_ACTOR.cpus
        nodes.append(node)
    return tuple(nodes)


def _what_is_missing(cards: list[Gpu], resources: ResourcesConfig, whole_runs: int) -> str:
    """Beside the engines, which are seated."""
    full, shared = resources.full_trainer or resources.trainer, resources.trainer.gpus <= SHARED
    asked = f"a layer run's {resources.trainer_ranks} x {resources.trainer.gpus:g}"
    if shared:
        asked += f" and {BASE_WEIGHTS_SHARE:g} of a GPU for the trunk that they share"
    if whole_runs:
        beside = "beside" if shared else "or"
        asked += f", {beside} the whole model's {resources.full_trainer_ranks} x {full.gpus:g}"
    left, there = sum(card.free for card in cards), "1 GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    return f"resources.trainer: {asked}: of {there} the engines leave {left:g}; ask for less, or for fewer engines"


def _cpus_missing(resources: ResourcesConfig, whole_runs: int, node_cpus: Sequence[float]) -> str:
    """Where the GPUs would take everybody."""
    trainer, full = resources.trainer, resources.full_trainer or resources.trainer
    room = aboard(1.0, trainer.gpus)
    layers = f"a rank of a layer run {trainer.cpus:g}"
    if trainer.gpus <= SHARED:
        layers = f"the {room} trainers around a whole GPU {berth_cpus(1.0, trainer):g} together"
    whole = f", each of the whole model's {resources.full_trainer_ranks} ranks {full.cpus:g}" if whole_runs else ""
    nodes = ", ".join(f"{cpus:g}" for cpus in sorted(node_cpus, reverse=True)[:8])
    return (f"resources: the GPUs have room, the CPUs beside them have not: each of {resources.engines} engines asks "
            f"for {resources.engine.cpus:g} on one node, {layers}{whole}; the nodes have {nodes}"
            f"{', ...' if len(node_cpus) > 8 else ''}; lower the cpus of engine or trainers")  # fmt: skip
