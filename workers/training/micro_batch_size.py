"""How many tokens a trainer computes at a time, from the memory that is there. No torch: a plan asks too."""

import math

import psutil

from layersweep.policies.model.architecture import CHUNK_BYTES, Architecture
from layersweep.policies.selection import Selection
from layersweep.workers.config import TrainingConfig

CPU_SHARE, CPU_MOST = 1 / 64, 256 << 20
"""Activations of a trainer on CPUs: share of the machine's memory, since several trainers update at a time beside an
engine, and bytes at most: some hundred rows already fill the matrix products of a core."""
CPU_UNCHECKED_SHARE = 1 / 8
"""Activations of a trainer on CPUs that are rather kept than computed again, as a share of the machine's memory."""
GPU_SHARE = 1 / 4
"""Activations of a trainer on a GPU, as a share of its part of the GPU; the rest is for weights and moments."""
HEAD_CHUNKS = 2.5
"""Chunks' worth of numbers that the head holds at a time: logits in float32, probabilities, and either in 16 bits."""
FEWEST, MOST = 128, 16384
"""Tokens of a chosen micro batch."""


def activation_bytes_per_token(
    shape: Architecture, selection: Selection, element_bytes: int, checkpointing: bool = False
) -> int:
    """Return what a backward pass keeps of one token: in every block from the first trained one on.

    A Llama-type block, as transformers computes it on a GPU, keeps the inputs of its norms in float32, queries, keys
    and values (those that heads share once per head), what attention gives, and gate, its activation and up. One that
    trains keeps the inputs of its matrix products besides, and what its norms multiply their weights with. Logits are
    not among it: they are computed in chunks, see `head_bytes`.

    Args:
        checkpointing: only the blocks' inputs are kept, and one block at a time is computed again.
    """
    below = 0 if selection.trains_all else min(selection.layers)
    blocks, trained = shape.layers - below, shape.layers if selection.trains_all else len(selection.layers)
    q, kv, inner = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    normed = 2 * shape.hidden + (q + kv if shape.qk_norm else 0)
    block = 4 * normed + element_bytes * (4 * q + 3 * inner)
    inputs = element_bytes * (2 * shape.hidden + q + inner + normed)
    if checkpointing:
        return blocks * element_bytes * shape.hidden + block + inputs
    return blocks * block + trained * inputs


def head_bytes(shape: Architecture, tokens: int, gpu: bool) -> int:
    """Return what LM head, log-probabilities and entropies of a micro batch take at most: a few chunks of logits."""
    chunk = min(4 * shape.vocabulary * tokens, CHUNK_BYTES["cuda" if gpu else "cpu"])
    return int(HEAD_CHUNKS * chunk)


def unchecked_tokens(training: TrainingConfig, shape: Architecture, selection: Selection, gpu_bytes: float) -> float:
    """Return the tokens of the largest micro batch that needs no activation checkpointing.

    Args:
        gpu_bytes: the trainer's part of its GPU's memory; 0 on CPUs, where this machine's memory counts.
    """
    if training.checkpointing != "auto":
        return 0 if training.checkpointing == "on" else math.inf
    budget = gpu_bytes * GPU_SHARE if gpu_bytes else psutil.virtual_memory().total * CPU_UNCHECKED_SHARE
    return budget / activation_bytes_per_token(shape, selection, _element_bytes(training))


def micro_batch_tokens(
    training: TrainingConfig, shape: Architecture, selection: Selection, gpu_bytes: float = 0.0
) -> int:
    """Return the tokens of a micro batch, padding included: as the spec says, else as many as memory allows.

    Args:
        gpu_bytes: the trainer's part of its GPU's memory; 0 on CPUs, where this machine's memory counts.
    """
    if training.micro_batch_tokens:
        return training.micro_batch_tokens
    budget = gpu_bytes * GPU_SHARE if gpu_bytes else min(CPU_MOST, psutil.virtual_memory().total * CPU_SHARE)
    checkpointing = training.checkpointing == "on"
    fitting = int(budget / activation_bytes_per_token(shape, selection, _element_bytes(training), checkpointing))
    return min(MOST, max(FEWEST, fitting))


def _element_bytes(training: TrainingConfig) -> int:
    return 4 if training.dtype == "float32" else 2
