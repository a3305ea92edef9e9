"""What lies in the memory of each GPU of a seated plan.

Weights, gradients, moments, KV cache and overlays are counted exactly from the model's shape. Activations are an
estimate for one micro batch, at most; a process's CUDA context is taken as half a GiB. Left out: fragmentation of
torch's allocator, NCCL's buffers, the moment at which a whole-model trainer copies its weights, and what an engine
keeps besides its overlays while it sleeps (`rollout.sleep`).
"""

from collections import Counter
from dataclasses import dataclass, replace

from layersweep.policies.selection import Selection
from layersweep.rollout.config import RolloutConfig

from .cluster_shape import GpuKind
from .cost_model import activation_bytes, cache_bytes
from .gpu_allocation import Gpu, GpuAllocation
from .placement import layer_runs_at_once
from .plan import Plan

CONTEXT = 2**29
"""Bytes of one process's CUDA context and libraries."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU."""

    who: str
    weights: float = 0
    """Of engines."""
    cache: float = 0
    overlays: float = 0
    """Of the runs that train at the same time; an engine forgets a run that ends."""
    trunk: float = 0
    """The frozen base, once for all layer trainers that share a berth."""
    trainers: float = 0
    """Weights, gradients and optimizer state of what trains."""
    activations: float = 0
    contexts: float = 0

    sleeps: bool = False
    """Whether engines sleep while trainers compute (`rollout.sleep`): weights and cache, or activations, never both."""

    @property
    def kept(self) -> float:
        """What stays whoever works."""
        return self.overlays + self.trunk + self.trainers + self.contexts

    @property
    def certain(self) -> float:
        """Without the activations."""
        return self.kept + self.weights + self.cache

    @property
    def total(self) -> float:
        """At any time."""
        if self.sleeps:
            return self.kept + max(self.weights + self.cache, self.activations)
        return self.certain + self.activations


def card_memories(plan: Plan, seating: GpuAllocation, gpu: GpuKind) -> Counter[GpuMemory]:
    """GPUs by what lies in them, and how many of each there are; where runs take turns, the larger one."""
    layer_runs = layer_runs_at_once(plan, seating) - (seating.in_turn and seating.whole_runs > 0)
    served = [plan.push_bytes(Selection.full())] * seating.whole_runs + [
        plan.push_bytes(Selection.layer(0))
    ] * layer_runs
    cards = []
    for card in seating.cards:
        if seating.in_turn and card.whole_ranks and card.layer_ranks:
            turns = (replace(card, layer_ranks=0), replace(card, whole_ranks=0))
            cards.append(max((_memory(plan, turn, gpu, served) for turn in turns), key=lambda memory: memory.total))
        else:
            cards.append(_memory(plan, card, gpu, served))
    return Counter(cards)


def memory_problems(plan: Plan, cards: Counter[GpuMemory], gpu: GpuKind) -> list[str]:
    """Plans that run out of memory whatever the activations: field, sizes, fix."""
    return _cache_problems(plan, gpu) + [
        _explain(card, gpu, plan.spec.rollout) for card in cards if card.certain > gpu.memory
    ]


def engine_cache(plan: Plan, gpu: GpuKind) -> float:
    """Bytes of KV cache on each GPU of an engine; below 0 where not even the weights fit."""
    rollout = plan.spec.rollout
    if rollout.kv_cache_memory_mib:
        return rollout.kv_cache_memory_mib * 2**20
    return rollout.gpu_memory_utilization * gpu.memory - plan.trunk_bytes / rollout.tensor_parallel_size


def whole_trainer_bytes(plan: Plan) -> float:
    """A rank's own memory of a whole-model run, as ZeRO splits it: optimizer state from stage 1 on, gradients from 2,
    weights from 3; offloaded optimizer state is not on the GPU."""
    spec, whole = plan.spec, Selection.full()
    ranks, stage = spec.resources.full_trainer_ranks, spec.deepspeed.full_zero_stage
    weights = gradients = plan.push_bytes(whole)
    optimizer = plan.trainer_bytes(whole) - weights - gradients
    if spec.deepspeed.offload_optimizer == "cpu":
        optimizer = 0
    share = [1 if stage < least else 1 / ranks for least in (3, 2, 1)]
    return weights * share[0] + gradients * share[1] + optimizer * share[2]


