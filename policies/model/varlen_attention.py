"""Attention over trees as sequences of unequal lengths, for torch's FlashAttention: no mask, no padding.

A prompt with its first response is one causal sequence; each further response is a sequence of queries whose keys are
those of the prompt, gathered, and its own. The kernel aligns a causal mask with the lower right corner: the last query
attends to the last key, so a response attends to its whole prompt and to itself up to the token. A sliding window
counts back from the same diagonal. So the numbers are those of one plain row per response.

Keys and values are gathered for the heads that they have, before query heads share them. Alternatives: flex_attention
must be compiled, and has no backward pass on CPUs (torch 2.13), so that none of its gradients could be tested there;
a call for the prompt and one for the response, merged by their log-sum-exp, saves the gathering, but not with windows.

Not run on a GPU yet. On CPUs it ran with a stand-in for the kernel, on the meta device with torch's own operator;
`varlen_check` holds the kernel against plain attention before a GPU trains with it. The kernel's backward pass sums the
queries' gradients in no fixed order: two equal updates may differ by rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import embedding

from .device_copy import to_device

Branch = tuple[np.ndarray, np.ndarray]
"""Tokens before the branch (none for a prompt) and its own tokens, as positions in the row of a micro batch."""


@dataclass(frozen=True)
class VarlenPlan:
    """Attention of a row of T tokens as S sequences with K keys in all. Queries are the row as it is."""

    keys: Tensor
    """Positions in the row of the keys, sequence after sequence, int64 [K]."""
    query_starts: Tensor
    """Index of each sequence's first query, and T, int32 [S + 1]."""
    key_starts: Tensor
    """Index in `keys` of each sequence's first one, and K, int32 [S + 1]."""
    longest: tuple[int, int]
    """Most queries and most keys of a sequence."""
    window: int | None = None
    """Positions that a query attends to, its own among them; None is all."""

    def to(self, device: torch.device) -> "VarlenPlan":
        moved = (to_device(x, device) for x in (self.keys, self.query_starts, self.key_starts))
        return VarlenPlan(*moved, self.longest, self.window)

    def within(self, window: int) -> "VarlenPlan":
        """Return the plan in which no query attends to a key `window` or more positions before it."""
        return replace(self, window=window)


def as_sequences(branches: Sequence[Branch]) -> VarlenPlan:
    """Plan the attention of branches whose own tokens, in this order, are all tokens of a row."""
    sequences: list[Branch] = []
    for before, own in branches:
        if len(before) and len(own) and own[0] == before[-1] + 1:  # the first response continues its prompt
            sequences[-1] = before[:0], np.concatenate([before, own])
        elif len(own):
            sequences.append((before, own))
    queries = [len(own) for _, own in sequences]
    keys = [len(before) + len(own) for before, own in sequences]
    starts = (torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32)) for sizes in (queries, keys))
    gathered = np.concatenate([part for sequence in sequences for part in sequence]).astype(np.int64)
    return VarlenPlan(torch.from_numpy(gathered), *starts, (max(queries), max(keys)))


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """Attend from query, key, value [1, heads, T, head_dim] to [1, T, heads, head_dim]."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    # An embedding's backward pass sums in float32 what several responses send to their prompt; an index's would not.
    key, value = (embedding(plan.keys, x.flatten(1)).unflatten(-1, x.shape[1:]) for x in (key, value))
    window = (-1 if plan.window is None else plan.window - 1, 0)
    result = varlen.varlen_attn(
        query, key, value, plan.query_starts, plan.key_starts, *plan.longest, scale=scaling, window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return result[None]
