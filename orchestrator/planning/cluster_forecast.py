"""Forecast of a plan on a cluster: allocation, least duration, and traffic between nodes.

The hours are a lower bound from the work that each group of GPUs has to do (roofline, cost_model) and from
the runs that must follow each other; the largest counts. A run alternates between generation and updates, and other
runs fill the gaps. Waiting, start-up, the tail of long answers and the CPUs' work (rewards, environments) come on top.
The shares of peak that are reached are assumptions, never measured here: the bound may be off by a factor of two.
"""

from collections import Counter
from dataclasses import dataclass

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.policies.selection import Selection

from .cluster_shape import ClusterShape
from .cost_model import Assumptions, GpuHours, estimate, rollout_seconds, step_tokens, update_seconds
from .gpu_allocation import GpuAllocation
from .gpu_memory import GpuMemory, gpu_memories, memory_problems
from .placement import allocate_gpus_on, layer_runs_at_once, placement_problems
from .plan import Plan

TOKEN_BYTES = 8
"""Bytes of a response's token on its way to the trainer: its number and its log-probability."""


@dataclass(frozen=True)
class RunSchedule:
    """Waves in which the runs train, and the least duration."""

    layer_runs: int
    """Layer runs at a time, at first."""
    last_layer_runs: int
    """Layer runs at a time once the whole-model runs have ended."""
    layer_waves: int
    """Waves of layer runs, one after the other."""
    whole_waves: int
    """Waves of whole-model runs."""
    hours: float
    """Hours of wall clock, at least."""
    bound_by: str
    """Name of the bound that is the largest and sets `hours`."""


@dataclass(frozen=True)
class Network:
    """Bytes of one step of the runs of one kind that train at the same time."""

    runs: str
    """Number and kind of the runs, such as `36 layer runs`."""
    pushed: float
    """New weights, from trainers to engines."""
    between_nodes: float
    """Part of `pushed` whose engine is on another node, on average."""
    experience: float
    """Responses with their log-probabilities, from engines to trainers."""
    gradients: float
    """Gradients sent by all ranks of a run that has several, in ring all-reduces; ZeRO 3's gathering is left out."""


@dataclass(frozen=True)
class ClusterPlan:
    """Everything that `plan --cluster` prints."""

    plan: Plan
    cluster: ClusterShape
    allocation: GpuAllocation
    memory: Counter[GpuMemory]
    schedule: RunSchedule
    network: tuple[Network, ...]
    mixed: GpuHours
    """GPU-hours with all runs of an engine in one batch."""
    swapped: GpuHours
    """GPU-hours with one run's batch at a time."""


