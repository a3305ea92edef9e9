"""A run's update against a plain torch loop over transformers on the same batch, at 1 and at 2 ranks."""

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import DeepSpeedConfig
from tests.helpers.updates import (
    assert_same_step,
    experience,
    leave_group,
    plain_agreement,
    plain_kl,
    plain_loop,
    settings,
    update_loop,
)

SELECTIONS = [
    Selection.layer(0), Selection.layer(2), Selection.layer(3), Selection.several((1, 3)), Selection.full(),
    Selection.part((2,), "attention"), Selection.part((0, 3), "mlp"), Selection.part((1,), "norms"),
    Selection.part((3,), r"[qk]_proj"), Selection.part((), r"^model\.norm"), Selection.part((), "embed_tokens"),
]  # fmt: skip


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.name)
@pytest.mark.parametrize(("kl", "micro"), [(0.0, 1000), (0.1, 40)])
def test_an_update_is_a_plain_torch_update(model_folder, trunk, one_rank, selection, kl, micro):
    """Loss, gradient norm and new weights agree to float32 rounding, whatever the micro-batch split; frozen
    parameters stay what they were bit for bit, trained ones all change."""
    exp, rate = experience(), 1e-3
    loss, norm, weights = plain_loop(model_folder, selection, exp, kl, rate, clip=0.5)
    before = {n: p.clone() for n, p in trunk.model.named_parameters()}
    loop = update_loop(trunk, selection, *settings(kl, rate, 0.5, micro), DeepSpeedConfig())
    metrics = loop.update(exp, step=0)
    assert metrics["loss"] == pytest.approx(loss, abs=2e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["gradient_agreement"] == pytest.approx(plain_agreement(model_folder, selection, exp), abs=1e-4)
    trained = loop.backend.weights()
    assert set(trained) == {n for n in before if selection.trains(n)}
    for name, weight in trained.items():
        assert_same_step(weight, weights[name], rate)
        assert not torch.equal(weight, before[name]), name
    for name, parameter in trunk.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("selection", [Selection.layer(0), Selection.layer(2), Selection.full()], ids=lambda s: s.name)
def test_without_a_kl_term_the_kl_is_that_of_a_sample(model_folder, trunk, one_rank, monkeypatch, selection):
    """A separate reference model's k3 on the same responses, within float32 rounding; 0 while the policy is the base.
    The sample is 6 of 24 responses, whatever their rewards, and takes no part in the update."""
    from layersweep.workers.training import update_loop as module

    monkeypatch.setattr(module, "SAMPLED_RESPONSES", 4)
    exp = experience()
    loop, other = (update_loop(trunk, selection, *settings(0.0, 1e-2, 0.5, 40)) for _ in range(2))
    assert loop.update(exp, step=0)["kl"] == 0.0
    weights = {name: weight.clone() for name, weight in loop.backend.weights().items()}
    kl = loop.update(exp, step=8)["kl"]
    expected = plain_kl(model_folder, weights, exp, np.random.default_rng(8).choice(24, 6, replace=False))
    assert expected > 1e-3 and kl == pytest.approx(expected, rel=2e-3)
    monkeypatch.setattr(other, "_sampled_kl", lambda *_: None)
    for step in (0, 8):
        other.update(exp, step)
    with_it, without = loop.backend.weights(), other.backend.weights()
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_a_batch_without_signal_has_nulls_for_what_nothing_measured(trunk, one_rank):
    """No token is trained on: no entropy, clip fraction or mismatch. The KL's sample asks for no signal."""
    exp = experience()
    loop = update_loop(trunk, Selection.layer(2), *settings(0.0, 1e-2, 0.5, 40))
    trained = loop.update(exp, step=0)
    assert trained["entropy"] > 0 and trained["logprob_mismatch"] > 0 and trained["clip_fraction"] is not None
    exp.reward[:] = 1.0
    for step, measured in ((1, False), (3, True), (8, True), (9, False)):  # 4 steps: the last one is step 3
        metrics = loop.update(exp, step)
        assert [metrics[name] for name in ("entropy", "clip_fraction", "logprob_mismatch")] == [None] * 3
        assert metrics["no_signal_fraction"] == 1.0
        assert metrics["kl"] > 0 if measured else metrics["kl"] is None


def test_the_kl_to_the_policy_that_generated_the_batch(model_folder, trunk, one_rank):
    """k3 over the tokens of groups with a signal, exp(d) - 1 - d with d = logp - the engine's, before any step; and the
    mean |d| beside it. Nothing where nothing is trained on."""
    from transformers import AutoModelForCausalLM

    exp = experience()
    model, ends, d = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), np.cumsum(exp.lengths), []
    for row, end in enumerate(ends):
        if np.ptp(exp.reward[exp.group == exp.group[row]]) == 0:
            continue
        at = slice(end - exp.lengths[row], end)
        ids = torch.from_numpy(np.concatenate([exp.prompts[row], exp.tokens[at]])).long()[None]
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0, len(exp.prompts[row]) - 1 : -1].double(), -1)
        d += (logp[range(exp.lengths[row]), exp.tokens[at]].numpy() - exp.logprobs[at]).tolist()
    metrics = update_loop(trunk, Selection.layer(2), *settings(0.0, 1e-2, 0.5, 40)).update(exp, step=0)
    assert metrics["rollout_kl"] == pytest.approx(np.mean(np.expm1(d) - d), rel=1e-4)
    assert metrics["logprob_mismatch"] == pytest.approx(np.mean(np.abs(d)), rel=1e-4)
    exp.reward[:] = 1.0
    loop = update_loop(trunk, Selection.layer(2), *settings(0.0, 1e-2, 0.5, 40))
    assert loop.update(exp, step=1)["rollout_kl"] is None


