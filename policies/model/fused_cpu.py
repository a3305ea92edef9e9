"""Norms and rotary embeddings of a decoder in float32 on CPUs, with gradients of their own.

As transformers writes them, autograd passes over memory about a dozen times for each. In other dtypes transformers' own
modules stay as they are; of GPUs see `fused_gpu`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .fused import FusedAttention, replace_modules


def fuse(model: nn.Module) -> nn.Module:
    """Replace norms and attentions of transformers' decoders, in place, by fused ones; their weights stay the same."""
    return replace_modules(model, CpuRMSNorm, CpuAttention)


class CpuRMSNorm(nn.Module):
    """Replacement for transformers' <family>RMSNorm, with the same attributes."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., n] over n, float32."""
        return RMSNorm.apply(hidden, self.weight, self.variance_epsilon)


class CpuAttention(FusedAttention):
    """Replacement for transformers' <family>Attention in float32, with the same attributes."""

    @staticmethod
    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        return Rotation.apply(query, cos, sin), Rotation.apply(key, cos, sin)


class RMSNorm(Function):
    """Norm y = w x / rms(x), rms(x) = sqrt(mean(x^2) + eps) (Zhang and Sennrich, arXiv 1910.07467, equation 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Compute, with r = 1 / rms(x), dx = r w dy - x r^3 mean(w x dy), dw = the sum of r x dy over all rows."""
        x, weight, inverse = ctx.saved_tensors
        along = gradient * x
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = inverse.flatten() @ along.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            mean = (along @ weight).unsqueeze(-1).div_(-x.shape[-1]).mul_(inverse.pow(3))
            of_x = torch.mul(gradient, weight, out=along).mul_(inverse).addcmul_(x, mean)
        return of_x, of_weight, None


class Rotation(Function):
    """Rotary position embedding: pairs (i, i + n/2) of the n last dimensions, each turned by its angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient back: a rotation's transpose is its inverse (scaled cosines and sines scale it too)."""
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x; cos and sin repeat their first half in the second, as in transformers."""
    half = x.shape[-1] // 2
    sin = sin[..., :half]
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin)
    return turned
