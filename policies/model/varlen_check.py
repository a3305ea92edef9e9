"""Whether a model's attention can be torch's FlashAttention on its device, and a check that it computes attention.

A kernel that aligns a causal mask otherwise, or ignores a window, gives no error, but other log-probabilities and
gradients: then nothing starts.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .architecture import flash_head_dim
from .varlen_attention import Branch, as_sequences, varlen_attention

logger = logging.getLogger(__name__)

PROMPT, RESPONSES = 150, (1, 70, 200)
"""Tokens of the tree that is checked: below, at and above the kernel's tiles of 64 and 128."""
WINDOW = 33
"""Sliding window that is checked, where the model has any: small, so that one key too many or too few shows."""
LIMIT = 0.02
"""Difference from plain attention in float32 that rounding explains, relative, root mean square: bfloat16 makes about
0.004 in results and gradients, a window that is off by one .1, and any other alignment more."""


class WrongKernel(RuntimeError):
    """Error: torch's kernel computes something else than attention over a tree."""


def takes_varlen(model: nn.Module) -> bool:
    """Return whether a decoder of transformers can attend by `varlen_attention` where it lies, having checked it there.

    It can not on CPUs, nor in float32; where something else is in the way on a GPU, a notice says what.

    Raises:
        WrongKernel: it computes something else than plain attention does.
    """
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return False
    attention, config = model.model.layers[0].self_attn, model.config
    if reason := _in_the_way(attention.head_dim, model.device):
        logger.warning("attention is computed under masks, which takes more time and memory: %s", reason)
        return False
    windows = [None, WINDOW] if getattr(config, "sliding_window", None) else [None]
    heads = config.num_attention_heads, config.num_key_value_heads
    for window in windows:
        check_kernel(*heads, attention.head_dim, attention.scaling, window, model.dtype, model.device)
    return True


def _in_the_way(head_dim: int, device: torch.device) -> str | None:
    """Say why a GPU cannot; None where it can."""
    if not flash_head_dim(head_dim):
        return f"FlashAttention has no kernel for heads of {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"FlashAttention has no kernel for {torch.cuda.get_device_name(device)}"
    return None if torch.backends.cuda.is_flash_attention_available() else "torch was built without FlashAttention"


def check_kernel(
    heads: int, kv_heads: int, head_dim: int, scaling: float, window: int | None, dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    """Compare attention over a small random tree, and its gradients, with plain attention in float32.

    Raises:
        WrongKernel: they differ by more than rounding.
    """
    random = torch.Generator().manual_seed(0)
    length = PROMPT + sum(RESPONSES)
    sizes = (heads, kv_heads, kv_heads, heads)
    *inputs, upstream = (torch.randn(1, n, length, head_dim, generator=random).to(device, dtype) for n in sizes)
    upstream = upstream.transpose(1, 2)
    branches, visible = _tree(window)
    plan = as_sequences(branches).to(device)
    if window is not None:
        plan = plan.within(window)
    found = _with_gradients(lambda *states: varlen_attention(*states, plan, scaling), inputs, upstream)
    visible = visible.to(device)
    exact = [x.float() for x in inputs]
    expected = _with_gradients(lambda *states: _plain(*states, visible, scaling), exact, upstream.float())
    names = ("result", "gradient of queries", "gradient of keys", "gradient of values")
    for name, ours, plain in zip(names, found, expected, strict=True):
        off = float((ours.float() - plain).norm() / plain.norm())
        if not off < LIMIT:  # NaN neither
            raise WrongKernel(
                f"torch's varlen_attn differs from plain attention by {off:.2g} (relative, {name}, window {window}, "
                f"{heads} heads over {kv_heads} of {head_dim}), and rounding explains {LIMIT}: set "
                "training.attention: masked to do without it"
            )


def _tree(window: int | None) -> tuple[list[Branch], Tensor]:
    """Return the branches of the tree, and its mask, bool [T, T]."""
    prompt = np.arange(PROMPT)
    branches, branch, position = [(prompt[:0], prompt)], [0] * PROMPT, list(range(PROMPT))
    for i, size in enumerate(RESPONSES, start=1):
        branches.append((prompt, len(branch) + np.arange(size)))
        branch += [i] * size
        position += range(PROMPT, PROMPT + size)
    of, at = torch.tensor(branch), torch.tensor(position)
    distance = at[:, None] - at
    visible = ((of[:, None] == of) | (of == 0)) & (distance >= 0)
    return branches, visible if window is None else visible & (distance < window)


def _plain(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Attend by the formula, softmax(q k^T) v, to [1, T, heads, head_dim]."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query @ key.mT * scaling).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def _with_gradients(attend: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Return what `attend` makes of its inputs, and their gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    result = attend(*inputs)
    return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]
