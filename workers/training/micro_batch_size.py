"""How many tokens a trainer computes at a time, from the memory that is there. No torch: a plan asks too."""

import math
from dataclasses import dataclass

import psutil

from layersweep.policies.model.architecture import CHUNK_BYTES, TRANSFORMERS, Architecture, GpuKernels, flash_head_dim
from layersweep.policies.selection import Selection
from layersweep.workers.config import TrainingConfig

CPU_SHARE, CPU_MOST = 1 / 64, 256 << 20
"""Activations of a trainer on CPUs: share of the machine's memory, since several trainers update at a time beside an
engine, and bytes at most: some hundred rows already fill the matrix products of a core."""
CPU_UNCHECKED_SHARE = 1 / 8
"""Activations of a trainer on CPUs that are rather kept than computed again, as a share of the machine's memory."""
GPU_SHARE = 1 / 4
"""Activations of a trainer on a GPU, as a share of its part of the GPU; the rest is for weights and moments."""
KEYS_A_TOKEN = 2
"""Keys that `varlen_attention` gathers for each token, at most where prompts are no longer than their responses: of G
responses of R tokens to a prompt of P they are G (P + R) for P + G R tokens."""
FEWEST, MOST = 128, 16384
"""Tokens of a chosen micro batch."""


@dataclass(frozen=True)
class BlockActivations:
    """Bytes of one token in one block, as it is computed on a GPU: by transformers, or by fused modules.

    Measured by counting allocations (tests/workers/training/test_activations.py), which is within a tenth,
    15 % too many for a lower layer of an 8B model with activation checkpointing.
    """

    frozen: int
    """Kept for the backward pass: the norms' inputs in float32, queries, keys and values (those that heads share once
    per head; with `varlen_attention` those that it gathers, and a float32 number per head), what attention gives, gate,
    its activation and up. Fused, the norms' inputs as they are, and no activation of the gate."""
    inputs: int
    """Kept besides where the block trains: inputs of its matrix products, and what norms multiply with weights, unless
    they are fused."""
    hidden: int
    """Hidden states, which are all that is kept with activation checkpointing."""
    working: int
    """Gradients of activations, while the block's backward pass is computed."""

    @classmethod
    def of(cls, shape: Architecture, element_bytes: int, kernels: GpuKernels) -> "BlockActivations":
        q, kv, inner = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.mlp_width
        keys_and_values = 2 * KEYS_A_TOKEN * kv if kernels.varlen else 2 * q
        normed = len(shape.family.norms) * shape.hidden + (q + kv if shape.qk_norm else 0)
        return cls(
            frozen=(element_bytes if kernels.fused else 4) * normed
            + 4 * kernels.varlen * shape.heads
            + element_bytes * (2 * q + keys_and_values + (2 if kernels.fused else 3) * inner),
            inputs=element_bytes * (2 * shape.hidden + q + inner + (0 if kernels.fused else normed)),
            hidden=element_bytes * shape.hidden,
            working=5 * element_bytes * inner // 2,
        )


def activation_bytes_per_token(
    shape: Architecture, selection: Selection, element_bytes: int, checkpointing: bool = False,
    kernels: GpuKernels = TRANSFORMERS,
) -> int:  # fmt: skip
    """Return what a backward pass keeps of one token: in every block from the first trained one on, and of the final
    norm. Logits are not among it: they are computed in chunks."""
    block = BlockActivations.of(shape, element_bytes, kernels)
    blocks = shape.layers - selection.first_block(shape.layers)
    trained = shape.layers if selection.trains_all else len(selection.layers)
    kept = blocks * block.hidden if checkpointing else blocks * block.frozen + trained * block.inputs
    return kept + (element_bytes if kernels.fused else 4) * shape.hidden


