"""A plan on a cluster: who sits where, how long it takes at least, and what travels between nodes.

The hours are a lower bound from the work that each group of GPUs has to do (roofline, cost_model) and from
the runs that must follow each other; the largest counts. A run alternates between writing and updating, and other runs
fill the gaps. Waiting, start-up, the tail of long answers and the CPUs' work (rewards, environments) come on top. The
shares of peak that are reached are assumptions, never measured here: the bound itself may be off by a factor of two.
"""

from collections import Counter
from dataclasses import dataclass

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.policies.selection import Selection

from .cluster_shape import ClusterShape
from .cost_model import Assumptions, GpuHours, estimate, rollout_seconds, step_tokens, update_seconds
from .gpu_allocation import GpuAllocation
from .gpu_memory import GpuMemory, card_memories, memory_problems
from .placement import layer_runs_at_once, placement_problems, seat_on
from .plan import Plan

TOKEN_BYTES = 8
"""Of a response's token on its way to the trainer: its number and its log-probability."""


@dataclass(frozen=True)
class RunSchedule:
    """When the runs train."""

    layer_runs: int
    """Layer runs at a time."""
    layer_waves: int
    whole_waves: int
    hours: float
    """Wall clock, at least."""
    bound_by: str
    """What sets `hours`."""


@dataclass(frozen=True)
class Network:
    """Bytes of one step of the runs of one kind that train at the same time."""

    who: str
    pushed: float
    """New weights, from trainers to engines."""
    between_nodes: float
    """Of these, those whose engine is on another node, on average."""
    experience: float
    """Responses with their log-probabilities, from engines to trainers."""
    gradients: float
    """Sent by all ranks of a run that has several, in ring all-reduces; ZeRO 3's gathering of weights comes on top."""


@dataclass(frozen=True)
class ClusterPlan:
    """Everything that `plan --cluster` shows."""

    plan: Plan
    cluster: ClusterShape
    seating: GpuAllocation
    memory: Counter[GpuMemory]
    schedule: RunSchedule
    network: tuple[Network, ...]
    mixed: GpuHours
    """GPU-hours, with all runs of an engine written in one batch."""
    swapped: GpuHours
    """GPU-hours, with one run's batch at a time."""


def plan_on(plan: Plan, cluster: ClusterShape, assumed: Assumptions | None = None) -> ClusterPlan:
    """Place a plan and work out what it takes.

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
    seating = seat_on(plan, nodes)
    memory = card_memories(plan, seating, cluster.gpu)
    if problems := memory_problems(plan, memory, cluster.gpu):
        raise SpecError(problems)
    together = -(-min(seating.runs, resources.concurrent_runs or seating.runs) // resources.engines)
    mixed, swapped = (estimate(plan, cluster.gpu, assumed, count) for count in (together, 1))
    cost = {"mixed": mixed, "swap": swapped}.get(plan.spec.rollout.batching, min(mixed, swapped, key=lambda e: e.total))
    schedule = _schedule(plan, cluster, seating, cost, assumed)
    return ClusterPlan(plan, cluster, seating, memory, schedule, _network(plan, seating, assumed), mixed, swapped)


def _schedule(
    plan: Plan, cluster: ClusterShape, seating: GpuAllocation, cost: GpuHours, assumed: Assumptions
) -> RunSchedule:
    resources, training, spans = plan.spec.resources, plan.spec.training, plan.spec.rollout.tensor_parallel_size
    layers, wholes = ([run.selection for run in plan.runs if run.selection.whole == w] for w in (False, True))
    trained = {run.selection: plan.expected_steps(run) / training.steps for run in plan.runs}
    updates = {s: share * update_seconds(plan, s, cluster.gpu, assumed) for s, share in trained.items()}
    layer_cards = sum(card.layer_ranks > 0 for card in seating.cards)
    whole_cards = sum(card.whole_ranks > 0 for card in seating.cards)
    writing = 3600 * (cost.rollout + cost.evaluation) / (resources.engines * spans)
    bounds: dict[str, float] = {}
    for card in seating.cards:
        work = {
            "engines": len(card.engines) * writing,
            "layer trainers": sum(updates[s] for s in layers) / layer_cards if card.layer_ranks else 0,
            "whole-model trainers": sum(updates[s] for s in wholes) / whole_cards if card.whole_ranks else 0,
        }
        bounds["the GPUs of " + " and ".join(who for who, seconds in work.items() if seconds)] = sum(work.values())
    responses = training.steps * training.prompts_per_step * training.group_size
    alone = rollout_seconds(plan, responses, cluster.gpu, assumed) + 3600 * cost.evaluation / (1 + len(plan.runs))
    at_once = layer_runs_at_once(plan, seating)
    layer_waves = -(-len(layers) // at_once)
    whole_waves = -(-len(wholes) // seating.whole_runs) if wholes else 0
    layer_runs = [trained[s] * alone / spans + updates[s] / resources.trainer_ranks for s in layers]
    whole_runs = [alone / spans + updates[s] / resources.full_trainer_ranks for s in wholes]
    bounds["waves of layer runs, one after the other"] = layer_waves * min(layer_runs, default=0)
    bounds["whole-model runs, each step after the other"] = whole_waves * min(whole_runs, default=0)
    if seating.in_turn:
        bounds["whole-model and layer runs that take turns"] = sum(layer_runs + whole_runs) / seating.runs
    bound_by = max(bounds, key=bounds.__getitem__)
    return RunSchedule(at_once, layer_waves, whole_waves, bounds[bound_by] / 3600, bound_by)


def _network(plan: Plan, seating: GpuAllocation, assumed: Assumptions) -> tuple[Network, ...]:
    training, resources = plan.spec.training, plan.spec.resources
    kinds = (
        ("layer run", layer_runs_at_once(plan, seating), Selection.layer(0), resources.trainer_ranks, "layer_ranks"),
        ("whole-model run", seating.whole_runs, Selection.full(), resources.full_trainer_ranks, "whole_ranks"),
    )
    return tuple(
        Network(
            who=f"{runs} {name}{'s' if runs > 1 else ''}",
            pushed=runs * (size := plan.push_bytes(selection)),
            between_nodes=_elsewhere(seating, attribute) * runs * size,
            experience=runs * step_tokens(plan, assumed) * TOKEN_BYTES,
            gradients=runs * training.epochs * training.minibatches * 2 * (ranks - 1) * size,
        )
        for name, runs, selection, ranks, attribute in kinds
        if runs
    )


def _elsewhere(seating: GpuAllocation, attribute: str) -> float:
    """Chance that a trainer's engine is on another node; engines are dealt out without regard to nodes."""
    engines = [card.node for card in seating.cards for number in card.engines]
    trainers = [card.node for card in seating.cards for _ in range(getattr(card, attribute))]
    apart = sum(engine != trainer for engine in engines for trainer in trainers)
    return apart / max(1, len(engines) * len(trainers))
