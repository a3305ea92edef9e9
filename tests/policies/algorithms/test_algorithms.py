"""Advantages, weights and losses against hand-worked numbers; gradients against every way to cut a batch, and TRL."""

import math

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.dr_grpo import DrGRPO
from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.algorithms.loss import LossTerms, LossTokens, token_weights
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy
from layersweep.policies.selection import Selection

NO_CAP = 1e9
"""An importance cap that no ratio here reaches."""


def advantages(algorithm: PolicyGradient, reward: list[float], group: list[int] | None = None) -> np.ndarray:
    """Of single-turn responses, each its own trajectory."""
    rows = np.arange(len(reward))
    groups = np.zeros_like(rows) if group is None else np.array(group)
    return algorithm.advantages(np.array(reward, np.float32), groups, rows, np.zeros_like(rows), [])


def loss_of(algorithm, logp, old_logp, advantage, weight, ref_logp=None) -> LossTerms:
    """The loss of tokens that are a response each, for losses that do not mind which is whose."""
    response = torch.arange(len(logp))
    return algorithm.loss(LossTokens(logp, old_logp, advantage, weight, response, ref_logp=ref_logp))


@pytest.mark.parametrize(
    ("algorithm", "reward", "expected"),
    [
        # mean 1/4; squared differences 9/16 + 3 * 1/16 = 3/4, over n - 1 = 3: variance 1/4, std 1/2.
        (GRPO(), [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        # mean 1/2; 4 * 1/4 / 3: std 1 / sqrt 3.
        (GRPO(), [1, 1, 0, 0], [0.8660, 0.8660, -0.8660, -0.8660]),
        # 0, 1/2, 1: mean 1/2; (1/4 + 1/4) / 2: std 1/2.
        (GRPO(), [0, 0.5, 1], [-1, 0, 1]),
        (GRPO(normalize_std=False), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (DrGRPO(), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (DrGRPO(), [0, 0.5, 1], [-0.5, 0, 0.5]),
    ],
)
def test_advantages_within_a_group(algorithm, reward, expected):
    found = advantages(algorithm, reward)
    assert found.dtype == np.float32
    # std + 1e-6 shifts 1.5 by 3e-6.
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO()])
@pytest.mark.parametrize("reward", [[0, 0, 0, 0], [1, 1, 1, 1], [0.1, 0.1, 0.1], [7]])
def test_equal_rewards_have_no_advantage_at_all(algorithm, reward):
    """Exactly zero: the mean of three float32 0.1 is not 0.1, and its rounding over 1e-6 would be an advantage."""
    assert advantages(algorithm, reward).tolist() == [0.0] * len(reward)


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO()])
def test_groups_do_not_see_each_other(algorithm):
    alone = advantages(algorithm, [1, 0, 0, 0]).tolist()
    mixed = advantages(algorithm, [5, 1, 5, 0, 0, 0], [9, 2, 9, 2, 2, 2])
    assert mixed.tolist() == [0, alone[0], 0, *alone[1:]]


def test_an_episode_has_the_advantage_of_its_return():
    """Episodes 4 and 7 of two steps each, returns 1 and 0: +-.5 on every step, whatever the order of the rows."""
    found = DrGRPO().advantages(
        np.array([0, 0, 1, 0], np.float32), np.zeros(4, int), np.array([7, 4, 4, 7]), np.array([0, 0, 1, 1]), []
    )
    assert found.tolist() == [-0.5, 0.5, 0.5, -0.5]


@pytest.mark.parametrize(
    ("aggregation", "weights", "loss"),
    [
        ("token_mean", [1 / 6, 1 / 6], -1 / 3),  # (2 * 1 - 4 * 1) / 6
        ("sequence_mean", [1 / 4, 1 / 8], 0.0),  # (1 - 1) / 2
        ("sequence_sum_over_max_length", [1 / 16, 1 / 16], -0.125),  # (2 / 8 - 4 / 8) / 2
    ],
)
def test_aggregation(aggregation, weights, loss):
    """Responses of 2 and 4 tokens with token losses +1 and -1, at most 8 tokens allowed."""
    found = token_weights(torch.tensor([2, 4]), aggregation, max_length=8)
    assert found.tolist() == pytest.approx(weights)
    assert float(found[0] * 2 * 1 + found[1] * 4 * -1) == pytest.approx(loss)


