"""What a probe measures, against transformers: gradients of plain losses, and models whose projections are 0."""

import math

import numpy as np
import pytest
import torch

from layersweep.policies.selection import LowRank, Selection
from layersweep.rollout.types import Experience
from layersweep.workers.training.probe import gradient_facts, probe
from tests.helpers.updates import experience, plain_loss, plain_models, settings


@pytest.fixture(scope="module")
def rows(trunk):
    algorithm, training = settings(0.0, 1e-3, 0.5, 40)
    return probe(trunk, algorithm, training, experience())


def test_every_layer_and_each_of_its_parts(rows):
    """4 layers of attention 12,288, MLP 24,576 and norms 192 parameters."""
    names = [row["selection"] for row in rows]
    assert names[:4] == ["layer-00", "layer-00-attention", "layer-00-mlp", "layer-00-norms"] and len(names) == 16
    assert [row["parameters"] for row in rows[4:8]] == [37_056, 12_288, 24_576, 192]
    assert [row["layer"] for row in rows] == [k for k in range(4) for _ in range(4)]


def test_gradients_are_those_of_the_plain_loss(rows, model_folder):
    """Halves by group; each half's loss is the mean over its own responses, plain_loss divides by the number of all."""
    exp = experience()
    model, trained, base = plain_models(model_folder, Selection.full())
    names = [name for name, _ in model.named_parameters()]
    even, odd = (
        dict(zip(names, torch.autograd.grad(2 * plain_loss(model, base, exp, half, 0.0), trained), strict=True))
        for half in (np.flatnonzero(exp.group % 2 == 0), np.flatnonzero(exp.group % 2))
    )
    for row in rows:
        selection = Selection.part((row["layer"],), row["modules"]) if row["modules"] else Selection.layer(row["layer"])
        e, o = (torch.cat([g.flatten() for n, g in half.items() if selection.trains(n)]) for half in (even, odd))
        assert row["gradient_norm"] == pytest.approx(float(((e + o) / 2).norm()), rel=1e-4)
        assert row["gradient_agreement"] == pytest.approx(float(torch.cosine_similarity(e, o, dim=0)), abs=1e-4)
        gain = float((e.sign() * o).sum() + (o.sign() * e).sum()) / 2
        assert row["first_order_gain"] == pytest.approx(gain, rel=1e-3, abs=1e-4)


FURTHER = [Selection.part((), "embed_tokens"), Selection.part((), r"^model\.norm"), Selection.several((1, 3)),
           Selection.part((2,), "k_proj"), Selection.part((2,), "mlp", LowRank(2, 2.0))]  # fmt: skip


def test_other_selections_are_measured_alike(trunk, rows, model_folder):
    """Embeddings, the final norm, several layers, single projections: gradients of the plain loss. Of adapters nothing
    but their number is known, 2 * (64 + 128) for each of three matrices. What is a layer already is not there twice."""
    exp = experience()
    found = probe(trunk, *settings(0.0, 1e-3, 0.5, 40), exp, [*FURTHER, Selection.layer(2)])
    assert [row["selection"] for row in found[:16]] == [row["selection"] for row in rows]
    *plain, adapters = found[16:]
    assert [row["layer"] for row in plain] == [None, None, None, 2] and adapters["layer"] == adapters["lora_rank"] == 2
    assert adapters["parameters"] == 2 * 3 * (64 + 128) and "gradient_norm" not in adapters
    for row, selection in zip(plain, FURTHER, strict=False):
        model, trained, base = plain_models(model_folder, selection)
        even, odd = (
            torch.cat([g.flatten() for g in torch.autograd.grad(2 * plain_loss(model, base, exp, half, 0.0), trained)])
            for half in (np.flatnonzero(exp.group % 2 == 0), np.flatnonzero(exp.group % 2))
        )
        assert row["selection"] == selection.name and row["parameters"] == len(even)
        assert row["gradient_norm"] == pytest.approx(float(((even + odd) / 2).norm()), rel=1e-4)
        assert row["gradient_agreement"] == pytest.approx(float(torch.cosine_similarity(even, odd, dim=0)), abs=1e-4)
        assert row["fisher_trace"] > 0 and row["skip_loss"] is None


def of_the_base(folder: str) -> Experience:
    """The responses with the log-probabilities that the base gives them: ratios are 1, and nothing is clipped."""
    exp = experience()
    base, ends = plain_models(folder, Selection.base())[0], np.cumsum(exp.lengths)
    for row, end in enumerate(ends):
        answer = torch.from_numpy(exp.tokens[end - exp.lengths[row] : end]).long()
        ids = torch.cat([torch.from_numpy(exp.prompts[row]).long(), answer])[None]
        with torch.no_grad():
            logp = torch.log_softmax(base(ids).logits[0, -len(answer) - 1 : -1], -1)
        exp.logprobs[end - exp.lengths[row] : end] = logp[range(len(answer)), answer].numpy()
    return exp


