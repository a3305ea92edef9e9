"""Norms, rotary embeddings and SwiGLU of a decoder on GPUs by the Triton kernels of Liger (arXiv 2410.10989).

transformers' own pass over a block's activations about as many bytes as its matrix products read and write. What the
kernels keep for the backward pass is less than what the plan counts, which is transformers'.

Not run on a GPU yet. On CPUs the kernels ran interpreted, in float32; the modules of one block are compared with
transformers' own where the model lies before it trains there.
"""

import copy
import logging

import numpy as np
import torch
from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction
from torch import Tensor, nn

from .block_inputs import BlockInputs
from .fused import FusedAttention, replace_modules
from .tree_batch import pack

logger = logging.getLogger(__name__)

TOKENS = 70
"""Tokens of the prompt, and of the response, that the comparison takes."""
LIMIT = 0.02
"""Difference from transformers' own modules that rounding explains, relative, root mean square: bfloat16 makes about
0.005 in results and gradients, a rotation the wrong way or a missing weight more than .1."""


class LigerRMSNorm(nn.Module):
    """Replacement for transformers' <family>RMSNorm, with the same attributes."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., n] over n; rounded where transformers rounds."""
        # Never in place: after a norm of a block's output, its gradient is the residual stream's too.
        return LigerRMSNormFunction.apply(hidden, self.weight, self.variance_epsilon, 0.0, "llama", False)


class LigerAttention(FusedAttention):
    """Replacement for transformers' <family>Attention, with the same attributes."""

    @staticmethod
    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        query, key = LigerRopeFunction.apply(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        return query.transpose(1, 2), key.transpose(1, 2)


class LigerMLP(nn.Module):
    """Replacement for transformers' <family>MLP with SiLU, with the same attributes."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute down(silu(gate(x)) up(x)) of [..., hidden]."""
        return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(hidden), self.up_proj(hidden)))


def fuse(model: nn.Module) -> nn.Module:
    """Replace norms, attentions and SwiGLU of transformers' decoders, in place; their weights stay the same."""
    return replace_modules(model, LigerRMSNorm, LigerAttention, LigerMLP)


def fuse_checked(model: nn.Module) -> bool:
    """Fuse a decoder if the modules of its first block then compute what they did before; return whether it did.

    Kernels that do not compile or compute something else are left aside, with a warning: nothing needs them.
    """
    try:
        found = differences(model)
    except Exception as error:  # of the compiler, the driver, the device: whatever the machine lacks for the kernels
        logger.warning("Liger's kernels do not run here, so updates are slower: %s: %s", type(error).__name__, error)
        return False
    if wrong := {name: f"{off:.2g}" for name, off in found.items() if not off < LIMIT}:  # NaN neither
        logger.warning(
            "Liger's kernels are not used, so updates are slower: they differ from transformers' modules by %s here "
            "(relative), and rounding explains %g", wrong, LIMIT,
        )  # fmt: skip
        return False
    fuse(model)
    return True


def differences(model: nn.Module) -> dict[str, float]:
    """Return the largest relative difference (root mean square, of a tensor) that fusing makes to the results of each
    module of the first block, to the gradients of its input and to those of norms' weights."""
    decoder, random = model.model, torch.Generator().manual_seed(0)
    size, ids = model.config.hidden_size, np.zeros(TOKENS, np.int32)
    hidden, upstream = (torch.randn(1, 2 * TOKENS, size, generator=random).to(model.device, model.dtype) for _ in "ab")
    batch = pack([ids], ids, np.array([TOKENS]), [0], 2 * TOKENS)[0].to(model.device)
    given = BlockInputs(decoder, batch, hidden).of(decoder.layers[0])
    found = {}
    for name, module in decoder.layers[0].named_children():
        plain, fused = copy.deepcopy(module), fuse(copy.deepcopy(module))
        if [type(part) for part in plain.modules()] == [type(part) for part in fused.modules()]:
            continue
        both = []
        for part in (plain, fused):
            norms = [p.requires_grad_() for key, p in part.named_parameters() if p.dim() == 1 and "bias" not in key]
            x = hidden.clone().requires_grad_()
            result = part(x, **given)[0] if name == "self_attn" else part(x)
            both.append([result.detach(), *torch.autograd.grad(result, [x, *norms], upstream)])
        found[name] = max(float((a - b).float().norm() / a.float().norm()) for a, b in zip(*both, strict=True))
    return found
