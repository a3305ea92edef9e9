"""Responses packed for the trainer: the prompt of a group once, padding little, losses over flat tokens.

A row of the batch is one prompt followed by all responses to it, as a tree: a response sees the prompt and
itself, not its siblings, and its positions go on from the prompt's end. With groups of 8 and prompts as long
as answers this computes 9/16 of the tokens that one row per response would. Rows of similar length share a
micro batch; for `varlen_attention` trees follow each other in one row instead, without padding. Everything after
the last block is flat, one entry per response token, so that no loss can depend on the padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .tree_attention import Mask, by_branch
from .varlen_attention import Branch, as_sequences


@dataclass(frozen=True)
class MicroBatch:
    """Batch of B rows of trees with R responses, T tokens a row at most, N response tokens in all.

    Token order of the flat tensors: responses in the order of `response`, each from its first token.
    """

    input_ids: Tensor
    """Tokens, int64 [B, T]."""
    position_ids: Tensor
    """Positions, int64 [B, T]; a response's go on from the prompt's end."""
    mask: Mask
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
    prompts: Sequence[np.ndarray], tokens: np.ndarray, lengths: np.ndarray, rows: Sequence[int], max_tokens: int,
    varlen: bool = False,
) -> MicroBatches:  # fmt: skip
    """Make micro batches of at most `max_tokens` computed tokens (padding included) over some rows of an experience.

    Args:
        prompts: the prompt of each experience row; equal prompts become one.
        tokens, lengths: the flat response tokens and each row's count.
        rows: which rows, by index.
        max_tokens: a single prompt with its responses may exceed it; its responses are then spread over
            several rows, one at least in each.
        varlen: for `varlen_attention`, as the trunk says: all trees of a micro batch in one row.
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
    total = 0  # of the newest batch
    for tree in trees:  # ascending, so the newest tree is the widest
        own = size[tree[0]]
        if not batches or (total + own if varlen else own * (len(batches[-1]) + 1)) > max_tokens:
            batches.append([])
            total = 0
        batches[-1].append(tree)
        total += own
    return MicroBatches(partial(_micro_batch, prompts, tokens, starts, varlen), batches)


def _micro_batch(
    prompts: Sequence[np.ndarray], tokens: np.ndarray, starts: np.ndarray, varlen: bool, trees: list[list[int]]
) -> MicroBatch:
    sizes = [len(prompts[t[0]]) + sum(int(starts[r + 1] - starts[r]) for r in t) for t in trees]
    rows, width = (1, sum(sizes)) if varlen else (len(trees), max(sizes))
    ids = np.zeros(rows * width, np.int64)
    positions = np.zeros_like(ids)
    branch = np.full_like(ids, -1)  # -1 padding, 0 prompt, 1.. responses
    branches: list[Branch] = []
    flat: list[tuple[np.ndarray, ...]] = []
    end = 0
    for b, tree in enumerate(trees):
        prompt = prompts[tree[0]]
        asked = (end if varlen else b * width) + np.arange(len(prompt))
        ids[asked], positions[asked], branch[asked] = prompt, np.arange(len(prompt)), 0
        branches.append((asked[:0], asked))
        end = asked[-1] + 1
        for i, row in enumerate(tree, start=1):
            places = np.arange(starts[row], starts[row + 1])
            own = end + np.arange(len(places))
            ids[own], branch[own] = tokens[places], i
            positions[own] = len(prompt) + np.arange(len(places))
            before = own - 1
            before[:1] = asked[-1]  # the first token is predicted by the prompt's last
            flat.append((before, tokens[places], np.full(len(places), row), places))
            branches.append((asked, own))
            end += len(places)
    mask = as_sequences(branches) if varlen else _mask(branches, branch.reshape(rows, width))
    columns = (torch.from_numpy(np.concatenate(column).astype(np.int64)) for column in zip(*flat, strict=True))
    predictor, target, response, token = columns
    shaped = (torch.from_numpy(column.reshape(rows, width)) for column in (ids, positions))
    return MicroBatch(*shaped, mask, predictor, target, response, token)


def _mask(branches: list[Branch], branch: np.ndarray) -> Mask:
    """Return the cheaper of one mask and a plan by branch; `branch` [B, T] has the branch of each token."""
    rows, width = branch.shape
    if plan := by_branch(branches, rows * width, rows * width * width):
        return plan
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    return torch.from_numpy(same & np.tril(np.ones((width, width), bool)))[:, None]
