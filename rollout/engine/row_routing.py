"""Assignment of a batch's rows to runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

BASE = -1
"""Number of the base, where runs are numbered."""
RUN = "layersweep_run"
"""Key of a request's run in `SamplingParams.extra_args`."""


def run_of(sampling_params: Any) -> str | None:
    """Return the run that a request belongs to; None is the base."""
    return (sampling_params.extra_args or {}).get(RUN)


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch, grouped by the run whose weights compute them."""

    owners: tuple[int, ...]
    """The run of each group, by its number; BASE of the rows of none of them."""
    lengths: tuple[int, ...] = ()
    """Rows of each group; nothing where there is but one group."""
    order: Tensor | None = None
    """The rows, group by group; None where they lie so already."""
    places: Tensor | None = None
    """Place of each row in that order."""

    def parted(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return each group's rows of a tensor, whose rows are in dimension `dim`."""
        return (x if self.order is None else x.index_select(dim, self.order)).split(self.lengths, dim)

    def joined(self, pieces: Sequence[Tensor], dim: int) -> Tensor:
        """Return a tensor of all rows from each group's."""
        whole = torch.cat(pieces, dim)
        return whole if self.places is None else whole.index_select(dim, self.places)


class RowRouting:
    """Runs of the rows of one scheduled batch.

    Args:
        runs: the run of each request, in batch order; None is the base model.
        lengths: [requests] scheduled tokens of each request. Token rows are laid out request by request.
        device: where the row indices are used.
    """

    def __init__(self, runs: Sequence[str | None], lengths: np.ndarray, device: torch.device):
        self.names = tuple(sorted({run for run in runs if run is not None}))
        number = {run: i for i, run in enumerate(self.names)} | {None: BASE}
        self.of_request = np.fromiter((number[run] for run in runs), np.int32, len(runs))
        self.of_token = np.repeat(self.of_request, lengths)
        self.device = device
        self._known: dict[tuple[tuple[int, ...], int, int | None], RowGroups] = {}

    def split(self, owners: tuple[int, ...], rows: int, first: int | None = None) -> RowGroups:
        """Group the rows of a module by the run whose weights compute them.

        Args:
            owners: the runs, by their index in `names`, that have weights of their own there.
            rows: how many rows there are; as many as requests means one row a request (the sampled ones),
                anything from the number of scheduled tokens on means token rows, padded with base rows.
            first: number of the token whose row is the first; the others are those of the tokens after it.
        """
        if (groups := self._known.get((owners, rows, first))) is None:
            groups = self._known[owners, rows, first] = self._split(owners, rows, first)
        return groups

    def _split(self, owners: tuple[int, ...], rows: int, first: int | None) -> RowGroups:
        of_row = self.of_token if rows >= len(self.of_token) else self.of_request
        if first is not None:
            of_row = self.of_token[first : first + rows]
        if rows > len(of_row):
            of_row = np.concatenate([of_row, np.full(rows - len(of_row), BASE, np.int32)])
        elif rows != len(of_row):
            raise ValueError(f"cannot tell the runs of {rows} rows in a batch of {len(self.of_request)} requests")
        groups = [(owner, np.flatnonzero(of_row == owner)) for owner in owners]
        left = np.ones(rows, bool)
        for _, own in groups:
            left[own] = False
        groups = [(owner, at) for owner, at in (*groups, (BASE, np.flatnonzero(left))) if len(at)]
        if len(groups) == 1:
            return RowGroups((groups[0][0],))
        groups.sort(key=lambda group: group[1][0])
        order, numbers = np.concatenate([at for _, at in groups]), np.arange(rows)
        found, lengths = tuple(owner for owner, _ in groups), tuple(len(at) for _, at in groups)
        if (order == numbers).all():  # rows lie group by group, and need not be copied
            return RowGroups(found, lengths)
        places = np.empty_like(order)
        places[order] = numbers
        return RowGroups(found, lengths, self._rows(order), self._rows(places))

    def _rows(self, rows: np.ndarray) -> Tensor:
        # From pinned memory: a copy from other memory may wait for all that the GPU was given before.
        return async_tensor_h2d(rows, self.device)
