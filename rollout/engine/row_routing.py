"""Assignment of a batch's rows to runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
RowGroup = tuple[Tensor | None, T | None]
"""Row indices and the overlay's part that computes them; indices None means all rows, an overlay None the base."""
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
        self.names = sorted({run for run in runs if run is not None})
        number = {run: i for i, run in enumerate(self.names)} | {None: -1}
        self.of_request = np.fromiter((number[run] for run in runs), np.int32, len(runs))
        self.of_token = np.repeat(self.of_request, lengths)
        self.device = device

    def split(
        self, overlays: Mapping[str, object], part: Callable[..., T | None], rows: int, first: int | None = None
    ) -> list[RowGroup]:
        """Group the rows by the overlay that computes them at one point of the model.

        Args:
            overlays: each run's overlay.
            part: returns what an overlay has for this point, or None.
            rows: how many rows there are; as many as requests means one row a request (the sampled ones),
                anything from the number of scheduled tokens on means token rows, padded with base rows.
            first: number of the token whose row is the first; the others are those of the tokens after it.
        """
        owners = [(i, own) for i, name in enumerate(self.names) if (own := part(overlays[name])) is not None]
        if not owners:
            return [(None, None)]
        of_row = self.of_token if rows >= len(self.of_token) else self.of_request
        if first is not None:
            of_row = self.of_token[first : first + rows]
        if rows > len(of_row):
            of_row = np.concatenate([of_row, np.full(rows - len(of_row), -1, np.int32)])
        elif rows != len(of_row):
            raise ValueError(f"cannot tell the runs of {rows} rows in a batch of {len(self.of_request)} requests")
        groups: list[RowGroup] = []
        left = np.ones(rows, bool)
        for i, own in owners:
            mine = of_row == i
            if mine.all():
                return [(None, own)]
            if mine.any():
                groups.append((self._index(mine), own))
                left &= ~mine
        if left.any():
            groups.append((self._index(left) if groups else None, None))
        return groups

    def _index(self, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(self.device, non_blocking=True)
