"""Allocation of actors to nodes where CPUs alone count: exact, whatever the nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from layersweep.workers.actors.gpu_share import EPSILON

UNLIMITED_RANKS = 1_000_000
"""Number of layer ranks that fit on a node where they ask for no CPUs."""


@dataclass(frozen=True)
class GangRequest:
    """Actors that start together, such as the trainers of a run."""

    ranks: int
    """Number of actors."""
    cpus: float
    """CPUs that each asks for, all of them on one node."""


@dataclass(frozen=True)
class CpuAllocation:
    """Nodes of engines and support actors, and the capacity that they leave for trainers."""

    engine_nodes: tuple[int, ...]
    """Node index of each engine."""
    support_nodes: tuple[int, ...]
    """Node index of each support actor (collector, rollout worker)."""
    layer_ranks: int
    """Ranks of layer runs that fit at the same time while no whole-model run trains."""


def fits(free: float, cpus: float, most: int) -> int:
    """Number of actors, at most `most`, that fit into `free` CPUs of a node; `most` where they ask for none."""
    return int(min(most, free / cpus + EPSILON)) if cpus else most


@lru_cache(maxsize=16)
def allocate_cpus(
    nodes: tuple[float, ...], engines: GangRequest, support: GangRequest, layer: GangRequest, whole: GangRequest
) -> CpuAllocation | None:
    """Allocate engines and support actors such that as many layer runs as possible fit, then with engines spread.

    A layer run and a whole-model run must each fit, one after the other: both come and go. Dynamic programming over
    nodes; a state is how many engines, support actors and whole-model ranks are placed so far.

    Args:
        nodes: CPUs of each.
        whole: request of a whole-model run; 0 ranks where no run trains the whole model.

    Returns:
        The allocation; None where there is none.
    """
    states = {(0, 0, 0): (0, 0, ())}
    for free in nodes:
        reached: dict[tuple[int, ...], tuple] = {}
        for (engines_placed, support_placed, whole_placed), (ranks, uneven, path) in states.items():
            for here in range(fits(free, engines.cpus, engines.ranks - engines_placed) + 1):
                beside = free - here * engines.cpus
                for few in range(fits(beside, support.cpus, support.ranks - support_placed) + 1):
                    left = beside - few * support.cpus
                    state = (
                        engines_placed + here,
                        support_placed + few,
                        min(whole.ranks, whole_placed + fits(left, whole.cpus, whole.ranks)),
                    )
                    more = ranks + fits(left, layer.cpus, UNLIMITED_RANKS)
                    reached[state] = max(reached.get(state, (-1,)), (more, uneven - here**2, (*path, (here, few))))
        states = reached
    ranks, _, path = states.get((engines.ranks, support.ranks, whole.ranks), (0, 0, ()))
    if ranks < layer.ranks or not path:
        return None
    engine_nodes, support_nodes = (
        tuple(node for node, counts in enumerate(path) for _ in range(counts[kind])) for kind in (0, 1)
    )
    return CpuAllocation(engine_nodes, support_nodes, ranks)


def first_that_does_not_fit(
    nodes: Sequence[float], actors: Sequence[tuple[str, float]]
) -> tuple[str, float, float] | None:
    """Find the first actor that does not fit when each in turn goes to the fullest node that can take it.

    Args:
        nodes: CPUs of each.
        actors: name of each actor and the CPUs that it asks for.

    Returns:
        Its name, the CPUs that it asks for, and the CPUs of the node that has most left; None where all fit.
    """
    free = list(nodes)
    for actor, cpus in actors:
        possible = [k for k, left in enumerate(free) if left >= cpus - EPSILON]
        if not possible:
            return actor, cpus, max(free, default=0.0)
        node = min(possible, key=free.__getitem__)
        free[node] = round(free[node] - cpus, 9)
    return None
