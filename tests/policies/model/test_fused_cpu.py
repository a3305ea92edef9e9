"""Fused norms and rotary embeddings against numeric gradients and transformers' own decoders."""

import copy

import pytest
import torch

from layersweep.policies.model.fused_cpu import CpuAttention, CpuRMSNorm, RMSNorm, Rotation, fuse
from layersweep.policies.model.trunk import Trunk
from tests.helpers.small_decoder import small


@pytest.mark.parametrize("family", ["Qwen3", "Qwen2", "Llama"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_fused_decoder_is_transformers_own(family, masked):
    """Logits and the gradient of every weight, plain causal and under a mask that hides token 2 from all after it;
    Llama with YaRN, whose cosines and sines are scaled."""
    plain = small(family)
    fused = fuse(copy.deepcopy(plain))
    ids = torch.randint(40, (2, 24))
    mask = torch.ones(24, 24).tril().bool()
    mask[3:, 2] = False
    given = {"attention_mask": mask.expand(2, 1, 24, 24)} if masked else {}
    expected, found = plain(ids, **given).logits, fused(ids, **given).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    for (name, weight), mine in zip(plain.named_parameters(), fused.parameters(), strict=True):
        size = weight.grad.abs().max().item()
        assert (mine.grad - weight.grad).abs().max().item() < 2e-5 * max(1.0, size), name


def test_a_fused_decoder_generates_with_transformers_cache():
    """Greedily, and from there on each token sees keys and values of the ones before."""
    plain = small("Qwen3")
    ids = torch.randint(40, (1, 5))
    expected, found = (
        model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        for model in (plain, fuse(copy.deepcopy(plain)))
    )
    assert found.shape == (1, 17) and torch.equal(found, expected)


def test_gradients_are_the_numeric_ones():
    """In float64, by central differences."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    angle = torch.randn(3, 1, 4, dtype=torch.float64).repeat(1, 1, 2)
    x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 1e-6), (x, weight))
    assert torch.autograd.gradcheck(lambda x: Rotation.apply(x, angle.cos(), angle.sin()), (x,))


def test_norm_and_rotation_by_hand():
    """rms(3, 4) with epsilon 0 is sqrt(12.5): weights 1 and 2 give 3 / 3.5355 and 8 / 3.5355. A quarter turn of the
    pairs (1, 3) and (2, 4) gives (-3, 1) and (-4, 2)."""
    normed = RMSNorm.apply(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(normed, torch.tensor([0.848528, 2.262742]))
    turned = Rotation.apply(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4), torch.ones(4))
    assert turned.tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_only_a_float32_trunk_on_cpus_is_fused():
    """Nine norms in a Qwen3 of two layers: four each (two of them of queries and keys) and the last."""
    kinds = [type(module) for module in Trunk(small("Qwen3")).model.modules()]
    assert kinds.count(CpuRMSNorm) == 9 and kinds.count(CpuAttention) == 2
    kinds = [type(module) for module in Trunk(small("Qwen3").bfloat16()).model.modules()]
    assert CpuRMSNorm not in kinds and CpuAttention not in kinds
