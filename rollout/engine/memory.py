"""Memory of an engine on a GPU, from shapes: a plan and a running engine count alike, and vLLM measures nothing.

What vLLM measures is wrong where another process takes or frees memory of the GPU meanwhile, as trainers beside an
engine that is replaced do: the cache then shrinks without a word, or the start fails.
"""

from layersweep.policies.model.architecture import Architecture
from layersweep.rollout.config import RolloutConfig

CONTEXT = 2**29
"""Bytes of one process's CUDA context and libraries."""
SAMPLER_COPIES = 4
"""Float32 numbers a logit of the sampled rows takes: as computed, processed, normalised, and scratch."""


def pass_bytes(shape: Architecture, config: RolloutConfig, element_bytes: int) -> int:
    """Return what a forward pass and the sampler take beside weights and cache, at most, on each of an engine's GPUs.

    A block holds two streams of hidden states, and gate, up and their product; rows of several runs are gathered and
    put back, so twice that.
    """
    rows = max(config.max_num_batched_tokens, config.max_model_len or 0)
    block = 2 * (2 * shape.hidden + 3 * shape.mlp_width // config.tensor_parallel_size) * element_bytes
    return rows * block + config.max_num_seqs * shape.vocabulary * 4 * SAMPLER_COPIES


def gpu_cache_bytes(shape: Architecture, config: RolloutConfig, element_bytes: int, memory: float) -> float:
    """Return the bytes of KV cache on each of an engine's GPUs; below 0 where not even the weights fit.

    Args:
        element_bytes: of weights and cache.
        memory: bytes of one GPU.
    """
    if config.kv_cache_memory_mib:
        return config.kv_cache_memory_mib * 2**20
    weights = shape.parameters * element_bytes / config.tensor_parallel_size
    return config.gpu_memory_utilization * memory - weights - pass_bytes(shape, config, element_bytes) - CONTEXT
