"""Norms and rotary embeddings of a decoder in float32 on CPUs, with gradients of their own.

As transformers writes them, autograd passes over memory about a dozen times for each. On GPUs, and in other
dtypes, transformers' own modules stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import Cache

from .tree_attention import tree_attention

ATTENTIONS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe")
NORMS = (*ATTENTIONS, "Olmo2", "Olmo3", "Phi3")
"""Families of transformers' modules <family>Attention and <family>RMSNorm that are replaced by equal ones."""


def fuse(model: nn.Module) -> nn.Module:
    """Replace norms and attentions of transformers' decoders, in place, by fused ones; their weights stay the same."""
    parts = {f"{family}RMSNorm": FusedRMSNorm for family in NORMS}
    parts |= {f"{family}Attention": FusedAttention for family in ATTENTIONS}
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in parts and kind.__module__.startswith("transformers.models."):
            module.__class__ = parts[kind.__name__]
    return model


class FusedRMSNorm(nn.Module):
    """Replacement for transformers' <family>RMSNorm, with the same attributes."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., n] over n, float32."""
        return RMSNorm.apply(hidden, self.weight, self.variance_epsilon)


class FusedAttention(nn.Module):
    """Replacement for transformers' <family>Attention, with the same attributes."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend within [B, T, hidden], float32; cosines and sines are [B, T, head_dim]."""
        cos, sin = (x.unsqueeze(2) for x in position_embeddings)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = Rotation.apply(query, cos, sin), Rotation.apply(key, cos, sin)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if past_key_values is not None:  # transformers' own callers, such as generate; training has none
            key, value = past_key_values.update(key, value, self.layer_idx)
        result, _ = tree_attention(self, query, key, value, attention_mask, scaling=self.scaling)
        return self.o_proj(result.flatten(2)), None


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
