"""Results of vLLM's modules while a CUDA graph is captured: each row by the weights of its slot, the base's among them.

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
    if not (slots.active and slots.has(name)):
        return base(layer, x, bias)
    biases = None if bias is None else slots.stack(name, "bias")
    products = grouped_products if groups_products(x) else selected_products
    return products(x, slots.stack(name, "weight"), biases, slots.rows(name, len(x)))


def groups_products(x: Tensor) -> bool:
    """Return whether torch multiplies groups of such rows without asking a GPU for their number: in bfloat16 on Hopper
    and data-centre Blackwell (PyTorch's `_grouped_mm_cuda`). On others it asks, which no capture allows."""
    if not x.is_cuda:
        return True
    return x.dtype is torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def grouped_products(x: Tensor, weights: Tensor, biases: Tensor | None, rows: SlotRows) -> Tensor:
    """Compute F.linear of each row by its slot's weights, in one grouped product; each slot reads its own rows.

    Args:
        x: [rows, in].
        weights: [slots, out, in].
        biases: [slots, out].
    """
    sorted_rows = x.index_select(0, rows.order)
    result = F.grouped_mm(sorted_rows, weights.transpose(-2, -1), offs=rows.ends).index_select(0, rows.places)
    return result if biases is None else result + biases.index_select(0, rows.index)


def selected_products(x: Tensor, weights: Tensor, biases: Tensor | None, rows: SlotRows) -> Tensor:
    """Compute each slot's product of all rows in turn, and select; see `grouped_products`."""
    products = (F.linear(x, weight, None if biases is None else biases[i]) for i, weight in enumerate(weights))
    result = next(products)
    for slot, product in enumerate(products, start=1):
        result = torch.where((rows.index == slot)[:, None], product, result)
    return result


def _embedding(slots: WeightSlots, name: str, base: Callable[..., Tensor], layer: nn.Module, ids: Tensor) -> Tensor:
    if not (slots.active and slots.has(name)):
        return base(layer, ids)
    rows, stack = slots.rows(name, len(ids)), slots.stack(name, "weight")
    return F.embedding(rows.index * stack.shape[1] + ids, stack.flatten(0, 1))


def _norm(
    slots: WeightSlots,
    name: str,
    module: nn.Module,
    base: Callable[..., Tensor | tuple[Tensor, Tensor]],
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    if not (slots.active and slots.has(name)):
        return base(x) if residual is None else base(x, residual)
    stream = x if residual is None else x + residual
    rows = slots.rows(name, len(x))
    weight = slots.stack(name, "weight").index_select(0, rows.index).unflatten(0, (-1, *[1] * (x.dim() - 2)))
    if type(module) is GemmaRMSNorm:
        normed = F.rms_norm(stream.float(), x.shape[-1:], None, module.variance_epsilon) * (1 + weight.float())
        normed = normed.to(x.dtype)
    else:
        normed = F.rms_norm(stream, x.shape[-1:], None, module.variance_epsilon) * weight
    return normed if residual is None else (normed, stream)