def test_the_gain_is_what_a_small_step_of_adamw_gains(trunk, model_folder):
    """How much lower one half's loss is after AdamW's step down on the other half's gradient than after its step up:
    twice the gain, without the second order. The mean of both ways round is the probe's."""
    exp, rate = of_the_base(model_folder), 2e-5
    halves = np.flatnonzero(exp.group % 2 == 0), np.flatnonzero(exp.group % 2)
    gained = 0.0
    for stepped, held_out in (halves, halves[::-1]):
        for up in (True, False):
            model, trained, base = plain_models(model_folder, Selection.layer(2))
            optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, eps=1e-30, maximize=up)
            (2 * plain_loss(model, base, exp, stepped, 0.0)).backward()
            optimizer.step()
            loss = 2 * plain_loss(model.double(), base.double(), exp, held_out, 0.0).item()
            gained += (loss if up else -loss) / (4 * rate)
    rows = probe(trunk, *settings(0.0, 1e-3, 0.5, 40), exp)
    row = next(row for row in rows if row["selection"] == "layer-02")
    assert row["first_order_gain"] == pytest.approx(gained, rel=0.02)


def test_the_fisher_trace_is_the_mean_of_squared_gradients(rows, model_folder):
    """Of each first response's log-probability by itself."""
    exp, selection = experience(), Selection.part((1,), "mlp")
    model, trained, _ = plain_models(model_folder, selection)
    ends, traces = np.cumsum(exp.lengths), []
    for row in np.unique(exp.group, return_index=True)[1]:
        answer = torch.from_numpy(exp.tokens[ends[row] - exp.lengths[row] : ends[row]]).long()
        ids = torch.cat([torch.from_numpy(exp.prompts[row]).long(), answer])[None]
        logp = torch.log_softmax(model(ids).logits[0, -len(answer) - 1 : -1], -1)[range(len(answer)), answer]
        traces.append(sum(float(g.square().sum()) for g in torch.autograd.grad(logp.sum(), trained)))
    found = next(row["fisher_trace"] for row in rows if row["selection"] == "layer-01-mlp")
    assert found == pytest.approx(np.mean(traces), rel=1e-4)


@pytest.mark.parametrize(("layer", "part"), [(0, None), (2, "attention"), (3, "mlp"), (1, None)])
def test_a_skipped_layer_is_one_whose_projections_are_zero(rows, model_folder, layer, part):
    exp = experience()
    model, _, base = plain_models(model_folder, Selection.base())
    block, first = model.model.layers[layer], np.unique(exp.group, return_index=True)[1]
    for module, own in ((block.self_attn.o_proj, "attention"), (block.mlp.down_proj, "mlp")):
        if part in (None, own):
            torch.nn.init.zeros_(module.weight)
    ends, total = np.cumsum(exp.lengths), 0.0
    for row in first:
        answer = torch.from_numpy(exp.tokens[ends[row] - exp.lengths[row] : ends[row]]).long()
        ids = torch.cat([torch.from_numpy(exp.prompts[row]).long(), answer])[None]
        with torch.no_grad():
            whole, cut = (torch.log_softmax(m(ids).logits[0, -len(answer) - 1 : -1], -1) for m in (base, model))
        total += float((whole - cut)[range(len(answer)), answer].sum())
    found = next(row["skip_loss"] for row in rows if (row["layer"], row["modules"]) == (layer, part))
    assert found == pytest.approx(total / exp.lengths[first].sum(), rel=1e-3, abs=1e-5)
    assert all(row["skip_loss"] is None for row in rows if row["modules"] == "norms")


def test_nothing_is_left_of_a_probe(trunk, rows):
    """No hook, no gradient, and the base's own weights as they were."""
    assert not any(module._forward_hooks for module in trunk.model.modules())
    assert all(weight.grad is None for weight in trunk.model.parameters())


def test_a_half_without_signal_gives_nulls(trunk):
    exp = experience()
    exp.reward[exp.group % 2 == 1] = 1.0
    rows = probe(trunk, *settings(0.0, 1e-3, 0.5, 40), exp)
    assert all(math.isnan(row[name]) for row in rows for name in ("gradient_norm", "first_order_gain"))
    assert rows[0]["skip_loss"] is not None
    assert gradient_facts(np.array([2.0, 4.0, 9.0, 6.0, 3.0])) == {
        "parameters": 2.0, "gradient_norm": 2.5, "gradient_agreement": 1.0, "first_order_gain": 1.5,
    }  # fmt: skip
