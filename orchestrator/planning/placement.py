"""Whether a cluster can ever place a plan's actors: asked by `plan --cluster`, and by a run once Ray is connected."""

from collections.abc import Mapping, Sequence
from math import ceil

from layersweep.workers.actors.gpu_share import EPSILON
from layersweep.workers.config import ActorResources, ResourcesConfig

from .cpu_allocation import CpuAllocation, GangRequest, allocate_cpus, first_that_does_not_fit
from .gpu_allocation import SUPPORT_ACTOR, GpuAllocation, PlacementError, allocate_gpus
from .plan import Plan

Node = Mapping[str, float]
"""Resources of a node by Ray's name: "CPU", "GPU", ..."""


def placement_problems(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Find what these nodes can never place: the field, what it asks for, what the nodes have.

    Empty where engines, support actors and, one after the other, a run of each kind fit, each actor on one node.
    """
    # The checks follow each other: a later one would repeat what an earlier one found.
    resources = plan.spec.resources
    largest = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")}
    if problems := _too_large_for_a_node(resources, largest):
        return problems
    if resources.on_gpu() and (problems := _tensor_parallel_problems(plan, largest)):
        return problems
    try:
        allocate(plan, nodes)
    except PlacementError as error:
        return [str(error)]
    return []


def allocate(plan: Plan, nodes: Sequence[Node]) -> GpuAllocation | CpuAllocation:
    """Allocate the plan's actors to nodes.

    Raises:
        PlacementError: the nodes cannot take the plan.
    """
    return allocate_gpus_on(plan, nodes) if plan.spec.resources.on_gpu() else allocate_cpus_on(plan, nodes)


def preferred_nodes(plan: Plan, nodes: Sequence[Node]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Node indices for engines and for support actors that leave capacity for the trainers.

    Empty on a single node, and where a node was just lost.
    """
    try:
        found = allocate(plan, nodes)
    except PlacementError:
        return (), ()
    return (found.engine_nodes, found.support_nodes) if len(nodes) > 1 else ((), ())


def all_runs_fit(plan: Plan, nodes: Sequence[Node]) -> bool:
    """Tell whether the trainers of all runs of a plan certainly fit at the same time."""
    resources, wholes = plan.spec.resources, whole_runs(plan)
    layers = sum(not run.selection.trains_all for run in plan.runs)
    try:
        found = allocate(plan, nodes)
    except PlacementError:
        return False
    if isinstance(found, GpuAllocation):
        return not found.in_turn and found.whole_runs >= wholes and found.layer_runs >= layers
    # Layer ranks that a whole-model rank displaces, whatever node it goes to.
    displaced = ceil((resources.full_trainer or resources.trainer).cpus / (resources.trainer.cpus or 1))
    return found.layer_ranks >= layers * resources.trainer_ranks + wholes * resources.full_trainer_ranks * displaced


def allocate_gpus_on(plan: Plan, nodes: Sequence[Node]) -> GpuAllocation:
    """Allocate to GPUs; see `allocate`."""
    gpus, cpus = [int(node.get("GPU", 0)) for node in nodes], [node.get("CPU", 0.0) for node in nodes]
    return allocate_gpus(plan.spec.resources, whole_runs(plan), gpus, cpus, boosts=_wholes_come_later(plan))


def allocate_cpus_on(plan: Plan, nodes: Sequence[Node]) -> CpuAllocation:
    """Allocate to CPUs; see `allocate`."""
    resources = plan.spec.resources
    full = resources.full_trainer or resources.trainer
    cpus = tuple(node.get("CPU", 0.0) for node in nodes)
    engines, support = GangRequest(resources.engines, resources.engine.cpus), GangRequest(2, SUPPORT_ACTOR.cpus)
    layer = GangRequest(resources.trainer_ranks, resources.trainer.cpus)
    whole = GangRequest(resources.full_trainer_ranks if whole_runs(plan) else 0, full.cpus)
    if found := allocate_cpus(cpus, engines, support, layer, whole):
        return found
    count, field = engines.ranks, "full_trainer" if resources.full_trainer else "trainer"
    others = [(f"resources.engine.cpus: engine {k + 1} of {count}", engines.cpus) for k in range(count)]
    others += [("resources: the collector or the rollout worker", support.cpus)] * support.ranks
    for kind, owner, gang in (("trainer", "a layer run's", layer), (field, "the whole model's", whole)):
        each = [f"resources.{kind}.cpus: rank {k + 1} of {owner} {gang.ranks}" for k in range(gang.ranks)]
        ranks = [(rank, gang.cpus) for rank in each]
        if missing := first_that_does_not_fit(cpus, others + ranks):
            actor, asked, left = missing
            where = "the only node" if len(cpus) == 1 else f"the freest of {len(cpus)} nodes"
            raise PlacementError(f"{actor} asks for {asked:g} CPUs on one node, and beside {count} x {engines.cpus:g} "
                         f"for engines {where} has {left:g} left; lower the cpus of engine or trainers, or add "
                         "nodes")  # fmt: skip
    raise AssertionError("no allocation was found, and yet every actor fits")


def whole_runs(plan: Plan) -> int:
    """Number of runs that train the whole model: `full`, and boosts of `combine`."""
    return sum(run.selection.trains_all for run in plan.runs) + _boosts(plan)


def _boosts(plan: Plan) -> int:
    """Number of whole-model runs that come after the layer runs."""
    return sum(run.how == "boost" for run in plan.spec.combine) * len(plan.spec.seeds)


def _wholes_come_later(plan: Plan) -> bool:
    """Tell whether whole-model runs come after the layer runs: boosts, or controls that train everything."""
    return _boosts(plan) > 0 or any(run.selection.trains_all and run.control.trained for run in plan.controls)


def layer_runs_at_once(plan: Plan, allocation: GpuAllocation, joined: bool = False) -> int:
    """Number of layer runs that train at the same time: as many as there are, as fit, and as the spec allows.

    Args:
        joined: whether the whole-model runs have ended, and their GPUs take layer runs where they can.
    """
    wanted, joined = sum(not run.selection.trains_all for run in plan.runs), joined and bool(allocation.joining)
    beside = 0 if allocation.in_turn or joined else allocation.whole_runs
    limit = plan.spec.resources.concurrent_runs or wanted + beside
    fitting = allocation.last_layer_runs if joined else allocation.layer_runs
    return max(1, min(wanted, fitting, limit - beside))


def _actors(resources: ResourcesConfig) -> dict[str, ActorResources]:
    actors = {"engine": resources.engine, "trainer": resources.trainer}
    return actors | ({"full_trainer": resources.full_trainer} if resources.full_trainer else {})


def _too_large_for_a_node(resources: ResourcesConfig, largest: Mapping[str, float]) -> list[str]:
    """Return problems of actors that ask for more than the largest node has; an actor is on one node."""
    problems = []
    for name, needs in _actors(resources).items():
        for field, unit, asked in (("gpus", "GPU", needs.gpus), ("cpus", "CPU", needs.cpus)):
            where, most = f"resources.{name}.{field}", largest.get(unit, 0)
            if asked > most + EPSILON:
                has = f"has {most:g}" if most else "has none"
                problems.append(
                    f"{where}: asks for {asked:g} {unit}{'s' * (asked != 1)} on one node, and the largest {has}"
                )
    return problems


def _tensor_parallel_problems(plan: Plan, largest: Mapping[str, float]) -> list[str]:
    """Return problems of engines that span GPUs; all of these belong to the engine's own actor."""
    spans, gpus = plan.spec.rollout.tensor_parallel_size, plan.spec.resources.engine.gpus
    if spans > largest.get("GPU", 0):
        return [f"rollout.tensor_parallel_size: {spans}, and the largest node has {largest.get('GPU', 0):g} GPUs; an "
                "engine does not span nodes"]  # fmt: skip
    if spans != max(1, gpus):
        return [f"resources.engine.gpus: {gpus:g}, and rollout.tensor_parallel_size is {spans}; set gpus to {spans}"]
    return []
