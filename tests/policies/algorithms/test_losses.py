"""Each loss and each correction by hand: value, gradient, and what counts as clipped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.cispo import CISPO
from layersweep.policies.algorithms.dapo import DAPO
from layersweep.policies.algorithms.dr_grpo import DrGRPO
from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.algorithms.gspo import GSPO
from layersweep.policies.algorithms.loss import LossTokens, sum_by_response
from layersweep.policies.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from layersweep.policies.algorithms.rollout_correction import importance_weights, resolve
from layersweep.policies.algorithms.sapo import SAPO

OLD = math.log(0.1)


def tokens(ratios, advantages, responses=None, weight=None, importance=None) -> LossTokens:
    """Tokens whose probability was .1 and is now `ratios` times that; weight 1 each."""
    logp = torch.tensor([OLD + math.log(ratio) for ratio in ratios], requires_grad=True)
    count = len(ratios)
    return LossTokens(
        logp, torch.full((count,), OLD), torch.tensor(advantages), torch.ones(count) if weight is None else weight,
        torch.arange(count) if responses is None else torch.tensor(responses),
        None if importance is None else torch.tensor(importance),
    )  # fmt: skip


def computed(algorithm, given: LossTokens):
    terms = algorithm.loss(given)
    terms.loss.backward()
    return terms.loss.item(), given.logp.grad.tolist(), int(terms.clipped)


# -- GSPO -----------------------------------------------------------------------------------------------------


def test_gspo_gives_a_response_one_ratio():
    """Ratios 2 and 1/2 make s = 1, though each token left its range: not clipped, loss -s A = -1.5. Each of the two
    tokens, weight 1/2, has the gradient -A s / 2: -.75. (The weights 1/|y| average over a response.)"""
    given = tokens([2.0, 0.5], [1.5, 1.5], [7, 7], weight=torch.full((2,), 0.5))
    loss, gradient, clipped = computed(GSPO(), given)
    assert loss == pytest.approx(-1.5) and gradient == pytest.approx([-0.75, -0.75]) and clipped == 0


@pytest.mark.parametrize(
    ("ratios", "advantage", "loss", "gradient", "clipped"),
    [
        # s = sqrt(4 * 1) = 2, clipped to 1.3: without gradient, all tokens of the response.
        ([4.0, 1.0], 1.0, -1.3, 0.0, 2),
        # A bad response that became likelier is always pushed: s A = -2, each token's gradient 2 / 2.
        ([4.0, 1.0], -1.0, 2.0, 1.0, 0),
        # s = 1/2, clipped to .8 from below where A < 0.
        ([0.25, 1.0], -1.0, 0.8, 0.0, 2),
        ([0.25, 1.0], 1.0, -0.5, -0.25, 0),
    ],
)
def test_gspo_clips_whole_responses(ratios, advantage, loss, gradient, clipped):
    given = tokens(ratios, [advantage] * 2, [3, 3], weight=torch.full((2,), 0.5))
    found = computed(GSPO(clip_low=0.2, clip_high=0.3), given)
    assert found[0] == pytest.approx(loss, rel=1e-5)
    assert found[1] == pytest.approx([gradient] * 2, rel=1e-5) and found[2] == clipped


def test_gspo_keeps_responses_apart_however_they_are_mixed():
    """s of response 0 from ratios 4, 1 is 2, of response 1 from 1, 1, 8 is 2: A = 1 and -1 leave -2 * 2/5 + 2 * 3/5,
    weight 1/5 a token, within a wide clip range."""
    given = tokens([4.0, 1.0, 1.0, 1.0, 8.0], [1.0, -1.0, 1.0, -1.0, -1.0], [0, 1, 0, 1, 1], torch.full((5,), 0.2))
    loss, _, clipped = computed(GSPO(clip_low=0.9, clip_high=9.0), given)
    assert loss == pytest.approx(0.4, rel=1e-5) and clipped == 0
    assert sum_by_response(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9, 4, 9])).tolist() == [4, 2, 4]


# -- CISPO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "clipped"),
    [(1.0, 1.5, 1.0, 0), (0.01, -1.0, 0.01, 0), (3.0, -2.0, 2.5, 1), (7.0, 1.0, 2.5, 1)],
)
def test_cispo_bounds_the_weight_and_keeps_the_gradient(ratio, advantage, weight, clipped):
    """-sg(min(rho, 2.5)) A logp: its gradient is -min(rho, 2.5) A, also where PPO would have clipped it away."""
    loss, gradient, found = computed(CISPO(clip_high=1.5), tokens([ratio], [advantage]))
    assert loss == pytest.approx(-weight * advantage * (OLD + math.log(ratio)), rel=1e-5)
    assert gradient == pytest.approx([-weight * advantage], rel=1e-5) and found == clipped


# -- SAPO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # sigmoid(0) = 1/2: f = 2 / tau; slope 4 sigmoid' = 1.
        (1.0, 1.0, -2.0, -1.0),
        (1.0, -1.0, 1.0, 1.0),  # tau 2
        # rho = 2, tau 1: 4 sigmoid(1) = 2.92423; slope 4 * .196612 = .786448, times rho.
        (2.0, 1.0, -2.92423, -1.572896),
        # rho = 2, tau 2: 2 sigmoid(2) = 1.761594; slope 4 * .104994 = .419974, times rho.
        (2.0, -1.0, 1.761594, 0.839949),
        # A of 0 takes the other tau, and is 0 either way.
        (2.0, 0.0, 0.0, 0.0),
    ],
)
def test_sapo_is_soft(ratio, advantage, loss, gradient):
    found = computed(SAPO(temperature_negative=2.0), tokens([ratio], [advantage]))
    assert found[0] == pytest.approx(loss, rel=1e-5)
    assert found[1] == pytest.approx([gradient], rel=1e-5) and found[2] == 0


@pytest.mark.parametrize("algorithm", [SAPO(), GSPO(), CISPO(), GRPO(), GRPO(rollout_correction="none")])
def test_ratios_beyond_float_range_leave_loss_and_gradient_finite(algorithm):
    """exp(200) is infinite in float32; for a token that became that likely, good or bad, and that unlikely."""
    logp = torch.tensor([-0.5, -0.5, -200.5], requires_grad=True)
    old, ones = torch.tensor([-200.5, -200.5, -0.5]), torch.ones(3)
    importance = ones if algorithm.rollout_correction == "none" else None
    given = LossTokens(logp, old, torch.tensor([1.0, -1.0, -1.0]), ones, torch.arange(3), importance)
    terms = algorithm.loss(given)
    terms.loss.backward()
    assert terms.loss.isfinite() and logp.grad.isfinite().all()


# -- REINFORCE++ ----------------------------------------------------------------------------------------------


def reinforce(reward, group, lengths, **settings):
    algorithm, rows = ReinforcePlusPlus(**settings), np.arange(len(reward))
    advantage = algorithm.advantages(np.array(reward, np.float32), np.array(group), rows, np.zeros_like(rows), [])
    return algorithm.normalised(advantage, np.array(lengths))


def test_reinforce_plus_plus_normalises_over_all_tokens():
    """Rewards 1, 0 of 1 and 3 tokens: mean 1/4, variance (1 * 9/16 + 3 * 1/16) / 4 = 3/16: .75 and -.25 over .4330."""
    found = reinforce([1, 0], [0, 1], [1, 3])
    assert found.dtype == np.float32 and found.tolist() == pytest.approx([1.7321, -0.5774], abs=1e-4)


def test_reinforce_plus_plus_with_the_groups_mean_as_a_baseline():
    """Groups [1, 0] and [1, 1], 2 tokens each: .5, -.5, 0, 0; mean 0, variance 1/8: 1.4142 and, of the group whose
    responses are scored alike, 0. Without the baseline its advantages are (1 - .75) / sqrt(3/16) = .5774."""
    assert reinforce([1, 0, 1, 1], [0, 0, 1, 1], [2] * 4, group_baseline=True).tolist() == pytest.approx(
        [1.41421, -1.41421, 0, 0], abs=1e-5
    )
    assert reinforce([1, 0, 1, 1], [0, 0, 1, 1], [2] * 4).tolist() == pytest.approx(
        [0.57735, -1.73205, 0.57735, 0.57735], abs=1e-5
    )


def test_reinforce_plus_plus_has_no_advantage_where_all_are_scored_alike():
    assert reinforce([0.1, 0.1, 0.1], [0, 0, 1], [1, 2, 3]).tolist() == [0, 0, 0]


# -- DAPO -----------------------------------------------------------------------------------------------------


def test_dapo_is_its_parts():
    """Clip-higher: a ratio of 1.27 of a good token is not clipped, 1.29 is; the token mean; ten rounds."""
    dapo = DAPO()
    assert computed(dapo, tokens([1.27], [1.0]))[1:] == (pytest.approx([-1.27], rel=1e-5), 0)
    assert computed(dapo, tokens([1.29], [1.0]))[1:] == ([0.0], 1)
    assert (dapo.aggregation, dapo.max_num_gen_batches, dapo.kl_coefficient) == ("token_mean", 10, 0.0)
    assert GRPO().max_num_gen_batches == 1


def test_an_entropy_bonus_is_subtracted_with_the_tokens_weight():
    """Entropies 2 and 4, weights 1/4 and 1/2, coefficient .1: -.1 (.5 + 2) beside a surrogate of 0, whatever the
    importance weight; its gradient by the entropies -.025 and -.05."""
    entropy = torch.tensor([2.0, 4.0], requires_grad=True)
    given = tokens([1.0, 1.0], [0.0, 0.0], weight=torch.tensor([0.25, 0.5]), importance=[0.0, 2.0])
    loss = GRPO(entropy_coefficient=0.1).loss(replace(given, entropy=entropy)).loss
    loss.backward()
    assert loss.item() == pytest.approx(-0.25) and entropy.grad.tolist() == pytest.approx([-0.025, -0.05])
    assert GRPO().loss(replace(given, entropy=entropy)).loss.item() == 0


# -- engine and trainer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correction", "weights", "bounded"),
    [
        # Response 0 has tokens of weight 3 and 1/2, together 1.5; response 1 of 4 and 2, together 8. The cap is 2.
        ("none", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("token_truncate", [2, 0.5, 2, 2], [1, 0, 1, 0]),
        ("token_mask", [0, 0.5, 0, 2], [1, 0, 1, 0]),
        ("sequence_truncate", [1.5, 1.5, 2, 2], [0, 0, 1, 1]),
        ("sequence_mask", [1.5, 1.5, 0, 0], [0, 0, 1, 1]),
    ],
)
def test_importance_weights(correction, weights, bounded):
    engine = torch.full((4,), -3.0)
    old = engine + torch.log(torch.tensor([3.0, 0.5, 4.0, 1.9999]))
    found, which = importance_weights(correction, old, engine, torch.tensor([5, 5, 2, 2]), cap=2.0)
    assert found.tolist() == pytest.approx(weights, rel=1e-4) and which.tolist() == [bool(b) for b in bounded]


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO(), GSPO(), CISPO(), SAPO()], ids=lambda a: a.type)
def test_an_importance_weight_multiplies_a_tokens_loss(algorithm):
    """At a ratio of 1 every loss has the gradient -A (CISPO's and SAPO's too); weighted 1/2 and 0, half and none."""
    _, gradient, clipped = computed(algorithm, tokens([1.0, 1.0], [1.5, 1.5], importance=[0.5, 0.0]))
    assert gradient == pytest.approx([-0.75, 0.0]) and clipped == 0


def test_mismatch_alone_clips_nothing_once_old_logprobs_are_the_trainers():
    """An engine .25 nats below: bypassed, the ratio e^.25 = 1.284 is beyond the clip, and the good token has no
    gradient. With old log-probabilities of the trainer the ratio is 1, the importance weight 1.284, and the gradient
    its product with -A."""
    logp = torch.tensor([OLD], requires_grad=True)
    engine, one, row = torch.tensor([OLD - 0.25]), torch.ones(1), torch.zeros(1, dtype=torch.long)
    bypassed = GRPO().loss(LossTokens(logp, engine, one, one, row))
    assert torch.autograd.grad(bypassed.loss, logp)[0].item() == 0 and bypassed.clipped == 1
    weights, _ = importance_weights("token_truncate", logp.detach(), engine, row, 2.0)
    decoupled = GRPO().loss(LossTokens(logp, logp.detach(), one, one, row, weights))
    assert torch.autograd.grad(decoupled.loss, logp)[0].item() == pytest.approx(-math.exp(0.25), rel=1e-5)
    assert decoupled.clipped == 0


def test_a_ratio_to_the_trainers_own_is_ppos_and_not_truncated():
    """rho = 5, A = -1: truncated at 2 where rho holds the engine's mismatch; else 5, or 3 with dual clip."""
    assert computed(GRPO(), tokens([5.0], [-1.0]))[0] == pytest.approx(2.0, rel=1e-5)
    assert computed(GRPO(), tokens([5.0], [-1.0], importance=[1.0]))[0] == pytest.approx(5.0, rel=1e-5)
    dual = GRPO(dual_clip=3.0, rollout_correction="token_truncate")
    assert computed(dual, tokens([5.0], [-1.0], importance=[1.0]))[0] == pytest.approx(3.0, rel=1e-5)


def test_what_auto_means():
    assert resolve("auto", "float32", "float32") == "bypass"
    assert resolve("auto", "bfloat16", "bfloat16") == resolve("auto", "float32", "bfloat16") == "token_truncate"
    assert resolve("auto", "float32", "fp8") == "token_truncate"
    assert resolve("auto", "float32", "float32", stale=True) == "token_truncate"
    assert resolve("bypass", "float32", "float32", stale=True) == "bypass"
    assert resolve("sequence_mask", "float32") == "sequence_mask" and resolve("bypass", "bfloat16") == "bypass"
