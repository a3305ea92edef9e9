"""Stand-ins on the meta device for Liger's functions: they allocate, keep and overwrite what these do."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *_: Any) -> Tensor:
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], device="meta"))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, weight, _ = ctx.saved_tensors
        of_weight = torch.empty(132, x.shape[-1], device="meta").sum(0).to(weight.dtype)  # a row per multiprocessor
        others = [None] * (len(ctx.needs_input_grad) - 2)
        return torch.empty_like(gradient), of_weight if ctx.needs_input_grad[1] else None, *others


class Rope(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        return *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in gradients), None, None


class SiLUMul(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return gate.view(gate.shape), up.view(up.shape)  # overwritten


def install() -> None:
    """Have `fused_gpu` import these as Liger's; before anything else does."""
    import sys

    functions = {"LigerRMSNormFunction": RMSNorm, "LigerRopeFunction": Rope, "LigerSiLUMulFunction": SiLUMul}
    sys.modules["liger_kernel.ops"] = SimpleNamespace(**functions)
