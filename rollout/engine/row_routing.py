"""Assignment of a batch's rows to runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Rows = Tensor | slice | None
"""Rows of a batch: their indices, or a range; None is all of them."""
BASE = -1
"""Number of the base, where runs are numbered."""
RUN = "layersweep_run"
"""Key of a request's run in `SamplingParams.extra_args`."""


def run_of(sampling_params: Any) -> str | None:
    """Return the run that a request belongs to; None is the base."""
    return (sampling_params.extra_args or {}).get(RUN)


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
        self._known: dict[tuple[tuple[int, ...], int], list[tuple[Rows, int]]] = {}

    def split(self, owners: tuple[int, ...], rows: int) -> list[tuple[Rows, int]]:
        """Group the rows of a module by the run whose weights compute them.

        Args:
            owners: the runs, by their index in `names`, that have weights of their own there.
            rows: how many rows there are; as many as requests means one row a request (the sampled ones),
                anything from the number of scheduled tokens on means token rows, padded with base rows.

        Returns:
            The rows of each owner that has any; and the others, of BASE.
        """
        if (groups := self._known.get((owners, rows))) is None:
            groups = self._known[owners, rows] = self._split(owners, rows)
        return groups

    def _split(self, owners: tuple[int, ...], rows: int) -> list[tuple[Rows, int]]:
        of_row = self.of_token if rows >= len(self.of_token) else self.of_request
        if rows > len(of_row):
            of_row = np.concatenate([of_row, np.full(rows - len(of_row), BASE, np.int32)])
        elif rows != len(of_row):
            raise ValueError(f"cannot tell the runs of {rows} rows in a batch of {len(self.of_request)} requests")
        groups: list[tuple[Rows, int]] = []
        left = np.ones(rows, bool)
        for owner in owners:
            mine = of_row == owner
            if mine.all():
                return [(None, owner)]
            if mine.any():
                groups.append((self._rows(mine), owner))
                left &= ~mine
        if left.any():
            groups.append((self._rows(left) if groups else None, BASE))
        return groups

    def _rows(self, mask: np.ndarray) -> Rows:
        at = np.flatnonzero(mask)
        if at[-1] - at[0] == len(at) - 1:  # a range needs no copies of its rows
            return slice(int(at[0]), int(at[-1]) + 1)
        return torch.from_numpy(at).to(self.device, non_blocking=True)
