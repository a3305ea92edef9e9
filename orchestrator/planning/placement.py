"""Whether a cluster can ever place a plan's actors: asked by `plan --cluster`, and by a run once Ray is connected."""

from collections.abc import Mapping, Sequence
from math import ceil

from layersweep.workers.actors.gpu_share import EPSILON
from layersweep.workers.config import ActorResources, ResourcesConfig

from .cpu_allocation import CpuAllocation, GangRequest, first_without_place, pack
from .gpu_allocation import SUPPORT_ACTOR, GpuAllocation, PlacementError, seat
from .plan import Plan

Node = Mapping[str, float]
"""What a node has of each kind: "CPU", "GPU", ..."""


def placement_problems(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """What of a plan these nodes can never place: the field, what it asks for, what there is. Empty: there are places
    for engines, small actors and, one after the other, a run of each kind, every actor whole on one node."""
    # One after the other: what is wrong in one would be said again by the next.
    resources = plan.spec.resources
    largest = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")}
    if problems := _too_large_for_a_node(resources, largest):
        return problems
    if resources.on_gpu() and (problems := _tensor_parallel_problems(plan, largest)):
        return problems
    try:
        places(plan, nodes)
    except PlacementError as error:
        return [str(error)]
    return []


def places(plan: Plan, nodes: Sequence[Node]) -> GpuAllocation | CpuAllocation:
    """Who goes where.

    Raises:
        PlacementError: the nodes cannot take the plan.
    """
    return seat_on(plan, nodes) if plan.spec.resources.on_gpu() else pack_on(plan, nodes)


def homes(plan: Plan, nodes: Sequence[Node]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the engines' and of the small actors' nodes, such that there are places for the others; none where
    there is but one node, or one was lost meanwhile."""
    try:
        found = places(plan, nodes)
    except PlacementError:
        return (), ()
    return (found.engine_nodes, found.small_nodes) if len(nodes) > 1 else ((), ())


def all_at_once(plan: Plan, nodes: Sequence[Node]) -> bool:
    """Whether there certainly are places for the trainers of all runs of a plan at the same time."""
    resources, wholes = plan.spec.resources, whole_runs(plan)
    layers = sum(not run.selection.whole for run in plan.runs)
    try:
        found = places(plan, nodes)
    except PlacementError:
        return False
    if isinstance(found, GpuAllocation):
        return not found.in_turn and found.whole_runs >= wholes and found.layer_runs >= layers
    # A whole-model rank takes the places of so many layer ranks, whatever node it goes to.
    displaced = ceil((resources.full_trainer or resources.trainer).cpus / (resources.trainer.cpus or 1))
    return found.layer_ranks >= layers * resources.trainer_ranks + wholes * resources.full_trainer_ranks * displaced


def seat_on(plan: Plan, nodes: Sequence[Node]) -> GpuAllocation:
    """On GPUs; see places."""
    gpus, cpus = [int(node.get("GPU", 0)) for node in nodes], [node.get("CPU", 0.0) for node in nodes]
    return seat(plan.spec.resources, whole_runs(plan), gpus, cpus)


def pack_on(plan: Plan, nodes: Sequence[Node]) -> CpuAllocation:
    """On CPUs; see places."""
    resources = plan.spec.resources
    full = resources.full_trainer or resources.trainer
    cpus = tuple(node.get("CPU", 0.0) for node in nodes)
    engines, small = GangRequest(resources.engines, resources.engine.cpus), GangRequest(2, SUPPORT_ACTOR.cpus)
    layer = GangRequest(resources.trainer_ranks, resources.trainer.cpus)
    whole = GangRequest(resources.full_trainer_ranks if whole_runs(plan) else 0, full.cpus)
    if found := pack(cpus, engines, small, layer, whole):
        return found
    count, field = engines.ranks, "full_trainer" if resources.full_trainer else "trainer"
    standing = [(f"resources.engine.cpus: engine {k + 1} of {count}", engines.cpus) for k in range(count)]
    standing += [("resources: the collector or the rollout worker", small.cpus)] * small.ranks
    for kind, whose, crew in (("trainer", "a layer run's", layer), (field, "the whole model's", whole)):
        each = [f"resources.{kind}.cpus: rank {k + 1} of {whose} {crew.ranks}" for k in range(crew.ranks)]
        ranks = [(who, crew.cpus) for who in each]
        if missing := first_without_place(cpus, standing + ranks):
            who, asked, left = missing
            there = "the only node" if len(cpus) == 1 else f"the freest of {len(cpus)} nodes"
            raise PlacementError(f"{who} asks for {asked:g} CPUs on one node, and beside {count} x {engines.cpus:g} "
                         f"for engines {there} has {left:g} left; lower the cpus of engine or trainers, or add "
                         "nodes")  # fmt: skip
    raise AssertionError("places for all were found after all")


def whole_runs(plan: Plan) -> int:
    """Runs that train the whole model: `full`, and boosts of `combine`."""
    boosts = sum(run.how == "boost" for run in plan.spec.combine)
    return sum(run.selection.whole for run in plan.runs) + boosts * len(plan.spec.seeds)


def layer_runs_at_once(plan: Plan, seating: GpuAllocation) -> int:
    """Layer runs that train at the same time: as many as there are, as have a place, and as the spec allows."""
    wanted = sum(not run.selection.whole for run in plan.runs)
    beside = 0 if seating.in_turn else seating.whole_runs
    limit = plan.spec.resources.concurrent_runs or wanted + beside
    return max(1, min(wanted, seating.layer_runs, limit - beside))


def _actors(resources: ResourcesConfig) -> dict[str, ActorResources]:
    actors = {"engine": resources.engine, "trainer": resources.trainer}
    return actors | ({"full_trainer": resources.full_trainer} if resources.full_trainer else {})


def _too_large_for_a_node(resources: ResourcesConfig, largest: Mapping[str, float]) -> list[str]:
    """One actor lives on one node."""
    problems = []
    for name, needs in _actors(resources).items():
        for field, unit, asked in (("gpus", "GPU", needs.gpus), ("cpus", "CPU", needs.cpus)):
            where, there = f"resources.{name}.{field}", largest.get(unit, 0)
            if asked > there + EPSILON:
                has = f"has {there:g}" if there else "has none"
                problems.append(
                    f"{where}: asks for {asked:g} {unit}{'s' * (asked != 1)} on one node, and the largest {has}"
                )
            elif unit == "GPU" and asked > 1 and asked != int(asked):
                problems.append(f"{where}: {asked:g}: Ray gives a share of one GPU or whole GPUs; round it")
    return problems


def _tensor_parallel_problems(plan: Plan, largest: Mapping[str, float]) -> list[str]:
    """An engine spans the GPUs of its own actor."""
    spans, gpus = plan.spec.rollout.tensor_parallel_size, plan.spec.resources.engine.gpus
    if spans > largest.get("GPU", 0):
        return [f"rollout.tensor_parallel_size: {spans}, and the largest node has {largest.get('GPU', 0):g} GPUs; an "
                "engine does not span nodes"]  # fmt: skip
    if spans != max(1, gpus):
        return [f"resources.engine.gpus: {gpus:g}, and rollout.tensor_parallel_size is {spans}; set gpus to {spans}"]
    return []
