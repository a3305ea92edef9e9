"""Attention over trees as sequences of a kernel for GPUs: today's way on CPUs and transformers' are the same numbers.

In the kernel's place is a stand-in that computes by the formula; what is tested is which sequences it is given, and
that a kernel which computes something else is refused.
"""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen
from transformers import MistralConfig, MistralForCausalLM

from layersweep.policies.model import varlen_check
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.model.varlen_attention import VarlenPlan, as_sequences
from layersweep.policies.model.varlen_check import WrongKernel, check_kernel, takes_varlen
from layersweep.policies.selection import Selection
from tests.helpers.varlen_on_cpu import as_if_on_a_gpu, varlen_on_cpu
from tests.policies.model.test_families import experience, plain_logprobs


def test_two_trees_are_a_row_of_sequences():
    """Prompts of 2 and 1 tokens with responses of 3, 1 and 2, and of 2 tokens. The first response goes on from its
    prompt; the others have the prompt's keys 0 and 1 before their own."""
    two, one = np.arange(2), np.array([8])
    empty = two[:0]
    plan = as_sequences([
        (empty, two), (two, np.array([2, 3, 4])), (two, np.array([5])), (two, np.array([6, 7])),
        (empty, one), (one, np.array([9, 10])),
    ])  # fmt: skip
    assert plan.query_starts.tolist() == [0, 5, 6, 8, 11]
    assert plan.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 0, 1, 6, 7, 8, 9, 10]
    assert plan.key_starts.tolist() == [0, 5, 8, 12, 15]
    assert plan.longest == (5, 5)


@pytest.mark.parametrize("varlen", [False, True])
def test_a_micro_batch_is_one_row_without_padding(varlen):
    """Trees of 3 + 4 + 2 = 9, 5 + 1 = 6 and 2 + 8 = 10 tokens, in micro batches of 15: 6 and 9, and 10."""
    prompts, tokens, lengths = experience([(3, [4, 2]), (5, [1]), (2, [8])])
    batches = list(pack(prompts, tokens, lengths, range(4), max_tokens=15, varlen=varlen))
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 15), (1, 10)]
    first = batches[0]
    assert first.input_ids[0].tolist() == [*prompts[2], tokens[6], *prompts[0], *tokens[:6]]
    assert first.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 3, 4]
    assert first.predictor.tolist() == [4, 8, 9, 10, 11, 8, 13]
    assert first.target.tolist() == [tokens[6], *tokens[:6]]


def a_model(shared: int, window: int | None) -> MistralForCausalLM:
    """Two blocks, of which `shared` query heads share a head of keys."""
    torch.manual_seed(shared)
    heads = 6 if shared == 3 else 8
    config = MistralConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads // shared, head_dim=8, sliding_window=window, initializer_range=0.15,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return MistralForCausalLM(config).float().eval()


def random_trees(seed: int) -> list[tuple[int, list[int]]]:
    """Prompts of 1 to 200 tokens, each with 1 to 8 responses of 1 to 100; one of each extreme."""
    random = np.random.default_rng(seed)
    trees = [(int(random.integers(1, 201)), random.integers(1, 101, random.integers(1, 9)).tolist()) for _ in range(2)]
    return [*trees, (1, [1, 1]), (200, [100]), (30, [100] * 8)]


def of_packed(trunk: Trunk, prompts, tokens, lengths, direction, varlen: bool):
    """Log-probabilities, the mean of their products with `direction`, and its gradient by parameter of block 0."""
    policy, found, loss = Policy(trunk, Selection.layer(0)), torch.empty(len(tokens)), 0.0
    for batch in pack(prompts, tokens, lengths, range(len(lengths)), 1200, varlen):
        assert isinstance(batch.mask, VarlenPlan) == varlen
        logp, _ = policy(batch, trunk.prefix(batch, 0), 1.0)
        part = (logp * direction[batch.token]).sum() / len(tokens)
        part.backward()
        loss += part.item()
        found[batch.token] = logp.detach()
    return found, loss, {name: weight.grad for name, weight in policy.named_weights().items()}


