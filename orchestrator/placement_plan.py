"""Whether a cluster can ever place a plan's actors: asked by `plan --cluster`, and by a run once Ray is connected."""

from collections.abc import Mapping

from workers.config import ActorResources, ResourcesConfig
from workers.seats import EPSILON, NoRoom, Seating, aboard, seat

from .plan import Plan

SMALL_ACTORS_CPUS = 0.1
"""Of the collector and the rollout worker together."""


def placement_problems(
    plan: Plan, total_resources: Mapping[str, float], largest_node: Mapping[str, float]
) -> list[str]:
    """What of a plan can never be placed: the field, what it asks for, what there is. Empty: everything can.

    Args:
        total_resources: of the whole cluster, as `ray.cluster_resources()` gives them ("CPU", "GPU", ...).
        largest_node: of the node that has most of each.
    """
    # One after the other: what is wrong in one would be said again by the next.
    seating, cpus = None, total_resources.get("CPU", 0)
    if problems := _too_large_for_a_node(plan.spec.resources, largest_node):
        return problems
    if plan.spec.resources.on_gpu():
        if problems := _tensor_parallel_problems(plan, largest_node):
            return problems
        try:
            seating = seat_on(plan, total_resources, largest_node)
        except NoRoom as error:
            return [str(error)]
    bundles = [_berth_cpus(plan.spec.resources, share) for share in seating.berths] if seating else []
    if problems := _berth_problems(plan.spec.resources, bundles, largest_node.get("CPU", 0)):
        return problems
    return _cpu_problems(plan, cpus, sum(bundles))


def seat_on(plan: Plan, total_resources: Mapping[str, float], largest_node: Mapping[str, float]) -> Seating:
    """Who goes where, on nodes like the largest, the last of them smaller if the total says so.

    Raises:
        NoRoom: the GPUs cannot take the plan.
    """
    total, largest = int(total_resources.get("GPU", 0)), int(largest_node.get("GPU", 0))
    nodes = [largest] * (total // largest) + ([total % largest] if total % largest else []) if largest else []
    return seat(plan.spec.resources, whole_runs(plan), nodes)


def whole_runs(plan: Plan) -> int:
    """Runs that train the whole model: `full`, and boosts of `combine`."""
    boosts = sum(run.how == "boost" for run in plan.spec.combine)
    return sum(run.selection.whole for run in plan.runs) + boosts * len(plan.spec.seeds)


def layer_runs_at_once(plan: Plan, seating: Seating) -> int:
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


def _berth_cpus(resources: ResourcesConfig, share: float) -> float:
    """CPUs of a berth: its trainers', and 0.1 for the trunk's host."""
    return aboard(share, resources.trainer.gpus) * resources.trainer.cpus + 0.1


def _berth_problems(resources: ResourcesConfig, bundles: list[float], largest: float) -> list[str]:
    """Trainers that share a GPU live on its node, and ask for their CPUs together."""
    if max(bundles, default=0) <= largest + EPSILON:
        return []
    return [f"resources.trainer.cpus: {resources.trainer.cpus:g} for each layer trainer makes {max(bundles):g} CPUs "
            f"for those around one GPU, and the largest node has {largest:g}; lower it"]  # fmt: skip


def _cpu_problems(plan: Plan, there: float, berths: float) -> list[str]:
    """What lives at the same time: engines, two small actors, all berths, and one run's trainers."""
    resources, whole = plan.spec.resources, plan.spec.resources.full_trainer or plan.spec.resources.trainer
    layer_crew = 0 if berths else resources.trainer_ranks * resources.trainer.cpus
    whole_crew = resources.full_trainer_ranks * whole.cpus if whole_runs(plan) else 0
    crew = berths + max(layer_crew, whole_crew)
    needed = resources.engines * resources.engine.cpus + SMALL_ACTORS_CPUS + crew
    if needed <= there + EPSILON:
        return []
    return [f"resources: engines ask for {resources.engines} x {resources.engine.cpus:g} CPUs, trainers that must be "
            f"there beside them for {crew:g}, layersweep's small actors for {SMALL_ACTORS_CPUS:g}: {needed:g}, and the "
            f"cluster has {there:g}; lower the cpus of engine or trainers"]  # fmt: skip