def plan_on(plan: Plan, cluster: ClusterShape, assumed: Assumptions | None = None) -> ClusterPlan:
    """Allocate a plan to a cluster and forecast its duration and memory.

    Raises:
        SpecError: a plan that this cluster can never place, or whose parts do not fit into its GPUs' memory.
    """
    assumed, resources = assumed or Assumptions(), plan.spec.resources
    if not resources.on_gpu():
        raise SpecError(["resources: the actors ask for no GPUs; give engine and trainer gpus above 0, or leave "
                         "--cluster out"])  # fmt: skip
    nodes = [{"CPU": float("inf"), "GPU": gpus} for gpus in cluster.node_gpus]
    if problems := placement_problems(plan, nodes):
        raise SpecError(problems)
    allocation = allocate_gpus_on(plan, nodes)
    memory = gpu_memories(plan, allocation, cluster.gpu)
    if problems := memory_problems(plan, memory, cluster.gpu):
        raise SpecError(problems)
    together = -(-min(allocation.runs, resources.concurrent_runs or allocation.runs) // resources.engines)
    mixed, swapped = (estimate(plan, cluster.gpu, assumed, count) for count in (together, 1))
    cost = {"mixed": mixed, "swap": swapped}.get(plan.spec.rollout.batching, min(mixed, swapped, key=lambda e: e.total))
    schedule = _schedule(plan, cluster, allocation, cost, assumed)
    return ClusterPlan(plan, cluster, allocation, memory, schedule, _network(plan, allocation, assumed), mixed, swapped)


def _schedule(
    plan: Plan, cluster: ClusterShape, allocation: GpuAllocation, cost: GpuHours, assumed: Assumptions
) -> RunSchedule:
    resources, training, spans = plan.spec.resources, plan.spec.training, plan.spec.rollout.tensor_parallel_size
    layers, wholes = ([run.selection for run in plan.runs if run.selection.trains_all == w] for w in (False, True))
    trained = {run.selection: plan.expected_steps(run) / training.steps for run in plan.runs}
    updates = {s: share * update_seconds(plan, s, cluster.gpu, assumed) for s, share in trained.items()}
    layer_gpus = sum(gpu.layer_ranks > 0 for gpu in allocation.gpus)
    whole_gpus = sum(gpu.whole_ranks > 0 for gpu in allocation.gpus)
    layer_work, whole_work = sum(updates[s] for s in layers), sum(updates[s] for s in wholes)
    layer_share, whole_share = layer_work / max(1, layer_gpus), whole_work / max(1, whole_gpus)
    if joining := len(allocation.joining):
        layer_share = (layer_work + whole_share * joining) / (layer_gpus + joining)
    generation = 3600 * (cost.rollout + cost.evaluation) / (resources.engines * spans)
    bounds: dict[str, float] = {}
    for gpu in allocation.gpus:
        work = {
            "engines": len(gpu.engines) * generation,
            "layer trainers": layer_share if gpu.layer_ranks else 0,
            "whole-model trainers": whole_share if gpu.whole_ranks else 0,
        }
        bounds["the GPUs of " + " and ".join(actors for actors, seconds in work.items() if seconds)] = sum(
            work.values()
        )
    responses = training.steps * training.prompts_per_step * training.group_size
    alone = rollout_seconds(plan, responses, cluster.gpu, assumed) + 3600 * cost.evaluation / (1 + len(plan.runs))
    at_once, at_last = (layer_runs_at_once(plan, allocation, joined) for joined in (False, True))
    layer_waves = -(-len(layers) // max(at_once, at_last))
    whole_waves = -(-len(wholes) // allocation.whole_runs) if wholes else 0
    layer_runs = [trained[s] * alone / spans + updates[s] / resources.trainer_ranks for s in layers]
    whole_runs = [alone / spans + updates[s] / resources.full_trainer_ranks for s in wholes]
    bounds["waves of layer runs, one after the other"] = layer_waves * min(layer_runs, default=0)
    bounds["whole-model runs, each step after the other"] = whole_waves * min(whole_runs, default=0)
    if allocation.in_turn:
        bounds["whole-model and layer runs that take turns"] = sum(layer_runs + whole_runs) / allocation.runs
    bound_by = max(bounds, key=bounds.__getitem__)
    return RunSchedule(at_once, at_last, layer_waves, whole_waves, bounds[bound_by] / 3600, bound_by)


def _network(plan: Plan, allocation: GpuAllocation, assumed: Assumptions) -> tuple[Network, ...]:
    training, resources = plan.spec.training, plan.spec.resources
    kinds = (
        ("layer run", layer_runs_at_once(plan, allocation), Selection.layer(0), resources.trainer_ranks, "layer_ranks"),
        ("whole-model run", allocation.whole_runs, Selection.full(), resources.full_trainer_ranks, "whole_ranks"),
    )
    return tuple(
        Network(
            runs=f"{runs} {name}{'s' if runs > 1 else ''}",
            pushed=runs * (size := plan.push_bytes(selection)),
            between_nodes=_share_between_nodes(allocation, attribute) * runs * size,
            experience=runs * step_tokens(plan, assumed) * TOKEN_BYTES,
            gradients=runs * training.epochs * training.minibatches * 2 * (ranks - 1) * 4 * size // plan.element_bytes,
        )
        for name, runs, selection, ranks, attribute in kinds
        if runs
    )


def _share_between_nodes(allocation: GpuAllocation, attribute: str) -> float:
    """Probability that a trainer's engine is on another node; runs get engines in turn, whatever their nodes."""
    engines = [gpu.node for gpu in allocation.gpus for _ in gpu.engines]
    trainers = [gpu.node for gpu in allocation.gpus for _ in range(getattr(gpu, attribute))]
    apart = sum(engine != trainer for engine in engines for trainer in trainers)
    return apart / max(1, len(engines) * len(trainers))