def twins(flip: bool) -> Experience:
    """Two groups alike in prompt and responses; with `flip` every reward r of the second is 1 - r."""
    one = experience(groups=2)
    reward = np.array([1, 0, 0, 1], np.float32)
    tokens = int(one.lengths[:4].sum())
    return Experience(
        prompts=one.prompts[:4] * 2,
        tokens=np.tile(one.tokens[:tokens], 2),
        logprobs=np.tile(one.logprobs[:tokens], 2),
        lengths=np.tile(one.lengths[:4], 2),
        reward=np.concatenate([reward, 1 - reward if flip else reward]),
        group=np.repeat([0, 1], 4),
        trajectory=np.arange(8),
        step=np.zeros(8, int),
        truncated=np.zeros(8, bool),
        format_ok=np.ones(8, bool),
    )


def test_halves_alike_agree_and_opposite_rewards_oppose(trunk, one_rank):
    """Equal halves have equal gradients, cosine 1. GRPO advantages of 1 - r are those of r negated, and with a
    ratio that nothing clips the gradient is linear in them: cosine -1. A single prompt has no other half."""
    _, training = settings(0.0, 1e-3, 0.5, 1000)
    unclipped = GRPO(clip_low=0.99, clip_high=1e6, importance_cap=1e6)
    loop = update_loop(trunk, Selection.layer(2), unclipped, training, DeepSpeedConfig())
    same = loop.update(twins(flip=False), step=0)
    assert same["gradient_agreement"] == pytest.approx(1.0, abs=1e-5)
    assert "gradient_agreement" not in loop.update(twins(flip=False), step=1)
    loop = update_loop(trunk, Selection.layer(2), unclipped, training, DeepSpeedConfig())
    assert loop.update(twins(flip=True), step=0)["gradient_agreement"] == pytest.approx(-1.0, abs=1e-5)
    assert np.isnan(loop.update(experience(groups=1), step=0)["gradient_agreement"])


def _rank(rank: int, port: int, folder: str, selection: Selection, stage: int, kl: float, out) -> None:
    from layersweep.policies.model import token_logprobs
    from layersweep.policies.model.trunk import Trunk
    from layersweep.workers.training import update_loop as update_module
    from layersweep.workers.training.distributed import prepare

    token_logprobs.CHUNK_BYTES["cpu"] = 3 * 4 * 32  # three tokens of the vocabulary of 32 at a time
    prepare(rank, 2, "127.0.0.1", port, gpu=False)
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    loop = update_loop(Trunk.load(folder, "float32"), selection, *settings(kl, 1e-3, 0.5, 40), section, rank, 2)
    metrics = loop.update(experience(), step=0)
    if not kl:  # with a sample of 6 responses over both ranks, at weights that are not the base's
        update_module.SAMPLED_RESPONSES = 4
        first = {name: weight.clone().numpy() for name, weight in loop.backend.weights().items()}
        metrics |= {"first": first, "second": loop.update(experience(), step=8)["kl"]}
    weights = loop.backend.weights()  # gathered: every rank takes part
    if rank == 0:
        out.put((metrics, {n: w.numpy() for n, w in weights.items()}))
    leave_group()


