"""Attention over trees: branch by branch, under one mask, and as one plain row per response, all the same."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from layersweep.policies.model import tree_attention as attention
from layersweep.policies.model.tree_attention import TreeAttentionPlan
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy
from layersweep.policies.selection import Selection


def trees(groups: int, size: int, prompt: int, longest: int):
    """Prompts of unequal lengths, `size` responses of 1 to `longest` tokens to each."""
    rng = np.random.default_rng(0)
    asked = [rng.integers(2, 32, rng.integers(1, prompt + 1)).astype(np.int32) for _ in range(groups)]
    lengths = rng.integers(1, longest + 1, groups * size)
    tokens = rng.integers(2, 32, lengths.sum()).astype(np.int32)
    return [asked[i // size] for i in range(groups * size)], tokens, lengths


def log_probabilities(trunk, prompts, tokens, lengths, max_tokens=100_000):
    """Of the response tokens, in the experience's order, and the gradient of their sum at layer 1."""
    policy = Policy(trunk, Selection.layer(1))
    batches = list(pack(prompts, tokens, lengths, range(len(lengths)), max_tokens))
    found = torch.zeros(len(tokens))
    for batch in batches:
        logp, _ = policy(batch, trunk.prefix(batch, 1), 1.0)
        logp.sum().backward()
        found[batch.token] = logp.detach()
    return batches, found, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("max_tokens", [100_000, 90])
def test_branch_by_branch_is_one_mask_is_a_row_each(trunk, model_folder, monkeypatch, max_tokens):
    """To float32 rounding, in one micro batch and in several, one of whose trees is split."""
    prompts, tokens, lengths = trees(groups=5, size=4, prompt=40, longest=40)
    monkeypatch.setattr(attention, "GATHERING", 10**9)
    masked, by_mask, mask_gradient = log_probabilities(trunk, prompts, tokens, lengths, max_tokens)
    monkeypatch.setattr(attention, "GATHERING", -(10**9))
    branched, by_branch, branch_gradient = log_probabilities(trunk, prompts, tokens, lengths, max_tokens)
    assert not any(isinstance(batch.mask, TreeAttentionPlan) for batch in masked)
    assert all(isinstance(batch.mask, TreeAttentionPlan) for batch in branched)
    torch.testing.assert_close(by_branch, by_mask, atol=2e-5, rtol=0)
    torch.testing.assert_close(branch_gradient, mask_gradient, atol=1e-4, rtol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ends = np.cumsum(lengths)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        answer = torch.from_numpy(tokens[end - length : end]).long()
        ids = torch.cat([torch.from_numpy(prompts[row]).long(), answer])[None]
        logits = theirs(ids).logits[0, -length - 1 : -1]
        plain = torch.log_softmax(logits, -1)[range(length), answer]
        torch.testing.assert_close(by_branch[end - length : end], plain, atol=2e-5, rtol=0)


def test_long_trees_go_branch_by_branch_and_short_ones_under_one_mask():
    """As measured on CPUs; and a tree of one response, where nothing is to be saved, keeps its mask."""
    for groups, size, prompt, longest, expected in (
        (4, 8, 7, 7, False), (40, 8, 7, 7, True), (1, 8, 100, 100, True), (1, 1, 300, 100, False)
    ):  # fmt: skip
        prompts, tokens, lengths = trees(groups, size, prompt, longest)
        batches = pack(prompts, tokens, lengths, range(len(lengths)), 100_000)
        assert [isinstance(batch.mask, TreeAttentionPlan) for batch in batches] == [expected]
