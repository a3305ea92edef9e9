"""Rows of a batch, grouped by run: by hand."""

import numpy as np
import pytest
import torch

from layersweep.rollout.engine.row_routing import BASE, RowRouting


def routing(*requests: tuple[str | None, int]) -> RowRouting:
    return RowRouting([run for run, _ in requests], np.array([rows for _, rows in requests]), torch.device("cpu"))


def test_rows_of_a_run_are_brought_together_and_put_back():
    """Two rows of a, one of the base, one of b, two of a, and two of padding: where a has weights, its four rows and
    the four others."""
    batch = routing(("a", 2), (None, 1), ("b", 1), ("a", 2))
    assert batch.names == ("a", "b")
    groups = batch.split((0,), 8)
    assert (groups.owners, groups.lengths) == ((0, BASE), (4, 4))
    x = torch.arange(8)[:, None] * torch.ones(3)
    own, others = groups.parted(x, 0)
    assert own[:, 0].tolist() == [0, 1, 4, 5] and others[:, 0].tolist() == [2, 3, 6, 7]
    assert torch.equal(groups.joined([own, others], 0), x)
    assert torch.equal(groups.joined(groups.parted(x[None], 1), 1), x[None])


def test_rows_that_lie_group_by_group_are_not_copied():
    batch = routing((None, 1), ("b", 3), ("a", 2))
    groups = batch.split((0, 1), 6)
    assert (groups.owners, groups.lengths, groups.order) == ((BASE, 1, 0), (1, 3, 2), None)
    x = torch.randn(6, 2)
    assert [part.data_ptr() for part in groups.parted(x, 0)] == [x[k:].data_ptr() for k in (0, 1, 4)]
    assert groups is batch.split((0, 1), 6)


def test_where_one_owns_all_rows_or_none_there_is_one_group():
    batch = routing(("a", 2), ("a", 1))
    assert batch.split((0,), 3).owners == (0,)
    assert routing(("a", 2), ("b", 1)).split((), 3).owners == (BASE,)


def test_one_row_a_request_is_told_from_one_a_token():
    """Three requests of five tokens: the sampled rows are three; two are neither."""
    batch = routing(("a", 2), ("b", 1), (None, 2))
    assert batch.split((0, 1), 3).lengths == (1, 1, 1)
    with pytest.raises(ValueError, match="cannot tell the runs of 2 rows in a batch of 3 requests"):
        batch.split((0,), 2)
