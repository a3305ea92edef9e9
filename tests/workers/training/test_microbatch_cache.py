"""What several epochs share of a rollout batch: kept up to a bound, computed again beyond it, to the same bits."""

import pytest
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.model.tree_batch import MicroBatch, MicroBatches
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
from layersweep.workers.training.microbatch_cache import CacheBudget, MicroBatchCache, TrainingMicroBatch, tensor_bytes
from tests.helpers.updates import experience, update_loop


def micro_batch() -> MicroBatch:
    """One prompt of 3 tokens with one response of 2."""
    ids = torch.zeros(1, 5, dtype=torch.long)
    flat = torch.zeros(2, dtype=torch.long)
    return MicroBatch(ids, ids, torch.ones(1, 1, 5, 5, dtype=torch.bool), flat, flat, flat, flat)


def test_memory_counts_every_tensor():
    """2 x 5 and 4 x 2 integers of 8 bytes, 25 of the mask, 1 x 5 x 6 hidden and 2 + 2 floats of 4 bytes."""
    piece = TrainingMicroBatch(micro_batch(), torch.zeros(1, 5, 6), torch.zeros(2), torch.zeros(2))
    assert tensor_bytes(piece) == 8 * (2 * 5 + 4 * 2) + 25 + 4 * (30 + 2 + 2)


def test_what_does_not_fit_is_made_again_but_for_its_reference():
    """Three pieces of 64 bytes, room for two: over three epochs the third is made three times, the others once."""
    made = []

    def work(number, ref_logp):
        made.append((number, ref_logp is not None))
        reference = torch.full((8,), float(number)) if ref_logp is None else ref_logp
        return TrainingMicroBatch(None, None, torch.zeros(8), reference)

    budget = CacheBudget(130)
    pieces = MicroBatchCache([lambda ref, n=n: work(n, ref) for n in range(3)], budget)
    for _ in range(3):
        assert [piece.ref_logp[0].item() for piece in pieces] == [0, 1, 2]
    assert made == [(0, False), (1, False), (2, False), (2, True), (2, True)]
    assert budget.left == 2


def test_an_index_error_within_is_no_end():
    """A `for` over a Sequence takes an IndexError raised in it for its end, and the rest would be left out."""

    def broken(ref_logp):
        raise IndexError("index out of range in self")

    with pytest.raises(IndexError, match="index out of range in self"):
        list(MicroBatchCache([broken], CacheBudget(0)))
    with pytest.raises(IndexError, match="index out of range in self"):
        list(MicroBatches(broken, [[[0]]]))


@pytest.mark.parametrize("selection", [Selection.layer(2), Selection.full()], ids=lambda s: s.name)
def test_the_cache_changes_no_bit(trunk, one_rank, selection, monkeypatch):
    """Three epochs of two minibatches with and without it: equal weights; the trunk runs once, or in every epoch."""
    calls, prefix = [0], trunk.prefix

    def counted(batch, stop):
        calls[0] += 1
        return prefix(batch, stop)

    monkeypatch.setattr(trunk, "prefix", counted)
    weights, runs = [], []
    for mib in (0, 1024):
        training = TrainingConfig(
            steps=4, epochs=3, minibatches=2, prompts_per_step=6, learning_rate=1e-2, max_response_tokens=8,
            micro_batch_tokens=60, prefix_cache_mib=mib,
        )  # fmt: skip
        loop = update_loop(trunk, selection, GRPO(kl_coefficient=0.1), training, DeepSpeedConfig())
        calls[0] = 0
        loop.update(experience(), step=1)
        weights.append({name: weight.clone() for name, weight in loop.backend.weights().items()})
        runs.append(calls[0])
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert runs[1] >= 4  # several micro batches
    assert runs[0] == (3 * runs[1] if selection.kind == "layer" else runs[1])  # full: for the kept reference alone
