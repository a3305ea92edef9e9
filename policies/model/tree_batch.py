"""Responses packed for the trainer: the prompt of a group once, padding little, losses over flat tokens.

A row of the batch is one prompt followed by all responses to it, as a tree: a response sees the prompt and
itself, not its siblings, and its positions go on from the prompt's end. With groups of 8 and prompts as long
as answers this computes 9/16 of the tokens that one row per response would. Rows of similar length share a
micro batch. Everything after the last block is flat, one entry per response token, so that no loss can depend
on the padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .tree_attention import Branch, TreeAttentionPlan, by_branch


@dataclass(frozen=True)
class MicroBatch:
    """Batch of B prompts with R responses, T tokens a row at most, N response tokens in all.

    Token order of the flat tensors: responses in the order of `response`, each from its first token.
    """

    input_ids: Tensor
    """Tokens, int64 [B, T]."""
    position_ids: Tensor
    """Positions, int64 [B, T]; a response's go on from the prompt's end."""
    mask: Tensor | TreeAttentionPlan
    """Mask, bool [B, 1, T, T], true where a query (row) attends to a key (column); or a plan of the same attention."""
    predictor: Tensor
    """Flat position in [B * T] of the hidden state that predicts the token, int64 [N]."""
    target: Tensor
    """Response tokens, int64 [N]."""
    response: Tensor
    """Experience row that the token belongs to, int64 [N]."""
    token: Tensor
    """Index of the token in the experience's flat arrays, int64 [N]."""

    @property
    def tokens(self) -> int:
        return self.target.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class MicroBatches(Sequence[MicroBatch]):
    """Sequence of micro batches, each built anew at every access: masks of long responses take memory."""

    def __init__(self, make: Callable[[list[list[int]]], MicroBatch], trees: list[list[list[int]]]):
        self.make, self.trees = make, trees

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> MicroBatch:
        return self.make(self.trees[index])

    def __iter__(self) -> Iterator[MicroBatch]:
        # Sequence's own would take an IndexError raised in `make` for the end.
        return map(self.make, self.trees)


def pack(
    prompts: Sequence[np.ndarray], tokens: np.ndarray, lengths: np.ndarray, rows: Sequence[int], max_tokens: int
) -> MicroBatches:
    """Make micro batches of at most `max_tokens` computed tokens (padding included) over some rows of an experience.

    Args:
        prompts: the prompt of each experience row; equal prompts become one.
        tokens, lengths: the flat response tokens and each row's count.
        rows: which rows, by index.
        max_tokens: a single prompt with its responses may exceed it; its responses are then spread over
            several rows, one at least in each.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    groups: dict[bytes, list[list[int]]] = {}
    for row in rows:
        branches = groups.setdefault(np.asarray(prompts[row], np.int32).tobytes(), [[]])
        size = len(prompts[row]) + sum(int(lengths[r]) for r in branches[-1]) + int(lengths[row])
        if branches[-1] and size > max_tokens:
            branches.append([])
        branches[-1].append(row)
    trees = [branch for branches in groups.values() for branch in branches]
    size = {tree[0]: len(prompts[tree[0]]) + int(sum(lengths[r] for r in tree)) for tree in trees}
    trees.sort(key=lambda tree: size[tree[0]])
    batches: list[list[list[int]]] = []
    for tree in trees:  # ascending, so the newest tree is the widest
        if not batches or size[tree[0]] * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(tree)
    return MicroBatches(partial(_micro_batch, prompts, tokens, starts), batches)


def _micro_batch(
    prompts: Sequence[np.ndarray], tokens: np.ndarray, starts: np.ndarray, trees: list[list[int]]
) -> MicroBatch:
    width = max(len(prompts[t[0]]) + sum(int(starts[r + 1] - starts[r]) for r in t) for t in trees)
    ids = np.zeros((len(trees), width), np.int64)
    positions = np.zeros_like(ids)
    branch = np.full((len(trees), width), -1, np.int64)  # -1 padding, 0 prompt, 1.. responses
    branches: list[Branch] = []
    flat: list[tuple[np.ndarray, ...]] = []
    for b, tree in enumerate(trees):
        prompt = prompts[tree[0]]
        end = len(prompt)
        ids[b, :end], positions[b, :end], branch[b, :end] = prompt, np.arange(end), 0
        asked = b * width + np.arange(end)
        branches.append((asked[:0], asked))
        for i, row in enumerate(tree, start=1):
            places = np.arange(starts[row], starts[row + 1])
            own = slice(end, end + len(places))
            ids[b, own], branch[b, own] = tokens[places], i
            positions[b, own] = len(prompt) + np.arange(len(places))
            before = np.arange(end - 1, end - 1 + len(places))
            before[:1] = len(prompt) - 1  # the first token is predicted by the prompt's last
            flat.append((b * width + before, tokens[places], np.full(len(places), row), places))
            branches.append((asked, b * width + np.arange(own.start, own.stop)))
            end += len(places)
    mask: Tensor | TreeAttentionPlan | None = by_branch(branches, ids.size, ids.size * width)
    if mask is None:
        same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        mask = torch.from_numpy(same & np.tril(np.ones((width, width), bool)))[:, None]
    columns = (torch.from_numpy(np.concatenate(column).astype(np.int64)) for column in zip(*flat, strict=True))
    predictor, target, response, token = columns
    return MicroBatch(torch.from_numpy(ids), torch.from_numpy(positions), mask, predictor, target, response, token)
