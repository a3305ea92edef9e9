"""A stand-in for torch's varlen_attn, which computes on GPUs alone: by the formula, with autograd's gradients.

Lengths and types are checked as the kernel needs them, but for its half precision: in float32 what surrounds it shows.
"""

from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import varlen


def varlen_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Attend from [queries, heads, head_dim] to the same: in sequence s, of q queries and k keys, query i to the keys
    j with i + k - q - left <= j <= i + k - q + right, all of those before where left is -1."""
    (left, right), results = window_size, []
    assert enable_gqa == (query.shape[1] != key.shape[1]) and query.shape[1] % key.shape[1] == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q.shape == cu_seq_k.shape and cu_seq_q.dim() == 1
    assert all(states.dim() == 3 and states.stride(-1) == 1 for states in (query, key, value))
    assert int(cu_seq_q[-1]) == len(query) and int(cu_seq_k[-1]) == len(key) == len(value)
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) and cu_seq_q.diff().min() > 0
    shared = query.shape[1] // key.shape[1]
    for s in range(len(cu_seq_q) - 1):
        own, seen = slice(cu_seq_q[s], cu_seq_q[s + 1]), slice(cu_seq_k[s], cu_seq_k[s + 1])
        q, k, v = (x.transpose(0, 1) for x in (query[own], key[seen], value[seen]))
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        ahead = torch.arange(k.shape[1]) - (torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1])
        outside = (ahead > right) | ((ahead < -left) if left >= 0 else torch.zeros((), dtype=torch.bool))
        scores = (q.float() @ k.float().mT * scale).masked_fill(outside, -torch.inf)
        results.append((scores.softmax(-1) @ v.float()).transpose(0, 1))
    return torch.cat(results).to(query.dtype)


def as_if_on_a_gpu():
    """Have the stand-in take the kernel's place."""
    return patch.object(varlen, "varlen_attn", varlen_on_cpu)
