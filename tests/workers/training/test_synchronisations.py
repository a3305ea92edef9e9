"""How often an update reads a number from its device: on a GPU each time the program waits for all work so far."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layersweep.policies.selection import Selection
from layersweep.workers.training.backend import NonFinite
from tests.helpers.updates import experience, settings, update_loop


class Reads(TorchDispatchMode):
    """Counts what `.item()` and `bool()` of a tensor come down to."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def reads(trunk, tokens: int) -> tuple[int, int]:
    """Reads of an update of one optimizer step in micro batches of so many tokens, and how many these are."""
    loop, exp = update_loop(trunk, Selection.layer(2), *settings(0.1, 1e-3, 0.5, tokens)), experience(groups=12)
    forward, calls = loop.backend.forward, []
    loop.backend.forward = lambda *args: calls.append(1) or forward(*args)
    with Reads() as found:
        loop.update(exp, 1)
    return found.count, len(calls)


def test_no_micro_batch_reads_a_number_from_its_device(trunk, one_rank):
    """As often in many micro batches as in one."""
    once, one = reads(trunk, 10_000)
    often, many = reads(trunk, 20)
    assert (one, often) == (1, once) and many > 10


def test_a_loss_that_is_no_number_ends_the_update_before_a_step(trunk, one_rank):
    """Of one micro batch among many; the losses are read once, before the optimizer's step."""
    algorithm, training = settings(0.1, 1e-3, 0.5, 20)
    loop, calls = update_loop(trunk, Selection.layer(2), algorithm, training), []
    before = {name: weight.clone() for name, weight in loop.backend.weights().items()}
    forward = loop.backend.forward

    def once_nan(*args):
        calls.append(1)
        logp, entropy = forward(*args)
        return (logp * torch.nan if len(calls) == 3 else logp), entropy

    loop.backend.forward = once_nan
    with pytest.raises(NonFinite, match="losses of micro batches are .*nan"):
        loop.update(experience(groups=12), 1)
    assert all(torch.equal(weight, before[name]) for name, weight in loop.backend.weights().items())