def _memory(plan: Plan, card: Gpu, gpu: GpuKind, served: list[int]) -> GpuMemory:
    """`served` are the overlays of all runs that train at the same time; they are dealt out to the engines in turn."""
    spans = plan.spec.rollout.tensor_parallel_size
    layers = [run.selection for run in plan.runs if not run.selection.whole]
    lowest = min(layers, key=lambda selection: selection.layers, default=Selection.layer(0))
    trunks = card.whole_ranks + (1 if card.berth else card.layer_ranks)
    activations = card.layer_ranks * activation_bytes(plan, lowest, gpu)
    if card.whole_ranks:
        activations += card.whole_ranks * activation_bytes(plan, Selection.full(), gpu)
    return GpuMemory(
        who=_who(card),
        weights=len(card.engines) * plan.trunk_bytes / spans,
        cache=len(card.engines) * max(0, engine_cache(plan, gpu)),
        overlays=sum(sum(served[number :: plan.spec.resources.engines]) for number in card.engines) / spans,
        trunk=trunks * plan.trunk_bytes,
        trainers=card.layer_ranks * plan.trainer_bytes(lowest) + card.whole_ranks * whole_trainer_bytes(plan),
        activations=activations,
        contexts=CONTEXT * (len(card.engines) + card.layer_ranks + card.whole_ranks + bool(card.berth)),
        sleeps=plan.spec.rollout.sleep,
    )


def _who(card: Gpu) -> str:
    """Such as `1 engine, 3 layer trainers`."""
    counts = {
        "engine": len(card.engines), "whole-model trainer": card.whole_ranks, "layer trainer": card.layer_ranks,
    }  # fmt: skip
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    return ", ".join(parts) or "nobody"


def _cache_problems(plan: Plan, gpu: GpuKind) -> list[str]:
    """vLLM does not start unless one sequence of the greatest length fits into the cache."""
    rollout, most = plan.spec.rollout, plan.architecture.max_positions
    tokens = min(rollout.max_model_len or most, most)
    one, room = tokens * cache_bytes(plan) / rollout.tensor_parallel_size, engine_cache(plan, gpu)
    if room >= one:
        return []
    return [f"rollout.{_cache_field(rollout)}: leaves {_gib(max(0, room))} of an {gpu.name} for the KV cache, and one "
            f"sequence of rollout.max_model_len {tokens} takes {_gib(one)}; raise it, lower max_model_len, or raise "
            "tensor_parallel_size"]  # fmt: skip


def _explain(card: GpuMemory, gpu: GpuKind, rollout: RolloutConfig) -> str:
    """What is too large, and what to do about it."""
    if card.weights + card.cache + card.overlays < card.trunk + card.trainers:
        field, fix = "resources.trainer.gpus", "raise it, so that fewer share the GPU"
        if "whole" in card.who:
            field = "resources.full_trainer_ranks"
            fix = "spread it over more ranks with deepspeed.full_zero_stage 3"
    elif card.certain - card.cache > gpu.memory:
        field = "model"
        fix = "take GPUs with more memory, or more engines, among which the runs' overlays are dealt out"
    else:
        field, fix = f"rollout.{_cache_field(rollout)}", "lower it: overlays come on top of what it grants"
    named = ("weights", "cache", "overlays", "trunk", "trainers", "contexts")
    parts = ", ".join(f"{name} {_gib(count)}" for name in named if (count := getattr(card, name)))
    return (
        f"{field}: {card.who} on one {gpu.name}: {_gib(card.certain)} without activations ({parts}), and it has "
        f"{_gib(gpu.memory)}; {fix}"
    )


def _cache_field(rollout: RolloutConfig) -> str:
    return "kv_cache_memory_mib" if rollout.kv_cache_memory_mib else "gpu_memory_utilization"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
