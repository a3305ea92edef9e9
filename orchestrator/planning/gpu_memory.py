"""Memory of each GPU of a plan, by what takes it.

Weights, gradients, moments, KV cache and overlays are counted exactly from the model's shape, activations of a trainer
within 11 % (tests/workers/training/test_activations.py counts what torch allocates), those of an engine at most; a
process's CUDA context is taken as half a GiB. Left out: fragmentation of torch's allocator, NCCL's buffers, and what an
engine keeps besides its overlays while it sleeps (`rollout.sleep`).
"""

from collections import Counter
from dataclasses import dataclass, replace

from layersweep.policies.selection import Selection
from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.engine.memory import CONTEXT, gpu_cache_bytes, pass_bytes

from .cluster_shape import GpuKind
from .cost_model import cache_bytes, update_bytes
from .gpu_allocation import Gpu, GpuAllocation
from .placement import layer_runs_at_once
from .plan import Plan


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU."""

    actors: str
    """Actors on it, such as `1 engine, 3 layer trainers`."""
    weights: float = 0
    """Weights of engines."""
    cache: float = 0
    """KV cache of engines."""
    overlays: float = 0
    """Overlays of the runs that train at the same time; an engine drops those of a run that ends, but under CUDA graphs
    keeps their place for others, so those of all selections count."""
    trunk: float = 0
    """Frozen base weights, once for all layer trainers that share the GPU."""
    trainers: float = 0
    """Weights, gradients and optimizer state of what trains."""
    passes: float = 0
    """One forward pass of each engine, and the part of a run's weights that it receives meanwhile, at most."""
    activations: float = 0
    """Activations of one micro batch of each trainer, at most."""
    contexts: float = 0
    """CUDA contexts of all processes."""

    sleeps: bool = False
    """Whether engines sleep while trainers compute (`rollout.sleep`): weights and cache, or activations, never both."""

    @property
    def kept(self) -> float:
        """Bytes that are taken at any time."""
        return self.overlays + self.trunk + self.trainers + self.contexts

    @property
    def certain(self) -> float:
        """Bytes without the activations."""
        return self.kept + self.weights + self.cache + self.passes

    @property
    def total(self) -> float:
        """Bytes at most, at any time."""
        if self.sleeps:
            return self.kept + max(self.weights + self.cache + self.passes, self.activations)
        return self.certain + self.activations


@dataclass(frozen=True)
class _Actors:
    """Bytes of a plan's actors, whatever GPU they are on."""

    overlays: list[int]
    """Overlay of each run that trains at the same time; engines get them in turn."""
    layer_trainer: int
    """Weights, gradients and optimizer state of a layer run's rank, at most."""
    layer_activations: int
    whole_activations: int
    """Activations of one micro batch of a rank, at most."""


def gpu_memories(plan: Plan, allocation: GpuAllocation, kind: GpuKind) -> Counter[GpuMemory]:
    """Memory of the allocated GPUs, and how many have each; where runs take turns, that of the larger."""
    partial = _partial(plan)
    actors = _Actors(
        _overlays(plan, allocation),
        max(map(plan.trainer_bytes, partial)),
        max(update_bytes(plan, selection, kind) for selection in partial),
        update_bytes(plan, Selection.full(), kind),
    )
    gpus = []
    for gpu in allocation.gpus:
        if allocation.in_turn and gpu.whole_ranks and gpu.layer_ranks:
            turns = (replace(gpu, layer_ranks=0), replace(gpu, whole_ranks=0))
            gpus.append(max((_memory(plan, turn, kind, actors) for turn in turns), key=lambda memory: memory.total))
        else:
            gpus.append(_memory(plan, gpu, kind, actors))
    return Counter(gpus)


def memory_problems(plan: Plan, memories: Counter[GpuMemory], gpu: GpuKind) -> list[str]:
    """Return problems of a plan that runs out of memory whatever the activations: field, sizes, fix."""
    return _cache_problems(plan, gpu) + [
        _explain(memory, gpu, plan.spec.rollout) for memory in memories if memory.certain > gpu.memory
    ]


def engine_cache(plan: Plan, gpu: GpuKind) -> float:
    """Return the bytes of KV cache on each GPU of an engine; below 0 where not even the weights fit."""
    return gpu_cache_bytes(plan.architecture, plan.spec.rollout, plan.element_bytes, gpu.memory)


def whole_model_trainer_bytes(plan: Plan) -> float:
    """Return the bytes of a whole-model run on each rank, as ZeRO splits them: optimizer state from stage 1 on,
    gradients from 2, weights from 3; offloaded optimizer state is not on the GPU."""
    spec, whole = plan.spec, Selection.full()
    ranks, stage = spec.resources.full_trainer_ranks, spec.deepspeed.full_zero_stage
    weights, gradients = plan.push_bytes(whole), 4 * plan.trainable_parameters(whole)
    optimizer = plan.trainer_bytes(whole) - weights - gradients
    if spec.deepspeed.offload_optimizer == "cpu":
        optimizer = 0
    share = [1 if stage < least else 1 / ranks for least in (3, 2, 1)]
    return weights * share[0] + gradients * share[1] + optimizer * share[2]


