"""Rows of a batch by run: requests of 2, 3 and 1 tokens of the runs a and b and of the base."""

import numpy as np
import pytest
import torch

from layersweep.rollout.engine.model import first_row
from layersweep.rollout.engine.row_routing import RowRouting

ROUTING = RowRouting(["a", "b", None], np.array([2, 3, 1]), torch.device("cpu"))


def owners(rows, first=None):
    """The run that computes each row."""
    groups = ROUTING.split((0, 1), rows, first)
    if len(groups.owners) == 1:
        return "ab-"[groups.owners[0]] * rows
    found = [""] * rows
    for owner, part in zip(groups.owners, groups.parted(torch.arange(rows), 0), strict=True):
        for row in part.tolist():
            found[row] += "ab-"[owner]
    return "".join(found)


@pytest.mark.parametrize(
    ("rows", "first", "expected"),
    [
        (6, None, "aabbb-"),
        (8, None, "aabbb---"),  # padded
        (3, None, "ab-"),  # a row a request
        (3, 2, "bbb"),  # log-probabilities of the second prompt: as many rows as requests
        (2, 1, "ab"),
        (1, 5, "-"),
        (6, 0, "aabbb-"),
    ],
)
def test_rows_and_their_runs(rows, first, expected):
    assert owners(rows, first) == expected


def test_rows_that_belong_to_nobody_are_refused():
    with pytest.raises(ValueError, match="cannot tell the runs of 2 rows in a batch of 3 requests"):
        owners(2)


def test_a_view_of_the_hidden_states_is_told_from_a_copy():
    hidden = torch.zeros(10, 4)[2:]
    assert first_row(hidden[3:5], hidden) == 3
    assert first_row(hidden, hidden) == 0
    assert first_row(hidden[:4][1:], hidden) == 1
    assert first_row(hidden[torch.tensor([3, 4])], hidden) is None
    assert first_row(hidden, None) is None
