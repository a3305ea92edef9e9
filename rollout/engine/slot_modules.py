"""Results of vLLM's modules while a CUDA graph is captured: the base for all rows, then owned rows from slots.

The base's own module computes every row, and the results of rows that runs own are replaced by those of their slots.
That costs such rows the base's product besides, which a decode step should hardly feel (not measured): it waits for the
weights' bytes, and the base's are read for other rows anyway. It leaves vLLM's weights where they are and the base's
results as they were.

No function here looks at a number on the device or makes a shape from data, or a recording would bake one batch in.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from .weight_slots import HEAD, SlotRows, WeightSlots


def install(model: nn.Module, slots: WeightSlots) -> None:
    """Have a model's modules compute from slots while `slots.active`.

    Raises:
        ValueError: a module with weights of a kind that cannot.
    """
    for name in slots.modules:
        module = model.get_submodule(name)
        if name == HEAD:
            continue
        if isinstance(module, LinearBase):
            module.quant_method = method = copy.copy(module.quant_method)
            method.apply = partial(_linear, slots, name, method.apply)
        elif isinstance(module, VocabParallelEmbedding):
            module.quant_method = method = copy.copy(module.quant_method)
            method.embedding = partial(_embedding, slots, name, method.embedding)
        elif type(module) in (RMSNorm, GemmaRMSNorm) and getattr(module, "variance_size_override", None) is None:
            module.forward = partial(_norm, slots, name, module, module.forward)
        else:
            raise ValueError(f"rollout.cuda_graphs: {name} is a {type(module).__name__}, which has no static slots")


def _linear(
    slots: WeightSlots, name: str, base: Callable[..., Tensor], layer: nn.Module, x: Tensor, bias: Tensor | None = None
) -> Tensor:
    result = base(layer, x, bias)
    if not (slots.active and slots.has(name)):
        return result
    rows = slots.rows(name, len(x))
    biases = None if bias is None else slots.stack(name, "bias")
    products = grouped_products if groups_products(x) else selected_products
    return products(x, slots.stack(name, "weight"), biases, rows, result)


def groups_products(x: Tensor) -> bool:
    """Return whether torch multiplies groups of such rows without asking the device for their number: in bfloat16 on
    Hopper and data-centre Blackwell (PyTorch's `_grouped_mm_cuda`). Elsewhere it asks, which no capture allows."""
    return x.is_cuda and x.dtype is torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def grouped_products(x: Tensor, weights: Tensor, biases: Tensor | None, rows: SlotRows, base: Tensor) -> Tensor:
    """Replace owned rows of F.linear in one grouped product; each slot reads its own rows.

    Args:
        x: [rows, in].
        weights: [slots, out, in].
        biases: [slots, out].
        base: the base's product [rows, out].
    """
    sorted_rows = x.index_select(0, rows.order)
    products = F.grouped_mm(sorted_rows, weights.transpose(-2, -1), offs=rows.ends)  # no number where the base's are
    own = products.index_select(0, rows.places)
    return torch.where(rows.owned[:, None], own if biases is None else own + biases.index_select(0, rows.index), base)


def selected_products(x: Tensor, weights: Tensor, biases: Tensor | None, rows: SlotRows, base: Tensor) -> Tensor:
    """Replace owned rows of F.linear by each slot's product of all rows in turn; see `grouped_products`."""
    for slot, weight in enumerate(weights):
        own = F.linear(x, weight, None if biases is None else biases[slot])
        base = torch.where((rows.owned & (rows.index == slot))[:, None], own, base)
    return base


def _embedding(slots: WeightSlots, name: str, base: Callable[..., Tensor], layer: nn.Module, ids: Tensor) -> Tensor:
    result = base(layer, ids)
    if not (slots.active and slots.has(name)):
        return result
    rows, stack = slots.rows(name, len(ids)), slots.stack(name, "weight")
    own = F.embedding(rows.index * stack.shape[1] + ids, stack.flatten(0, 1))
    return torch.where(rows.owned[:, None], own, result)


def _norm(
    slots: WeightSlots,
    name: str,
    module: nn.Module,
    base: Callable[..., Tensor | tuple[Tensor, Tensor]],
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    result = base(x) if residual is None else base(x, residual)
    if not (slots.active and slots.has(name)):
        return result
    normed, stream = (result, x) if residual is None else result  # what is normed: the sum that comes back
    rows = slots.rows(name, len(x))
    weight = slots.stack(name, "weight").index_select(0, rows.index).unflatten(0, (-1, *[1] * (x.dim() - 2)))
    if type(module) is GemmaRMSNorm:
        own = F.rms_norm(stream.float(), x.shape[-1:], None, module.variance_epsilon) * (1 + weight.float())
    else:
        own = F.rms_norm(stream, x.shape[-1:], None, module.variance_epsilon) * weight
    replaced = torch.where(rows.owned.unflatten(0, (-1, *[1] * (x.dim() - 1))), own.to(normed.dtype), normed)
    return replaced if residual is None else (replaced, stream)