def received_bytes(plan: Plan) -> int:
    """Return the bytes that an engine holds for a moment while it receives a run's weights, beside what it keeps of
    them: a block as it came and fused, or the embedding. Under CUDA graphs a stack that grows is there twice."""
    shape, outside = plan.architecture, sum(bool(run.selection.outside) for run in plan.runs)
    stacks = outside if plan.spec.rollout.cuda_graphs else min(outside, 1)
    return max(2 * shape.layer_parameters, stacks * shape.vocabulary * shape.hidden) * plan.element_bytes


def _overlays(plan: Plan, allocation: GpuAllocation) -> list[int]:
    """Return the bytes of all overlays that engines hold at the same time."""
    layer_runs = layer_runs_at_once(plan, allocation) - (allocation.in_turn and allocation.whole_runs > 0)
    joined = layer_runs_at_once(plan, allocation, joined=True)
    whole = [plan.push_bytes(Selection.full())] * allocation.whole_runs
    if plan.spec.rollout.cuda_graphs:
        runs = Counter(run.selection for run in plan.runs if not run.selection.trains_all)
        most = max(layer_runs, joined)
        return whole + [plan.push_bytes(one) for one, count in runs.items() for _ in range(min(count, most))]
    largest = max(map(plan.push_bytes, _partial(plan)))
    return max(whole + [largest] * layer_runs, [largest] * joined, key=sum)


def _memory(plan: Plan, gpu: Gpu, kind: GpuKind, actors: _Actors) -> GpuMemory:
    """Memory of one GPU."""
    spans = plan.spec.rollout.tensor_parallel_size
    trunks = gpu.whole_ranks + (1 if gpu.shared else gpu.layer_ranks)
    passes = pass_bytes(plan.architecture, plan.spec.rollout, plan.element_bytes) + received_bytes(plan)
    return GpuMemory(
        actors=_actors_on(gpu),
        weights=len(gpu.engines) * plan.trunk_bytes / spans,
        cache=len(gpu.engines) * max(0, engine_cache(plan, kind)),
        overlays=sum(sum(actors.overlays[number :: plan.spec.resources.engines]) for number in gpu.engines) / spans,
        trunk=trunks * plan.trunk_bytes,
        trainers=gpu.layer_ranks * actors.layer_trainer + gpu.whole_ranks * whole_model_trainer_bytes(plan),
        passes=len(gpu.engines) * passes,
        activations=gpu.layer_ranks * actors.layer_activations + gpu.whole_ranks * actors.whole_activations,
        contexts=CONTEXT * (len(gpu.engines) + gpu.layer_ranks + gpu.whole_ranks + bool(gpu.shared)),
        sleeps=plan.spec.rollout.sleep,
    )


def _partial(plan: Plan) -> set[Selection]:
    """Return selections of the runs over a part of the model; without such runs a layer, for one to be added."""
    return {run.selection for run in plan.runs if not run.selection.trains_all} or {Selection.layer(0)}


def _actors_on(gpu: Gpu) -> str:
    """Text such as `1 engine, 3 layer trainers`."""
    counts = {
        "engine": len(gpu.engines), "whole-model trainer": gpu.whole_ranks, "layer trainer": gpu.layer_ranks,
    }  # fmt: skip
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    return ", ".join(parts) or "none"


def _cache_problems(plan: Plan, gpu: GpuKind) -> list[str]:
    """Problem of a KV cache in which one sequence of the greatest length does not fit: vLLM then does not start."""
    rollout, most = plan.spec.rollout, plan.architecture.max_positions
    tokens = min(rollout.max_model_len or most, most)
    one, cache = tokens * cache_bytes(plan) / rollout.tensor_parallel_size, engine_cache(plan, gpu)
    if cache >= one:
        return []
    return [f"rollout.{_cache_field(rollout)}: leaves {_gib(max(0, cache))} of an {gpu.name} for the KV cache, and one "
            f"sequence of rollout.max_model_len {tokens} takes {_gib(one)}; raise it, lower max_model_len, or raise "
            "tensor_parallel_size"]  # fmt: skip


def _explain(memory: GpuMemory, gpu: GpuKind, rollout: RolloutConfig) -> str:
    """Field that is too large, sizes, and what to do about it."""
    if memory.weights + memory.cache + memory.passes + memory.overlays < memory.trunk + memory.trainers:
        field, fix = "resources.trainer.gpus", "raise it, so that fewer share the GPU"
        if "whole" in memory.actors:
            field = "resources.full_trainer_ranks"
            fix = "spread it over more ranks with deepspeed.full_zero_stage 3"
    elif memory.certain - memory.cache > gpu.memory:
        field = "model"
        fix = "take GPUs with more memory, or more engines, among which the runs' overlays are dealt out"
    else:
        field, fix = f"rollout.{_cache_field(rollout)}", "lower it: overlays come on top of what it grants"
    named = ("weights", "cache", "passes", "overlays", "trunk", "trainers", "contexts")
    parts = ", ".join(f"{name} {_gib(count)}" for name in named if (count := getattr(memory, name)))
    return (
        f"{field}: {memory.actors} on one {gpu.name}: {_gib(memory.certain)} without activations ({parts}), and it has "
        f"{_gib(gpu.memory)}; {fix}"
    )


def _cache_field(rollout: RolloutConfig) -> str:
    return "kv_cache_memory_mib" if rollout.kv_cache_memory_mib else "gpu_memory_utilization"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