def on_two_ranks(folder: str, selection: Selection, stage: int, kl: float):
    """Metrics and weights after `_rank`."""
    from layersweep.workers.training.distributed import serve_store

    context = torch.multiprocessing.get_context("spawn")
    out, store = context.SimpleQueue(), serve_store()
    processes = [
        context.Process(target=_rank, args=(rank, store.port, folder, selection, stage, kl, out)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    metrics, trained = out.get()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return metrics, trained


@pytest.mark.parametrize(
    ("selection", "stage"),
    [(Selection.layer(2), 0), (Selection.layer(2), 1), (Selection.full(), 2), (Selection.full(), 3)],
    ids=lambda x: getattr(x, "name", x),
)  # fmt: skip
def test_two_ranks_are_one(model_folder, selection, stage):
    """The same batch over 2 data-parallel ranks at ZeRO 0 to 3, log-probabilities in chunks: the plain loop's loss,
    norm and weights."""
    loss, norm, weights = plain_loop(model_folder, selection, experience(), 0.1, 1e-3, clip=0.5)
    metrics, trained = on_two_ranks(model_folder, selection, stage, 0.1)
    assert metrics["loss"] == pytest.approx(loss, abs=2e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    agreement = np.nan if selection.trains_all else plain_agreement(model_folder, selection, experience())
    assert metrics["gradient_agreement"] == pytest.approx(agreement, abs=1e-4, nan_ok=True)
    for name, weight in trained.items():
        assert_same_step(torch.from_numpy(weight), weights[name], 1e-3)


@pytest.mark.parametrize(("selection", "stage"), [(Selection.layer(2), 1), (Selection.full(), 3)],
                         ids=lambda x: getattr(x, "name", x))  # fmt: skip
def test_two_ranks_share_the_kls_sample(model_folder, selection, stage):
    """Each looks at its part of it; the update before and after it is the plain loop's."""
    _, norm, weights = plain_loop(model_folder, selection, experience(), 0.0, 1e-3, clip=0.5)
    metrics, _ = on_two_ranks(model_folder, selection, stage, 0.0)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    first = {name: torch.from_numpy(weight) for name, weight in metrics["first"].items()}
    for name, weight in first.items():
        assert_same_step(weight, weights[name], 1e-3)
    rows = np.random.default_rng(8).choice(24, 6, replace=False)
    expected = plain_kl(model_folder, first, experience(), rows)
    assert metrics["second"] == pytest.approx(expected, rel=2e-3) and expected > 1e-5


def test_a_token_outside_the_embedding_is_named(trunk, one_rank):
    """OpenRLHF #87: the model has 32 tokens, and an update over token 32 must not pass for one."""
    exp = experience()
    exp.tokens[3] = 32
    loop = update_loop(trunk, Selection.layer(2), *settings(0.0, 1e-3, 0.5, 40))
    with pytest.raises(ValueError, match="token 32 is outside the model's embedding of 32 rows"):
        loop.update(exp, step=0)


def test_signal_without_any_gradient_is_an_error(trunk, one_rank):
    """A loss that has lost its way to the weights; without signal the same loss is none."""
    from layersweep.policies.algorithms.loss import LossTerms
    from layersweep.workers.training.update_metrics import GradientMissing

    class Blind(GRPO):
        def loss(self, tokens):
            zero = torch.zeros(())
            return LossTerms((tokens.logp * 0).sum(), zero, zero)

    _, training = settings(0.0, 1e-3, 0.5, 40)
    loop = update_loop(trunk, Selection.layer(2), Blind(), training)
    with pytest.raises(GradientMissing, match="groups of responses have advantages other than 0"):
        loop.update(experience(), step=1)
    exp = experience()
    exp.reward[:] = 1.0
    assert loop.update(exp, step=1)["update_norm"] == 0.0


@pytest.mark.parametrize(
    ("selection", "stage"),
    [(Selection.layer(2), stage) for stage in (0, 1)] + [(Selection.full(), stage) for stage in (0, 1, 2, 3)],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_update_is_adamws(model_folder, one_rank, selection, dtype, stage):
    """AdamW's first step moves each weight by rate * g / (|g| + 1e-8), whatever its betas: over rate * sqrt(n) the norm
    of the change is that of torch's own AdamW within 1 %. Nothing moves before it, weight decay included."""
    from layersweep.policies.model.trunk import Trunk

    rate, exp = 1e-3, experience()
    _, _, weights = plain_loop(model_folder, selection, exp, 0.0, rate, clip=0.5)
    base = Trunk.load(model_folder, "float32")
    before = {name: weight for name, weight in base.model.named_parameters() if selection.trains(name)}
    expected = torch.cat([(weights[name] - weight).flatten() for name, weight in before.items()]).norm()

    algorithm, training = settings(0.0, rate, 0.5, 1000)
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    decayed = training.model_copy(update={"dtype": dtype, "weight_decay": 0.1, "schedule": "constant"})
    loop = update_loop(Trunk.load(model_folder, dtype), selection, algorithm, decayed, section)
    start = _trained(loop)
    rounded = torch.cat([weight.detach().to(getattr(torch, dtype)).float().flatten() for weight in before.values()])
    assert torch.equal(start.sort().values, rounded.sort().values)

    loop = update_loop(
        Trunk.load(model_folder, dtype), selection, algorithm, training.model_copy(update={"dtype": dtype}), section
    )
    loop.update(exp, step=0)
    scale = rate * len(start) ** 0.5
    assert float((_trained(loop) - start).norm()) / scale == pytest.approx(float(expected) / scale, rel=0.01)


def _trained(loop) -> torch.Tensor:
    """All that the optimizer works on, float32, flat; padding of partitions cut off."""
    count = sum(weight.numel() for weight in loop.backend.weights().values())
    flat = torch.cat([tensor.detach().flatten().clone() for _, tensor in loop.backend._optimized()])
    return flat[:count]
