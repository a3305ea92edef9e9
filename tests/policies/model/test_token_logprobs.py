"""Log-probabilities in chunks are those of whole logits, with their gradients, and keep no logits."""

import pytest
import torch

from layersweep.policies.model import token_logprobs as module
from layersweep.policies.model.token_logprobs import LogprobHead

TOKENS, HIDDEN, VOCABULARY = 50, 16, 97


@pytest.fixture
def chunks_of_seven(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 4 * VOCABULARY * 7})


def inputs(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    head = LogprobHead(HIDDEN, VOCABULARY, bias=False).to(dtype)
    head.weight.data.mul_(6)  # far from uniform
    hidden = torch.randn(TOKENS, HIDDEN).to(dtype)
    return head, hidden, torch.randint(VOCABULARY, (TOKENS,)), torch.randn(TOKENS)


def in_chunks(head, hidden, target, temperature):
    return head(hidden, target, temperature)


def by_distribution(head, hidden, target, temperature):
    """torch's own Categorical over whole logits."""
    distribution = torch.distributions.Categorical(logits=head(hidden).float() / temperature)
    return distribution.log_prob(target), distribution.entropy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
def test_values_and_gradients_are_those_of_whole_logits(chunks_of_seven, temperature, frozen):
    """Of a loss that weighs every token differently; 50 tokens are seven chunks of 7, and one of 1."""
    results = []
    for compute in (in_chunks, by_distribution):
        head, hidden, target, weight = inputs()
        head.weight.requires_grad_(not frozen)
        hidden.requires_grad_()
        logp, entropy = compute(head, hidden, target, temperature)
        (torch.exp(logp) * weight).sum().backward()
        results.append((logp, entropy, hidden.grad, head.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert results[0][0].dtype == torch.float32 and not results[0][1].requires_grad


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
def test_entropies_have_a_gradient_where_it_is_asked_for(chunks_of_seven, frozen):
    results = []
    for compute in (lambda *given: given[0](*given[1:], entropy_gradient=True), by_distribution):
        head, hidden, target, weight = inputs()
        head.weight.requires_grad_(not frozen)
        hidden.requires_grad_()
        logp, entropy = compute(head, hidden, target, 0.7)
        (torch.exp(logp) * weight + entropy * weight.flip(0)).sum().backward()
        results.append((logp, entropy, hidden.grad, torch.zeros(1) if frozen else head.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_gradients_by_finite_differences(chunks_of_seven):
    """In float64: (f(x + e) - f(x - e)) / 2e."""
    head, hidden, target, _ = inputs(torch.float64)
    hidden.requires_grad_()

    def of_both(h, w):
        return module._ChunkedLogprobs.apply(h, w, target, 0.7, 7)[0].double()

    for tensor in (hidden, head.weight):
        logp = of_both(hidden, head.weight)
        gradient = torch.autograd.grad(logp.sum(), tensor)[0]
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                moved = [t + sign * 1e-3 * direction if t is tensor else t for t in (hidden, head.weight)]
                values.append(total(*moved, target))
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-4)


def total(hidden, weight, target) -> float:
    logits = hidden @ weight.T / 0.7
    return torch.log_softmax(logits, -1)[range(TOKENS), target].sum().item()


def test_bfloat16_stays_within_its_rounding(chunks_of_seven):
    head, hidden, target, _ = inputs(torch.bfloat16)
    hidden.requires_grad_()
    logp, _ = head(hidden, target, 1.0)
    logp.sum().backward()
    ours, hidden.grad = hidden.grad.clone(), None
    expected, _ = by_distribution(head, hidden, target, 1.0)
    expected.sum().backward()
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.float(), hidden.grad.float(), rtol=2**-6, atol=2**-5)


def test_small_vocabularies_take_the_plain_path_bit_for_bit():
    """What fits into one chunk is computed as before there were any."""
    head, hidden, target, _ = inputs()
    logp, entropy = head(hidden, target, 0.7)
    whole = torch.log_softmax(head(hidden) / 0.7, -1)
    assert torch.equal(logp, whole.gather(-1, target[:, None]).squeeze(-1))
    assert torch.equal(entropy, -(whole.exp() * whole).sum(-1))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
def test_nothing_as_large_as_the_logits_is_kept(chunks_of_seven, frozen):
    """Saved for the backward pass: hidden states or their gradients, and for a trained head a number per token and the
    weight itself, which is not a copy."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    head, hidden, target, _ = inputs()
    head.weight.requires_grad_(not frozen)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head(hidden.requires_grad_(), target, 1.0)
    of_its_own = [tensor.numel() for tensor in kept if tensor.data_ptr() != head.weight.data_ptr()]
    assert max(of_its_own) == TOKENS * HIDDEN