def activation_bytes(
    shape: Architecture, selection: Selection, element_bytes: int, tokens: int, gpu: bool, checkpointing: bool = False,
    kernels: GpuKernels = TRANSFORMERS,
) -> int:  # fmt: skip
    """Return what an update takes of memory at most, beside weights, their gradients and the optimizer's state.

    What is kept, and the largest of what comes one after the other: chunks of logits, or the backward pass of a block,
    with checkpointing together with what is kept of it then. A gradient comes in the weight's dtype and is added in
    float32; that of a tied LM head waits for the embedding's, and their sum is a third tensor. Left out: masks, which
    depend on the trees in a batch.

    Args:
        tokens: of a micro batch, its responses' tokens among them.
    """
    block = BlockActivations.of(shape, element_bytes, kernels)
    embedding, added = shape.vocabulary * shape.hidden, element_bytes + 4
    kept = tokens * activation_bytes_per_token(shape, selection, element_bytes, checkpointing, kernels)
    head = 2 * min(4 * shape.vocabulary * tokens, CHUNK_BYTES["cuda" if gpu else "cpu"])
    weight = shape.largest_block_weight * added
    upper, trained = tokens * block.working, weight
    if checkpointing:
        upper += tokens * block.frozen
        trained += tokens * (block.frozen + block.inputs)
    if not selection.trains_all:
        # When the trained block's turn comes, with checkpointing, nothing is kept any more of those above it.
        above = shape.layers - 1 - max(selection.layers, default=-1) if checkpointing else 0
        return kept + max(head, upper if above or not checkpointing else 0, trained - tokens * above * block.hidden)
    if not shape.tied:
        return kept + max(head + embedding * element_bytes, embedding * added, upper, trained)
    return max(kept + embedding * 4 + max(head, embedding * element_bytes, upper, trained), embedding * 3 * 4)


def expected_kernels(training: TrainingConfig, shape: Architecture, gpu: bool) -> GpuKernels:
    """Return which kernels a trainer computes with, on a GPU that has FlashAttention (Ampere or later) and Liger's."""
    varlen = training.attention == "auto" and training.dtype == "bfloat16" and flash_head_dim(shape.head_dim)
    return GpuKernels(gpu and varlen, gpu and shape.family.fused_on_gpus)


def unchecked_tokens(
    training: TrainingConfig, shape: Architecture, selection: Selection, gpu_bytes: float,
    kernels: GpuKernels | None = None,
) -> float:  # fmt: skip
    """Return the tokens of the largest micro batch that needs no activation checkpointing.

    Args:
        gpu_bytes: the trainer's part of its GPU's memory; 0 on CPUs, where this machine's memory counts.
        kernels: of the trainer; null is what is expected.
    """
    if training.checkpointing != "auto":
        return 0 if training.checkpointing == "on" else math.inf
    budget = gpu_bytes * GPU_SHARE if gpu_bytes else psutil.virtual_memory().total * CPU_UNCHECKED_SHARE
    kernels = kernels or expected_kernels(training, shape, gpu_bytes > 0)
    return budget / activation_bytes_per_token(shape, selection, _element_bytes(training), kernels=kernels)


def micro_batch_tokens(
    training: TrainingConfig, shape: Architecture, selection: Selection, gpu_bytes: float = 0.0,
    kernels: GpuKernels | None = None,
) -> int:  # fmt: skip
    """Return the tokens of a micro batch: as the spec says, else as many as memory allows.

    Args:
        gpu_bytes: the trainer's part of its GPU's memory; 0 on CPUs, where this machine's memory counts.
        kernels: of the trainer; null is what is expected.
    """
    if training.micro_batch_tokens:
        return training.micro_batch_tokens
    budget = gpu_bytes * GPU_SHARE if gpu_bytes else min(CPU_MOST, psutil.virtual_memory().total * CPU_SHARE)
    kernels = kernels or expected_kernels(training, shape, gpu_bytes > 0)
    checkpointing = training.checkpointing == "on"
    kept = activation_bytes_per_token(shape, selection, _element_bytes(training), checkpointing, kernels)
    return min(MOST, max(FEWEST, int(budget / kept)))


def _element_bytes(training: TrainingConfig) -> int:
    return 4 if training.dtype == "float32" else 2