def token(algorithm: PolicyGradient, ratio: float, advantage: float) -> tuple[float, float, int]:
    """Loss, its derivative by the log-probability, and the clip count, of one token of weight 1."""
    logp = torch.tensor([math.log(0.1 * ratio)], requires_grad=True)
    terms = loss_of(algorithm, logp, torch.tensor([math.log(0.1)]), torch.tensor([advantage]), torch.ones(1))
    terms.loss.backward()
    return terms.loss.item(), logp.grad.item(), int(terms.clipped)


@pytest.mark.parametrize(
    ("settings", "ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # Where nothing clips, the loss is -rho A and so is its derivative: d rho / d logp = rho.
        ({}, 1.0, 1.5, -1.5, -1.5, 0),
        ({}, 1.1, 2.0, -2.2, -2.2, 0),
        ({}, 0.5, 1.0, -0.5, -0.5, 0),  # a good token that became rarer is always pushed
        ({}, 1.5, 1.0, -1.2, 0.0, 1),
        ({"clip_high": 0.28}, 1.5, 1.0, -1.28, 0.0, 1),  # clip-higher
        ({}, 0.5, -1.0, 0.8, 0.0, 1),
        ({"clip_low": 0.3}, 0.5, -1.0, 0.7, 0.0, 1),
        ({}, 1.5, -1.0, 1.5, 1.5, 0),  # a bad token that became likelier is always pushed
        # Truncation: a ratio of 5 counts as 2, and the token keeps a gradient of that weight.
        ({}, 5.0, -1.0, 2.0, 2.0, 0),
        ({"importance_cap": 3.0}, 5.0, -0.5, 1.5, 1.5, 0),
        ({"importance_cap": 1.1}, 5.0, 1.0, -1.1, -1.1, 0),  # below the clip, it comes first
        ({"importance_cap": NO_CAP}, 5.0, -1.0, 5.0, 5.0, 0),
        # Dual clip: a loss of 3 |A| at most, without gradient; good tokens are left alone.
        ({"importance_cap": NO_CAP, "dual_clip": 3.0}, 5.0, -2.0, 6.0, 0.0, 1),
        ({"importance_cap": NO_CAP, "dual_clip": 3.0}, 2.5, -2.0, 5.0, 5.0, 0),
        ({"importance_cap": NO_CAP, "dual_clip": 3.0}, 5.0, 1.0, -1.2, 0.0, 1),
    ],
)
def test_the_loss_of_a_token(settings, ratio, advantage, loss, gradient, clipped):
    found = token(GRPO(**settings), ratio, advantage)
    assert found == pytest.approx((loss, gradient, clipped), rel=1e-5)


def test_ratios_beyond_float_range_stay_finite():
    """exp(100) is infinite in float32; truncated it is a weight of 2."""
    assert token(GRPO(), math.exp(100), -1.0)[:2] == pytest.approx((2.0, 2.0), rel=1e-5)


def test_a_dual_clip_that_truncation_never_reaches_is_refused():
    with pytest.raises(ValueError, match="dual_clip: 3 is never reached, .* raise importance_cap above it"):
        GRPO(dual_clip=3.0)