@pytest.mark.parametrize(("shared", "window"), [(1, None), (3, 20), (8, None), (8, 20)])
def test_loss_and_gradients_are_those_of_masks_and_of_transformers(shared, window):
    """Within 1e-5 of them in float32, of the largest entry of a gradient, in several micro batches."""
    plain = a_model(shared, window)
    prompts, tokens, lengths = experience(random_trees(seed=shared))
    direction = torch.randn(len(tokens), generator=torch.Generator().manual_seed(1))
    expected = plain_logprobs(plain, prompts, tokens, lengths)
    loss = (expected * direction).mean()
    loss.backward()
    gradients = {name: weight.grad for name, weight in plain.named_parameters()}
    plain.requires_grad_(False)
    trunk = Trunk(plain)
    masked, masked_loss, masked_gradients = of_packed(trunk, prompts, tokens, lengths, direction, varlen=False)
    with as_if_on_a_gpu():
        found, found_loss, found_gradients = of_packed(trunk, prompts, tokens, lengths, direction, varlen=True)
    for others in (expected, masked):
        torch.testing.assert_close(found, others.detach(), atol=1e-5, rtol=0)
    assert found_loss == pytest.approx(loss.item(), abs=1e-5) == masked_loss
    for name, gradient in found_gradients.items():
        for others in (gradients[name], masked_gradients[name]):
            torch.testing.assert_close(gradient, others, atol=1e-5 * float(others.abs().max()), rtol=0)


def refused(kernel, window: int | None = None, shared: int = 2) -> None:
    with patch.object(varlen, "varlen_attn", kernel), pytest.raises(WrongKernel, match="training.attention: masked"):
        check_kernel(4, 4 // shared, 32, 32**-0.5, window, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 32), (2, 2, 128), (8, 1, 16)])
def test_a_right_kernel_is_taken(window, heads, kv_heads, size):
    """In bfloat16, where rounding is most of what differs."""
    with as_if_on_a_gpu():
        check_kernel(heads, kv_heads, size, size**-0.5, window, torch.bfloat16, torch.device("cpu"))


def test_a_kernel_that_aligns_the_mask_with_the_first_key_is_refused():
    """As torch's scaled_dot_product_attention does, and cuDNN did."""

    def upper_left(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **rest):
        results = []
        for s in range(len(cu_seq_q) - 1):
            own, seen = slice(cu_seq_q[s], cu_seq_q[s + 1]), slice(cu_seq_k[s], cu_seq_k[s + 1])
            q, k, v = (x.transpose(0, 1)[None] for x in (query[own], key[seen], value[seen]))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            results.append(attended[0].transpose(0, 1))
        return torch.cat(results)

    refused(upper_left)


def altered(**changes):
    """The stand-in with other arguments than it is given; those that are functions make them of the given ones."""

    def kernel(*args, **given):
        return varlen_on_cpu(*args, **given | {name: change(given[name]) for name, change in changes.items()})

    return kernel


@pytest.mark.parametrize("off", [-1, 1, 1000], ids=["one less", "one more", "none"])
def test_a_kernel_with_another_window_is_refused(off):
    refused(altered(window_size=lambda sides: (sides[0] + off, 0)), window=33)


def test_a_kernel_that_sees_the_next_token_or_scales_otherwise_is_refused():
    refused(altered(window_size=lambda sides: (sides[0], 1)))
    refused(altered(scale=lambda scale: scale * 1.1))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["queries", "keys", "values"])
def test_a_kernel_with_a_wrong_gradient_is_refused(which):
    """Right results, but the gradient of one input is a tenth too large."""

    def kernel(*args, **given):
        inputs = list(args)
        inputs[which] = inputs[which] * 1.1 - inputs[which].detach() * 0.1
        return varlen_on_cpu(*inputs, **given)

    refused(kernel)


def test_a_kernel_that_gives_no_number_is_refused():
    refused(lambda *args, **given: varlen_on_cpu(*args, **given) * torch.nan)


class OnAGPU:
    """A model as if on a GPU, for what is asked of it before the kernel is."""

    def __init__(self, model, head_dim: int = 32):
        attention = model.model.layers[0].self_attn
        attention.head_dim = head_dim
        self.model, self.config, self.dtype, self.device = model.model, model.config, model.dtype, torch.device("cuda")


def test_a_gpu_without_the_kernel_says_so_and_computes_under_masks(monkeypatch, caplog):
    """FlashAttention takes heads of up to 256, in multiples of 8, on Ampere and later. In float32 nothing is missed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    checked = []
    monkeypatch.setattr(varlen_check, "check_kernel", lambda *args: checked.append(args[4]))
    model = a_model(1, 20)
    assert not takes_varlen(OnAGPU(model)) and not takes_varlen(model) and not caplog.records
    model = a_model(1, 20).bfloat16()
    assert not takes_varlen(model) and not caplog.records  # on a CPU
    assert takes_varlen(OnAGPU(model)) and takes_varlen(OnAGPU(model, 256)) and not caplog.records
    assert checked == [None, varlen_check.WINDOW] * 2
    for size in (264, 36):
        assert not takes_varlen(OnAGPU(model, size))
        assert f"under masks, which takes more time and memory: FlashAttention has no kernel for heads of {size}" in (
            caplog.text
        )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not takes_varlen(OnAGPU(model)) and "no kernel for a GPU" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not takes_varlen(OnAGPU(model)) and "built without" in caplog.text
