"""Which node takes whom where CPUs alone count: exact, whatever the nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from layersweep.workers.actors.gpu_share import EPSILON

MANY = 1_000_000
"""Layer ranks of a node, for those that ask for no CPUs."""


@dataclass(frozen=True)
class GangRequest:
    """The trainers of a run: ranks that each ask for so many CPUs of one node."""

    ranks: int
    cpus: float


@dataclass(frozen=True)
class CpuAllocation:
    """Engines and small actors have their places, and beside them there is room for runs."""

    engine_nodes: tuple[int, ...]
    """Number of each engine's node."""
    small_nodes: tuple[int, ...]
    """And of each small actor's."""
    layer_ranks: int
    """Ranks of layer runs that have room at the same time while no whole-model run trains."""


def fits(free: float, cpus: float, most: int) -> int:
    """How many actors find room in what is free of a node; those that ask for nothing always do."""
    return int(min(most, free / cpus + EPSILON)) if cpus else most


@lru_cache(maxsize=16)
def pack(
    nodes: tuple[float, ...], engines: GangRequest, small: GangRequest, layer: GangRequest, whole: GangRequest
) -> CpuAllocation | None:
    """Places that leave room for as many layer runs as can be, then with engines spread; None where there are none.

    A layer run and a whole-model run each find room, one after the other: both come and go. Dynamic programming over
    nodes; a state is who has been placed so far.

    Args:
        nodes: CPUs of each.
        whole: of no ranks where no run trains the whole model.
    """
    states = {(0, 0, 0): (0, 0, ())}
    for free in nodes:
        reached: dict[tuple[int, ...], tuple] = {}
        for (seated, others, crew), (ranks, uneven, path) in states.items():
            for here in range(fits(free, engines.cpus, engines.ranks - seated) + 1):
                beside = free - here * engines.cpus
                for few in range(fits(beside, small.cpus, small.ranks - others) + 1):
                    left = beside - few * small.cpus
                    state = (
                        seated + here,
                        others + few,
                        min(whole.ranks, crew + fits(left, whole.cpus, whole.ranks)),
                    )
                    more = ranks + fits(left, layer.cpus, MANY)
                    reached[state] = max(reached.get(state, (-1,)), (more, uneven - here**2, (*path, (here, few))))
        states = reached
    ranks, _, path = states.get((engines.ranks, small.ranks, whole.ranks), (0, 0, ()))
    if ranks < layer.ranks or not path:
        return None
    engine_nodes, small_nodes = (
        tuple(node for node, counts in enumerate(path) for _ in range(counts[kind])) for kind in (0, 1)
    )
    return CpuAllocation(engine_nodes, small_nodes, ranks)


def first_without_place(nodes: Sequence[float], actors: Sequence[tuple[str, float]]) -> tuple[str, float, float] | None:
    """Who finds no place when each in turn goes to the fullest node that has room: who, CPUs asked for, and CPUs of
    the node that then has most; None if all do."""
    free = list(nodes)
    for who, cpus in actors:
        room = [k for k, there in enumerate(free) if there >= cpus - EPSILON]
        if not room:
            return who, cpus, max(free, default=0.0)
        node = min(room, key=free.__getitem__)
        free[node] = round(free[node] - cpus, 9)
    return None
