"""Attention of transformers' models over keys and values in FP8, as vLLM's KV cache keeps them.

vLLM rounds each key (after its rotary embedding) and value to float8_e4m3fn, with scale 1 where no calibration gives
others, and attention reads all of them from there, those of the batch's own tokens too. On GPUs numbers are rounded to
the nearest, on CPUs towards zero (seen with vLLM 0.32: its kernel and this module agree in every number). On GPUs
kernels such as FlashAttention 3's round queries and attention weights too.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NEAREST, NEAREST_QUERIES_TOO, TOWARDS_ZERO = (
    f"layersweep_fp8_{name}" for name in ("nearest", "nearest_queries_too", "towards_zero")
)
"""Values of transformers' `attn_implementation`."""

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def to_fp8(x: Tensor, towards_zero: bool = False) -> Tensor:
    """Round to numbers of float8_e4m3fn, in x's dtype: to the nearest, or the one nearest to zero of the two beside x.
    Beyond 448 either way there is none but 448."""
    rounded = x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    if towards_zero:  # numbers of one sign are in order as integers are
        too_large = rounded.to(x.dtype).abs() > x.abs()
        rounded = (rounded.view(torch.uint8) - too_large.to(torch.uint8)).view(torch.float8_e4m3fn)
    return rounded.to(x.dtype)


def _nearest(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, query, to_fp8(key), to_fp8(value), mask, **kwargs)


def _nearest_queries_too(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _nearest(module, to_fp8(query), *args, **kwargs)


def _towards_zero(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, query, to_fp8(key, True), to_fp8(value, True), mask, **kwargs)


for name, function in (
    (NEAREST, _nearest), (NEAREST_QUERIES_TOO, _nearest_queries_too), (TOWARDS_ZERO, _towards_zero),
):  # fmt: skip
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