@pytest.mark.parametrize(
    ("probability", "reference", "kl", "gradient"),
    [
        # q = log(reference / probability); k3 = e^q - q - 1, its derivative by log probability 1 - e^q.
        (0.25, 0.5, 2 - math.log(2) - 1, -1.0),
        (0.5, 0.25, 0.5 + math.log(2) - 1, 0.5),
        (0.3, 0.3, 0.0, 0.0),
    ],
)
def test_kl_to_the_base(probability, reference, kl, gradient):
    """Two tokens of weights 1 and 3, coefficient 0.1, advantage 0: the loss is 0.1 * 4 k3, the logged sum 2 k3."""
    logp = torch.tensor([math.log(probability)] * 2, requires_grad=True)
    terms = loss_of(
        GRPO(kl_coefficient=0.1), logp, logp.detach(), torch.zeros(2), torch.tensor([1.0, 3.0]),
        torch.tensor([math.log(reference)] * 2),
    )  # fmt: skip
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0.4 * kl, abs=1e-7)
    assert terms.kl.item() == pytest.approx(2 * kl, abs=1e-6)
    assert logp.grad.tolist() == pytest.approx([0.1 * gradient, 0.3 * gradient], abs=1e-7)


def test_kl_of_a_token_is_bounded():
    """q = 3: e^3 - 4 = 16.1, which counts as 10 and has no gradient (verl clamps so); q = 200 overflows no more."""
    logp = torch.tensor([-3.5, -200.5], requires_grad=True)
    terms = loss_of(
        GRPO(kl_coefficient=0.1), logp, logp.detach(), torch.zeros(2), torch.ones(2), torch.tensor([-0.5, -0.5])
    )
    terms.loss.backward()
    assert terms.kl.item() == 20.0 and terms.loss.item() == pytest.approx(2.0)
    assert logp.grad.tolist() == [0.0, 0.0]


def test_overlong_shaping():
    """Limit 10, buffer 4 (DAPO eq. 13): nothing up to 6 tokens, then a quarter more a token, 1 at the limit."""
    lengths = np.array([1, 6, 7, 8, 9, 10])
    shaped = GRPO(overlong_buffer=4).shaped(np.ones(6), lengths, 10)
    assert shaped.tolist() == [1, 1, 0.75, 0.5, 0.25, 0]
    assert GRPO().shaped(np.ones(6), lengths, 10).tolist() == [1] * 6


# -- the length bias ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        # Group [1, 0, 0] with 2, 2 and 8 tokens: std sqrt(1/3), so A is -0.5774 for a wrong answer, and each of its
        # tokens weighs 0.5774 / (3 * length): a token of the long one counts a quarter of one of the short one.
        (GRPO(), [0.5774 / 6, 0.5774 / 24]),
        # A = -1/3; each token weighs 1/3 / (3 * 8), long or short.
        (DrGRPO(), [1 / 72, 1 / 72]),
    ],
)
def test_what_a_token_of_a_wrong_answer_weighs(algorithm, expected):
    lengths = torch.tensor([2, 2, 8])
    row = torch.repeat_interleave(torch.arange(3), lengths)
    advantage = torch.from_numpy(advantages(algorithm, [1, 0, 0]))[row]
    weight = token_weights(lengths, algorithm.aggregation, max_length=8)[row]
    logp = torch.full((12,), -1.0, requires_grad=True)
    loss_of(algorithm, logp, logp.detach(), advantage, weight).loss.backward()
    assert logp.grad[2:4].tolist() == pytest.approx([expected[0]] * 2, rel=1e-4)
    assert logp.grad[4:].tolist() == pytest.approx([expected[1]] * 8, rel=1e-4)


