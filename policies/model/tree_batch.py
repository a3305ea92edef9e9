"""Responses packed for the trainer: the prompt of a group once, no padding, losses over flat tokens.

A prompt is followed by all responses to it, as a tree: a response sees the prompt and itself, not its siblings, and its
positions go on from the prompt's end. With groups of 8 and prompts as long as answers this computes 9/16 of the tokens
that one row per response would. The trees of a micro batch follow each other in one row. Everything after the last
block is flat, one entry per response token, so that no loss can depend on how responses are packed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .device_copy import to_device
from .tree_attention import Mask, by_branch
from .varlen_attention import Branch, as_sequences


@dataclass(frozen=True)
class MicroBatch:
    """Row of T tokens, of which N are responses'.

    Token order of the flat tensors: responses in the order of `response`, each from its first token.
    """

    input_ids: Tensor
    """Tokens, int64 [1, T]."""
    position_ids: Tensor
    """Positions, int64 [1, T]; a response's go on from the prompt's end."""
    mask: Mask
    predictor: Tensor
    """Index in the row of the hidden state that predicts the token, int64 [N]."""
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
        return MicroBatch(**{name: to_device(value, device) for name, value in vars(self).items()})


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
    """Make micro batches of at most `max_tokens` tokens over some rows of an experience.

    Args:
        prompts: the prompt of each experience row; equal prompts become one.
        tokens, lengths: the flat response tokens and each row's count.
        rows: which rows, by index.
        max_tokens: a single prompt with its responses may exceed it; its responses are then spread over
            several trees, one at least in each.
        varlen: for `varlen_attention`, as the trunk says.
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
    trees.sort(key=lambda tree: size[tree[0]])  # of similar length, so that attention branch by branch pads little
    batches: list[list[list[int]]] = []
    total = 0  # of the newest batch
    for tree in trees:
        if not batches or total + size[tree[0]] > max_tokens:
            batches.append([])
            total = 0
        batches[-1].append(tree)
        total += size[tree[0]]
    return MicroBatches(partial(_micro_batch, prompts, tokens, starts, varlen), batches)


def _micro_batch(
    prompts: Sequence[np.ndarray], tokens: np.ndarray, starts: np.ndarray, varlen: bool, trees: list[list[int]]
) -> MicroBatch:
    total = sum(len(prompts[tree[0]]) + sum(int(starts[r + 1] - starts[r]) for r in tree) for tree in trees)
    ids, positions = np.zeros(total, np.int64), np.zeros(total, np.int64)
    branches: list[Branch] = []
    flat: list[tuple[np.ndarray, ...]] = []
    end = 0
    for tree in trees:
        prompt = prompts[tree[0]]
        asked = end + np.arange(len(prompt))
        ids[asked], positions[asked] = prompt, np.arange(len(prompt))
        branches.append((asked[:0], asked))
        end += len(prompt)
        for row in tree:
            places = np.arange(starts[row], starts[row + 1])
            own = end + np.arange(len(places))
            ids[own], positions[own] = tokens[places], len(prompt) + np.arange(len(places))
            before = own - 1
            before[:1] = asked[-1]  # the first token is predicted by the prompt's last
            flat.append((before, tokens[places], np.full(len(places), row), places))
            branches.append((asked, own))
            end += len(places)
    mask = as_sequences(branches) if varlen else by_branch(branches, total)
    columns = (torch.from_numpy(np.concatenate(column).astype(np.int64)) for column in zip(*flat, strict=True))
    predictor, target, response, token = columns
    row_of = (torch.from_numpy(column)[None] for column in (ids, positions))
    return MicroBatch(*row_of, mask, predictor, target, response, token)
