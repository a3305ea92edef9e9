"""Memory of an engine on a GPU, from shapes: a plan and a running engine count alike, and vLLM measures nothing.

What vLLM measures is wrong where another process takes or frees memory of the GPU meanwhile, as trainers beside an
engine that is replaced do: the cache then shrinks without a word, or the start fails.
"""

import math

from layersweep.policies.model.architecture import Architecture
from layersweep.rollout.config import RolloutConfig

CONTEXT = 2**29
"""Bytes of one process's CUDA context and libraries."""
SAMPLER_COPIES = 4
"""Float32 numbers a logit of the sampled rows takes: as computed, processed, normalised, and scratch."""

GRAPH = 2**24
"""Bytes of one captured CUDA graph, and of its share of what all of them compute in: a guess, never measured."""
MOST_ROWS = 512
"""Rows of the largest batch that is captured: of more, arithmetic takes longer than launches."""


def capture_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to capture: each half or a third larger than the one before, up to all sequences."""
    most = min(max_num_seqs, MOST_ROWS)
    ladder = [size for k in range(math.ceil(math.log2(most)) + 1) for size in (2**k, 3 * 2**k // 2) if size < most]
    return sorted({*ladder, most})


def pass_bytes(shape: Architecture, config: RolloutConfig, element_bytes: int) -> int:
    """Return what a forward pass and the sampler take beside weights and cache, at most, on each of an engine's GPUs.

    A block holds two streams of hidden states, and gate, up and their product; rows of several runs are gathered and
    put back, so twice that. CUDA graphs take theirs besides.
    """
    rows = max(config.max_num_batched_tokens, config.max_model_len or 0)
    block = 2 * (2 * shape.hidden + 3 * shape.mlp_width // config.tensor_parallel_size) * element_bytes
    graphs = GRAPH * len(capture_sizes(config.max_num_seqs)) if config.cuda_graphs else 0
    return graphs + rows * block + config.max_num_seqs * shape.vocabulary * 4 * SAMPLER_COPIES


def cache_element_bytes(config: RolloutConfig, element_bytes: int) -> int:
    """Return the bytes of a number in the KV cache.

    Args:
        element_bytes: of weights.
    """
    return 1 if config.kv_cache_dtype == "fp8" else element_bytes


def gpu_cache_bytes(shape: Architecture, config: RolloutConfig, element_bytes: int, memory: float) -> float:
    """Return the bytes of KV cache on each of an engine's GPUs; below 0 where not even the weights fit.

    Args:
        element_bytes: of weights.
        memory: bytes of one GPU.
    """
    if config.kv_cache_memory_mib:
        return config.kv_cache_memory_mib * 2**20
    weights = shape.parameters * element_bytes / config.tensor_parallel_size
    return config.gpu_memory_utilization * memory - weights - pass_bytes(shape, config, element_bytes) - CONTEXT