@pytest.mark.parametrize(("algorithm", "grows"), [(GRPO(), True), (DrGRPO(), False)])
def test_grpo_makes_wrong_answers_longer_and_dr_grpo_does_not(algorithm, grows):
    """A policy chooses between a right answer of 2 tokens and wrong ones of 1 and of 4; what follows is certain.

    Exact gradients, a group of one answer each, 20 steps of size 1. Both algorithms learn the right answer. Among the
    wrong ones Dr. GRPO prefers none: their mean length stays (1 + 4) / 2. GRPO's first step alone moves the long
    one's logit above the short one's by .5774 * (1/3 - 1/12) = 0.1443.
    """
    lengths = torch.tensor([2, 1, 4])
    row = torch.repeat_interleave(torch.arange(3), lengths)
    first = torch.tensor([0, 2, 3])
    advantage = torch.from_numpy(advantages(algorithm, [1, 0, 0]))[row]
    weight = token_weights(lengths, algorithm.aggregation, max_length=4)[row]
    logits = torch.zeros(3, requires_grad=True)
    lead, wrong_length = [], []
    for _ in range(20):
        logp = torch.zeros(7).index_add(0, first, torch.log_softmax(logits, 0))
        (gradient,) = torch.autograd.grad(loss_of(algorithm, logp, logp.detach(), advantage, weight).loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
        wrong = torch.softmax(logits.detach()[1:], 0)
        lead.append((logits[2] - logits[1]).item())
        wrong_length.append(float(wrong @ torch.tensor([1.0, 4.0])))
    assert torch.softmax(logits, 0)[0] > 0.6
    if grows:
        assert lead[0] == pytest.approx(0.1443, abs=1e-4)
        assert wrong_length == sorted(wrong_length) and wrong_length[-1] > 3.5
    else:
        assert wrong_length == pytest.approx([2.5] * 20, abs=1e-5)


# -- however the batch is cut ---------------------------------------------------------------------------------

DAPO = GRPO(clip_high=0.28, aggregation="token_mean", importance_cap=NO_CAP)
ALGORITHMS = {
    "grpo": GRPO(clip_high=0.28, kl_coefficient=0.1),
    "dr_grpo": DrGRPO(),
    "dapo": DAPO.model_copy(update={"dual_clip": 3.0, "kl_coefficient": 0.05}),
}
LIMIT = 12


def batch(seed: int = 0, groups: int = 5, size: int = 4):
    """Prompts of 3 to 8 and responses of 1 to 12 tokens, sampled by a policy that is far off: some ratios clip."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, 32, rng.integers(3, 9)).astype(np.int32) for _ in range(groups)]
    lengths = rng.integers(1, LIMIT + 1, groups * size).astype(np.int32)
    tokens = rng.integers(2, 32, lengths.sum()).astype(np.int32)
    old_logp = torch.from_numpy(rng.normal(-3.5, 0.7, lengths.sum()).astype(np.float32))
    reward = rng.integers(0, 2, groups * size).astype(np.float32)
    return [prompts[row // size] for row in range(groups * size)], tokens, lengths, old_logp, reward


def moved(trunk, selection) -> Policy:
    """A policy that has left the base, so that its KL is not zero."""
    policy = Policy(trunk, selection)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


def loss_and_gradients(policy, algorithm, data, micro_tokens, rows=None):
    """Through our own packing, in micro batches of so many tokens."""
    prompts, tokens, lengths, old_logp, reward = data
    policy.zero_grad()
    advantage = torch.from_numpy(of_batch(algorithm, reward))
    weight = token_weights(torch.from_numpy(lengths), algorithm.aggregation, LIMIT)
    total = 0.0
    for micro in pack(prompts, tokens, lengths, range(len(lengths)) if rows is None else rows, micro_tokens):
        assert micro.input_ids.all()  # no token of the batch is 0: nothing is padded
        below = policy.trunk.prefix(micro, policy.start or 0)
        logp, _ = policy(micro, None if policy.start is None else below, 1.0)
        ref = policy.trunk.reference(micro, below, policy.start or 0, 1.0)
        row = micro.response
        terms = loss_of(algorithm, logp, old_logp[micro.token], advantage[row], weight[row], ref)
        terms.loss.backward()
        total += terms.loss.item()
    return total, {name: p.grad.clone() for name, p in policy.named_weights().items()}


def of_batch(algorithm, reward) -> np.ndarray:
    return advantages(algorithm, list(reward), [row // 4 for row in range(len(reward))])


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], abs=2e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("selection", [Selection.layer(1), Selection.full()], ids=lambda s: s.name)
def test_micro_batches_change_nothing(trunk, algorithm, selection):
    """One response at a time, some at a time, all at once, shuffled."""
    policy, data = moved(trunk, selection), batch()
    alone = loss_and_gradients(policy, algorithm, data, micro_tokens=1)
    assert_same(alone, loss_and_gradients(policy, algorithm, data, micro_tokens=10_000))
    shuffled = np.random.default_rng(1).permutation(20)
    assert_same(alone, loss_and_gradients(policy, algorithm, data, 60, shuffled))


# -- TRL ------------------------------------------------------------------------------------------------------


def padded(data) -> dict[str, torch.Tensor]:
    """The batch as TRL has it: prompts padded on the left, completions on the right."""
    prompts, tokens, lengths, old_logp, _ = data
    rows, ends = len(lengths), np.cumsum(lengths)
    wide = max(map(len, prompts))
    columns = {
        "prompt_ids": torch.zeros(rows, wide, dtype=torch.long),
        "prompt_mask": torch.zeros(rows, wide, dtype=torch.long),
        "completion_ids": torch.zeros(rows, int(lengths.max()), dtype=torch.long),
        "completion_mask": torch.zeros(rows, int(lengths.max()), dtype=torch.long),
        "old_per_token_logps": torch.zeros(rows, int(lengths.max())),
    }
    for row, (prompt, end, length) in enumerate(zip(prompts, ends, lengths, strict=True)):
        columns["prompt_ids"][row, wide - len(prompt) :] = torch.from_numpy(prompt)
        columns["prompt_mask"][row, wide - len(prompt) :] = 1
        columns["completion_ids"][row, :length] = torch.from_numpy(tokens[end - length : end])
        columns["completion_mask"][row, :length] = 1
        columns["old_per_token_logps"][row, :length] = old_logp[end - length : end]
    return columns | {"num_items_in_batch": torch.tensor(float(lengths.sum()))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_type", "algorithm", "theirs"),
    [
        ("grpo", GRPO(importance_cap=NO_CAP), {"beta": 0.0}),
        ("grpo", GRPO(importance_cap=NO_CAP, clip_high=0.28, kl_coefficient=0.1), {"beta": 0.1, "epsilon_high": 0.28}),
        ("dr_grpo", DrGRPO(importance_cap=NO_CAP), {"beta": 0.0}),
        ("dr_grpo", DrGRPO(importance_cap=NO_CAP, kl_coefficient=0.2), {"beta": 0.2}),
        ("dapo", DAPO, {"beta": 0.0, "epsilon_high": 0.28}),
        # TRL's two-sided clipping (delta) is dual clip: it bounds the ratio of tokens with A < 0.
        ("dapo", DAPO.model_copy(update={"dual_clip": 1.5}), {"beta": 0.0, "epsilon_high": 0.28, "delta": 1.5}),
    ],
)  # fmt: skip
def test_trl_computes_the_same_loss_and_gradients(model_folder, trunk, tmp_path, loss_type, algorithm, theirs):
    """GRPOTrainer's own `_compute_loss` on a GRPOTrainer made for this model, given our advantages."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from layersweep.workers.startup.tiny_model_training import character_tokenizer

    policy, data = moved(trunk, Selection.full()), batch()
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", loss_type=loss_type, epsilon=0.2,
            per_device_train_batch_size=20, num_generations=4, max_completion_length=LIMIT,
            gradient_checkpointing=False,
            use_bias_correction_kl=False,  # its default weighs k3 by the ratio (DeepSeek-V3.2); GRPO does not
            **theirs,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 20),
        processing_class=character_tokenizer("abcdefghijklmnopqrstuvwxyzABCD"),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets it
    model, inputs = trainer.model, padded(data)
    inputs["advantages"] = torch.from_numpy(of_batch(algorithm, data[4]))
    with torch.no_grad():  # the reference is the base model
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        kept = inputs["completion_ids"].shape[1]
        inputs["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(model, ids, mask, kept)[0]
        for name, weight in policy.named_weights().items():
            model.get_parameter(name).copy_(weight)
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    expected = loss.item(), {name: p.grad for name, p in model.named_parameters()}
    assert_same(loss_and_gradients(policy, algorithm, data, micro_tokens=100), expected)
