"""Arguments of vLLM's engine, from the spec's `rollout` section, the model and the machine."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from vllm.config import CompilationConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.checkpoint import head_is_tied, stored_tensors
from layersweep.policies.model.families import FAMILIES
from layersweep.rollout.config import CPU_KV_CACHE_MIB, RolloutConfig

from .memory import cache_element_bytes, capture_sizes, gpu_cache_bytes
from .model import ROUTED

CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the KV cache on a CPU."""


def engine_args(
    model: str, architecture: str, config: RolloutConfig, dtype: str, seed: int, trust_remote_code: bool = False
) -> EngineArgs:
    """Make vLLM's engine arguments.

    Raises:
        ValueError: an architecture that cannot be routed, or what the spec asks for and this machine cannot do.
    """
    if architecture not in ROUTED:
        raise ValueError(f"model: {architecture} is not supported; supported are {', '.join(sorted(ROUTED))}")
    if config.cuda_graphs and not FAMILIES[architecture].static_slots:
        raise ValueError(f"rollout.cuda_graphs: not for {architecture}; set it to false")
    if config.cuda_graphs and not current_platform.is_cuda():
        raise ValueError("rollout.cuda_graphs: this engine has no GPU of NVIDIA's; set it to false")
    if config.async_scheduling and current_platform.is_cpu():
        raise ValueError("rollout.async_scheduling: this engine has no GPU to overlap with; set it to false")
    if config.kv_cache_dtype == "fp8" and not _computes_fp8():
        raise ValueError(
            "rollout.kv_cache_dtype: fp8 needs AVX-512 on a CPU, and a GPU of NVIDIA's with compute capability 8.9; "
            "set it to auto"
        )
    kv_bytes, window = config.kv_cache_memory_mib and config.kv_cache_memory_mib << 20, config.max_model_len
    element_bytes = 4 if dtype == "float32" else 2
    if current_platform.is_cpu():
        shape = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        # Without chunked prefill a prompt is one forward pass, so the window ends where a pass does.
        window = window or min(shape.max_position_embeddings, config.max_num_batched_tokens)
        kv_bytes = kv_bytes or max(
            CPU_KV_CACHE_MIB << 20, kv_cache_bytes(shape, cache_element_bytes(config, element_bytes), window)
        )
    else:
        memory = current_platform.get_device_total_memory()
        kv_bytes = int(gpu_cache_bytes(Architecture.from_folder(Path(model)), config, element_bytes, memory))
        if kv_bytes <= 0:
            raise ValueError(
                f"rollout.gpu_memory_utilization: {config.gpu_memory_utilization:g} of this GPU's {memory / 2**30:.0f} "
                "GiB leaves nothing for the KV cache beside weights and activations; raise it"
            )
    pass_tokens = max(config.max_num_batched_tokens, window or 0)
    overrides: dict[str, Any] = {"architectures": [ROUTED[architecture].__name__]}
    tied = head_is_tied(stored_tensors(Path(model)))
    if tied is not None:
        overrides["tie_word_embeddings"] = tied
    return EngineArgs(
        model=model,
        trust_remote_code=trust_remote_code,
        hf_overrides=overrides,
        dtype=dtype,
        seed=seed,
        skip_tokenizer_init=True,
        enforce_eager=not config.cuda_graphs,
        compilation_config=graph_settings(config),
        # On a CPU vLLM cannot rewind the seeded generator of a prompt that it splits.
        enable_chunked_prefill=not current_platform.is_cpu(),
        enable_prefix_caching=config.prefix_caching,
        block_size=CPU_BLOCK_TOKENS if current_platform.is_cpu() else None,
        kv_cache_dtype=config.kv_cache_dtype,
        kv_cache_memory_bytes=kv_bytes,
        # Of no use beside the cache's bytes, but that vLLM wants as much to be free; trainers on the GPU may hold it.
        gpu_memory_utilization=0.01,
        tensor_parallel_size=config.tensor_parallel_size,
        max_num_seqs=min(config.max_num_seqs, pass_tokens),  # each has a token at least in a pass; vLLM refuses more
        max_num_batched_tokens=pass_tokens,
        max_model_len=window,
        logprobs_mode="processed_logprobs",
        async_scheduling=config.async_scheduling,
        scheduling_policy="priority",
        disable_log_stats=True,
        enable_sleep_mode=config.sleep,
        worker_extension_cls="layersweep.rollout.engine.worker.OverlayWorker",
    )


def graph_settings(config: RolloutConfig) -> CompilationConfig:
    """Have vLLM capture decode batches, without torch.compile; nothing where `rollout.cuda_graphs` is off."""
    if not config.cuda_graphs:
        return CompilationConfig()
    return CompilationConfig(
        mode=0, cudagraph_mode="FULL_DECODE_ONLY", cudagraph_capture_sizes=capture_sizes(config.max_num_seqs)
    )


def _computes_fp8() -> bool:
    """Tell whether vLLM computes with a KV cache in FP8 on this machine."""
    if current_platform.is_cpu():
        return torch.cpu._is_avx512_supported()
    return current_platform.is_cuda() and current_platform.supports_fp8()


def kv_cache_bytes(shape: PretrainedConfig, element_bytes: int, tokens: int) -> int:
    """Return the bytes of the KV cache of so many tokens, and of two blocks that may stand half empty."""
    heads, head_dim = shape.num_key_value_heads, getattr(shape, "head_dim", None)
    head_dim = head_dim or shape.hidden_size // shape.num_attention_heads
    per_token = 2 * shape.num_hidden_layers * heads * head_dim * element_bytes
    return (tokens + 2 * CPU_BLOCK_TOKENS) * per_token
