"""Updates whose attention is computed as sequences of a kernel for GPUs, in whose place is a stand-in on CPUs."""

import pytest
import torch

from layersweep.policies.model.trunk import Trunk
from layersweep.policies.selection import Selection
from tests.helpers.updates import assert_same_step
from tests.helpers.varlen_on_cpu import as_if_on_a_gpu
from tests.workers.training.test_checkpointing import after


@pytest.mark.parametrize("selection", [Selection.layer(2), Selection.full()], ids=lambda x: x.name)
def test_updates_are_those_under_masks_and_the_same_bit_for_bit_when_checkpointed(model_folder, one_rank, selection):
    """Two steps with KL and clipping in float32; frozen weights keep every bit. Metrics of the second step are within
    1e-4: AdamW's first step is the sign of a gradient, also where that is rounding."""
    masked, masked_weights, _ = after(Trunk.load(model_folder, "float32"), selection, 0, unchecked=1e9)
    trunk = Trunk.load(model_folder, "float32")
    trunk.varlen, digest = True, trunk.digest()
    with as_if_on_a_gpu():
        plain, weights, once = after(trunk, selection, 0, unchecked=1e9)
        checked, others, twice = after(trunk, selection, 0, unchecked=0)
    assert twice == 2 * once > 0
    assert trunk.digest() == digest
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
        assert_same_step(weight, masked_weights[name], 1e-3)
    for name in ("loss", "grad_norm", "entropy", "kl", "update_norm"):
        assert plain[name] == checked[name]
        assert plain[name] == pytest.approx(masked[name], rel=1e-4, abs=1e-5)
