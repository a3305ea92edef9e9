"""Attention over trees of a prompt and its responses: under one mask, or branch by branch where that saves work.

Where torch's FlashAttention computes it, on GPUs in half precision, see `varlen_attention`.

Under a mask [T, T] trees cost the square of their whole length, although a response sees only the prompt and itself.
Branch by branch, prompts and responses of similar length are gathered into rows of queries, with the keys that each row
may see: as much work as each response by itself, and no mask of T x T. Both give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .device_copy import to_device
from .varlen_attention import Branch, VarlenPlan, varlen_attention

NAME = "layersweep_tree"
"""Value of transformers' `attn_implementation`."""

GATHERING = 128
"""Cost of gathering a token, in pairs of query and key: about where both ways take the same CPU time."""

ALIGNMENT = 16
"""Entries of which a row of a mask takes a multiple in memory (torch's memory-efficient attention)."""


@dataclass(frozen=True)
class SequenceGroup:
    """Group of A branches of similar length, padded to Q own tokens and K tokens that they may attend to."""

    queries: Tensor
    """Positions of the own tokens in the row, int64 [A, Q]."""
    keys: Tensor
    """Positions of the tokens attended to, int64 [A, K]."""
    mask: Tensor
    """Mask, bool [A, 1, Q, K]: true where a query attends to a key."""

    def to(self, device: torch.device) -> "SequenceGroup":
        return SequenceGroup(*(to_device(value, device) for value in vars(self).values()))


@dataclass(frozen=True)
class TreeAttentionPlan:
    """Attention of a whole batch, branch by branch."""

    groups: tuple[SequenceGroup, ...]
    index: Tensor
    """Index of each token's result among those of all groups, int64 [T]."""

    def to(self, device: torch.device) -> "TreeAttentionPlan":
        return TreeAttentionPlan(tuple(group.to(device) for group in self.groups), to_device(self.index, device))


Mask = Tensor | TreeAttentionPlan | VarlenPlan
"""A mask, bool [1, 1, T, T], true where a query (row) attends to a key (column); or a plan of the same attention."""


def as_added(mask: Mask, dtype: torch.dtype) -> Mask:
    """Turn a mask into what kernels on GPUs add to their scores, 0 or minus infinity, with rows aligned for them.

    Made once for all blocks: given the mask itself, each would make its own, and keep it for the backward pass.
    """
    if isinstance(mask, VarlenPlan):
        return mask
    if isinstance(mask, TreeAttentionPlan):
        groups = (replace(group, mask=as_added(group.mask, dtype)) for group in mask.groups)
        return replace(mask, groups=tuple(groups))
    keys = mask.shape[-1]
    added = torch.zeros(*mask.shape[:-1], -(-keys // ALIGNMENT) * ALIGNMENT, dtype=dtype, device=mask.device)
    return added[..., :keys].masked_fill_(~mask, -torch.inf)


def within_window(mask: Mask, positions: Tensor, window: int) -> Mask:
    """Return a mask, or a plan, in which no query attends to a key `window` or more positions before it.

    Args:
        positions: of all tokens, int64 [1, T].
    """
    if isinstance(mask, VarlenPlan):
        return mask.within(window)
    if isinstance(mask, TreeAttentionPlan):
        flat = positions.flatten()
        groups = (
            replace(group, mask=group.mask & _near(flat[group.queries], flat[group.keys], window))
            for group in mask.groups
        )
        return replace(mask, groups=tuple(groups))
    return mask & _near(positions, positions, window)


def _near(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Return the mask [A, 1, Q, K] of positions of queries [A, Q] and keys [A, K] less than `window` apart."""
    return (queries[:, :, None] - keys[:, None, :] < window)[:, None]


def by_branch(branches: Sequence[Branch], tokens: int) -> TreeAttentionPlan | Tensor:
    """Plan attention branch by branch; return one mask [1, 1, tokens, tokens] where that is cheaper."""
    classes: dict[tuple[int, int], list[Branch]] = {}
    for before, own in branches:
        sizes = max(16, len(own)), max(16, len(before) + len(own))
        classes.setdefault(tuple(size.bit_length() for size in sizes), []).append((before, own))
    shapes = [
        (len(alike), max(len(own) for _, own in alike), max(len(before) + len(own) for before, own in alike))
        for alike in classes.values()
    ]
    if tokens * tokens - sum(a * q * k for a, q, k in shapes) < GATHERING * tokens:
        return _one_mask(branches, tokens)
    index, done, groups = np.zeros(tokens, np.int64), 0, []
    for alike, (rows, queries, keys) in zip(classes.values(), shapes, strict=True):
        query, key = np.zeros((rows, queries), np.int64), np.zeros((rows, keys), np.int64)
        for row, (before, own) in enumerate(alike):
            query[row, : len(own)] = own
            key[row, : len(before) + len(own)] = np.concatenate([before, own])
            index[own] = done + row * queries + np.arange(len(own))
        done += query.size
        last = np.array([len(before) for before, _ in alike])[:, None] + np.arange(queries)
        mask = np.arange(keys) <= last[:, :, None]  # padding attends to real keys too; its result is not used
        groups.append(SequenceGroup(*map(torch.from_numpy, (query, key, mask[:, None]))))
    return TreeAttentionPlan(tuple(groups), torch.from_numpy(index))


def _one_mask(branches: Sequence[Branch], tokens: int) -> Tensor:
    """Return the mask, bool [1, 1, tokens, tokens]."""
    mask = np.zeros((tokens, tokens), bool)
    for before, own in branches:
        mask[np.ix_(own, before)] = True
        mask[np.ix_(own, own)] = np.tri(len(own), dtype=bool)
    return torch.from_numpy(mask)[None, None]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from query, key, value [1, heads, T, head_dim] to [1, T, heads, head_dim], for transformers."""
    if isinstance(attention_mask, VarlenPlan):
        return varlen_attention(query, key, value, attention_mask, kwargs["scaling"]), None
    if not isinstance(attention_mask, TreeAttentionPlan):
        return _attention(module, query, key, value, attention_mask, **kwargs), None
    _, heads, _, size = query.shape
    flat = [states.transpose(1, 2).flatten(0, 1).flatten(1) for states in (query, key, value)]
    results = []
    for group in attention_mask.groups:
        rows = zip(flat, (group.queries, group.keys, group.keys), strict=True)
        parts = (embedding(at, states).unflatten(-1, (-1, size)).transpose(1, 2) for states, at in rows)
        results.append(_attention(module, *parts, group.mask, **kwargs).flatten(0, 1).flatten(1))
    result = embedding(attention_mask.index, torch.cat(results))
    return result.view(query.shape[0], query.shape[2], heads, size), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> Tensor:
    """Attend from [A, heads, Q, head_dim] to [A, Q, heads, head_dim].

    On CPUs torch's kernel takes keys and values that several query heads share as they are, under a mask too;
    elsewhere it would lose its fast kernel to such a mask, so transformers repeats them.
    """
    if mask is None or not query.is_cpu:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
    result = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
    return result.transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
