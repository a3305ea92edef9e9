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
from .fused import FusedAttention, replace_modules, replacements
from .tree_batch import pack

logger = logging.getLogger(__name__)

TOKENS = 70
"""Tokens of the prompt, and of the response, that the comparison takes."""
FLOOR, ROUNDING = 0.01, 2.0
"""Relative error (root mean square) that no kernel is refused for, and error as a multiple of that of transformers' own
modules in the model's dtype. bfloat16 makes about .005; a rotation the wrong way or a missing weight more than .1."""


class LigerRMSNorm(nn.Module):
    """Replacement for transformers' <family>RMSNorm, with the same attributes."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., n] over n; rounded where transformers rounds."""
        # Never in place: after a norm of a block's output, its gradient is the residual stream's too. Row by row: Liger
        # has other kernels for many short rows, which the comparison would not reach.
        in_place, by_row = False, True
        return LigerRMSNormFunction.apply(hidden, self.weight, self.variance_epsilon, 0.0, "llama", in_place, by_row)


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


KINDS = (LigerRMSNorm, LigerAttention, LigerMLP)


def fuse(model: nn.Module) -> nn.Module:
    """Replace norms, attentions and SwiGLU of transformers' decoders, in place; their weights stay the same."""
    return replace_modules(model, *KINDS)


def fuse_checked(model: nn.Module) -> bool:
    """Fuse a decoder if the modules of its first block then compute what they did before; return whether any is.

    Kernels that do not compile or compute something else are left aside, with a warning: nothing needs them.
    """
    try:
        found = errors(model)
    except Exception as error:  # of the compiler, the driver, the device: whatever the machine lacks for the kernels
        logger.warning("Liger's kernels do not run here, so updates are slower: %s: %s", type(error).__name__, error)
        return False
    finally:
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    wrong = {
        name: f"{fused:.2g}" for name, (fused, plain) in found.items() if not fused < max(FLOOR, ROUNDING * plain)
    }  # NaN neither
    if wrong:
        logger.warning(
            "Liger's kernels are not used, so updates are slower: their results are off by %s here (relative), more "
            "than rounding explains", wrong,
        )  # fmt: skip
        return False
    fuse(model)
    return bool(found)


def errors(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the relative error (root mean square, of the worst tensor) of the results of each module of the first
    block that is replaced, of the gradients of its input and of its norms' weights: fused, and as transformers has it.
    The truth is transformers' own in float32."""
    decoder, random = model.model, torch.Generator().manual_seed(0)
    size, ids = model.config.hidden_size, np.zeros(TOKENS, np.int32)
    hidden, upstream = (torch.randn(1, 2 * TOKENS, size, generator=random).to(model.device, model.dtype) for _ in "ab")
    batch = pack([ids], ids, np.array([TOKENS]), [0], 2 * TOKENS)[0].to(model.device)
    found = {}
    for name, module in decoder.layers[0].named_children():
        if not replacements(module, *KINDS):
            continue
        results = []
        for part in (copy.deepcopy(module).float(), copy.deepcopy(module), fuse(copy.deepcopy(module))):
            norms = [p.requires_grad_() for key, p in part.named_parameters() if p.dim() == 1 and "bias" not in key]
            x = hidden.to(next(part.parameters()).dtype, copy=True).requires_grad_()
            given = BlockInputs(decoder, batch, x.detach()).of(decoder.layers[0]) if name == "self_attn" else {}
            result = part(x, **given)
            result = result[0] if name == "self_attn" else result
            results.append([result.detach(), *torch.autograd.grad(result, [x, *norms], upstream.to(x.dtype))])
        exact, plain, fused = results
        found[name] = _error(fused, exact), _error(plain, exact)
    return found


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest relative error of a tensor, root mean square."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
