"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685): W' = W + scale * B A over frozen matrices W.

As peft computes and starts them, without dropout: A [rank, in] as torch starts a linear module's weight, B [out, rank]
at 0, so that a run begins as the base.
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersweep.policies.selection import Selection

A, B = "lora_A", "lora_B"


class LowRankLinear(nn.Linear):
    """nn.Linear over a frozen weight, with trained adapters beside it."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W' of x [..., in]."""
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_adapters(model: nn.Module, selection: Selection) -> None:
    """Give the linear modules that a selection names adapters, in place, of their weights' dtype and device."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and selection.trains(f"{name}.weight"):
            module.__class__ = LowRankLinear
            module.scale, rank = selection.lora.scale, selection.lora.rank
            module.lora_A = nn.Parameter(module.weight.new_empty(rank, module.in_features))
            module.lora_B = nn.Parameter(module.weight.new_zeros(module.out_features, rank))
            nn.init.kaiming_uniform_(module.lora_A, a=math.sqrt(5))


def merged(adapters: Mapping[str, Tensor], base: Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Yield the names of adapted matrices and W', summed in float32, in W's dtype.

    Args:
        adapters: A and B by the names of their parameters.
        base: the base's weights by Hugging Face name.
    """
    for name, a in adapters.items():
        if name.endswith(f".{A}"):
            module = name.removesuffix(f".{A}")
            weight = base[f"{module}.weight"]
            change = torch.mm(adapters[f"{module}.{B}"].float(), a.float())
            yield f"{module}.weight", weight.float().add(change, alpha=scale).to(weight.dtype)
