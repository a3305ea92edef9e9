"""How often an update reads a number from its device: on a GPU each time the program waits for all work so far."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MistralConfig

from layersweep.policies.model.trunk import Trunk
from layersweep.policies.selection import Selection
from layersweep.workers.training.backend import NonFinite
from layersweep.workers.training.rollout_batch import RolloutBatch
from tests.helpers.updates import experience, settings, update_loop

aten = torch.ops.aten
LAYER = Selection.layer(2)


class Reads(TorchDispatchMode):
    """Counts what `.item()` and `bool()` of a tensor come down to, and shapes that depend on data."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        self.count += by_mask or function in (
            aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default
        )  # fmt: skip
        return function(*args, **(kwargs or {}))


def reads(trunk, tokens: int, selection: Selection = LAYER) -> tuple[int, int]:
    """Reads of an update of one optimizer step in micro batches of so many tokens, and how many these are."""
    loop, exp = update_loop(trunk, selection, *settings(0.1, 1e-3, 0.5, tokens)), experience(groups=12)
    exp.logprobs[3] = np.nan
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


def test_no_micro_batch_does_under_a_sliding_window(tmp_path, one_rank):
    """A window of 5 positions, in rows with more and with fewer."""
    config = MistralConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, sliding_window=5, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    trunk = Trunk.load(str(tmp_path), "float32")
    assert reads(trunk, 20)[0] == reads(trunk, 10_000)[0]


def test_the_kls_sample_and_the_change_of_weights_are_read_once(trunk, one_rank):
    """Of how many parameters, and of how many micro batches, does not matter."""
    loop = update_loop(trunk, Selection.full(), *settings(0.0, 1e-3, 0.5, 20))
    exp = experience(groups=12)
    loop.update(exp, 1)
    with Reads() as found:
        loop.update_norm()
    assert found.count == 1
    batch = RolloutBatch(exp, loop.policy, loop.algorithm, loop.training)
    with Reads() as found:
        loop._sampled_kl(batch, 0)
    assert found.count == 0  # both totals come as one list, which is no such read


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
