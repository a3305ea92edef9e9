"""How many tokens a trainer computes at a time, from the memory that is there. No torch: a plan asks too."""

import psutil

from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection
from layersweep.workers.config import TrainingConfig

CPU_SHARE, CPU_MOST = 1 / 64, 256 << 20
"""Activations of a trainer on CPUs: share of the machine's memory, since several trainers update at a time beside an
engine, and bytes at most: some hundred rows already fill the matrix products of a core."""
GPU_SHARE = 1 / 4
"""Activations of a trainer on a GPU, as a share of its part of the GPU; the rest is for weights and moments."""
FEWEST, MOST = 128, 16384
"""Tokens of a chosen micro batch."""


def activation_bytes_per_token(shape: Architecture, selection: Selection, element_bytes: int) -> int:
    """Return what a backward pass keeps of one token: in every block from the first trained one on.

    A Llama-type block keeps about six hidden vectors, queries, keys, values and attention outputs, and four
    intermediate vectors. Logits are not among it: they are computed in chunks, see policies.model.token_logprobs.
    """
    wide = 6 * shape.hidden + 2 * shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim
    blocks = max(1, shape.layers - selection.first_block(shape.layers))  # of the final norm and the LM head alone: none
    return blocks * (wide + 4 * shape.intermediate) * element_bytes


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
    element_bytes = 4 if training.dtype == "float32" else 2
    fitting = int(budget / activation_bytes_per_token(shape, selection, element_bytes))
    return min(MOST, max(FEWEST, fitting))
