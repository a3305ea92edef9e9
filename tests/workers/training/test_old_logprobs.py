"""Old log-probabilities of the trainer, importance weights against the engine, and tokens that the engine gave none
for: updates against a plain loop over transformers."""

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
from tests.helpers.updates import (
    experience,
    plain_models,
    update_loop,
)

RATE = 1e-3


def response_logp(model, exp, row: int) -> torch.Tensor:
    """Log-probabilities of one response's tokens, in a row of its own."""
    end = int(np.cumsum(exp.lengths)[row])
    answer = exp.tokens[end - exp.lengths[row] : end]
    ids = torch.from_numpy(np.concatenate([exp.prompts[row], answer])).long()[None]
    logits = model(ids).logits[0, len(exp.prompts[row]) - 1 : -1].float()
    return torch.log_softmax(logits, -1)[range(len(answer)), torch.from_numpy(answer).long()]


def of_response(values: np.ndarray, exp, row: int) -> torch.Tensor:
    end = int(np.cumsum(exp.lengths)[row])
    return torch.from_numpy(values[end - exp.lengths[row] : end])


def advantage_of(exp, row: int) -> float:
    mine = exp.reward[exp.group == exp.group[row]]
    return 0.0 if mine.std() == 0 else float((exp.reward[row] - mine.mean()) / (mine.std(ddof=1) + 1e-6))


def plain_update(folder: str, selection: Selection, exp, weigh, minibatches: int, epochs: int):
    """PPO with old log-probabilities of the model before the first step; `weigh` gives the importance weights of a
    response's tokens from its log-ratios to the engine. Returns the trained weights, and the ratios of each step."""
    model, trained, _ = plain_models(folder, selection)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        old = [response_logp(model, exp, row) for row in range(len(exp.lengths))]
    order = np.random.default_rng(1).permutation(np.unique(exp.group))  # of step 1
    parts = [np.flatnonzero(np.isin(exp.group, part)) for part in np.array_split(order, minibatches)]
    for rows in parts * epochs:
        loss = torch.zeros(())
        for row in rows:
            rho, advantage = torch.exp(response_logp(model, exp, row) - old[row]), advantage_of(exp, row)
            weight = weigh(old[row] - of_response(exp.logprobs, exp, row))
            token = -torch.minimum(rho * advantage, rho.clamp(0.8, 1.28) * advantage) * weight
            loss = loss + token.mean() / len(rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


WEIGHTS = {
    "none": lambda ratio: torch.ones_like(ratio),
    "token_truncate": lambda ratio: ratio.exp().clamp(max=1.5),
    "token_mask": lambda ratio: torch.where(ratio.exp() > 1.5, 0.0, ratio.exp()),
    "sequence_truncate": lambda ratio: ratio.sum().exp().clamp(max=1.5).expand(len(ratio)),
    "sequence_mask": lambda ratio: torch.where(ratio.sum().exp() > 1.5, 0.0, ratio.sum().exp()).expand(len(ratio)),
}


def training(minibatches: int = 1, epochs: int = 1, dtype: str = "float32", tokens: int = 60) -> TrainingConfig:
    return TrainingConfig(
        steps=4, prompts_per_step=6, group_size=4, learning_rate=RATE, betas=(0.9, 0.95), gradient_clip=0.5,
        max_response_tokens=8, micro_batch_tokens=tokens, minibatches=minibatches, epochs=epochs, dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("correction", WEIGHTS)
@pytest.mark.parametrize(
    ("selection", "minibatches", "epochs", "stage"),
    [(Selection.layer(2), 1, 1, 0), (Selection.layer(2), 3, 2, 0), (Selection.full(), 2, 2, 3)],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_ratio_is_to_the_trainers_own(
    model_folder, trunk, one_rank, correction, selection, minibatches, epochs, stage
):  # fmt: skip
    """Three minibatches of two groups, two epochs: 6 optimizer steps, less those of minibatches without signal."""
    exp = experience()
    exp.logprobs[:] -= 0.7  # near the trainer's, so that the weights of responses lie on both sides of the cap
    expected = plain_update(model_folder, selection, exp, WEIGHTS[correction], minibatches, epochs)
    algorithm = GRPO(clip_high=0.28, rollout_correction=correction, importance_cap=1.5)
    section = DeepSpeedConfig(full_zero_stage=stage)
    loop = update_loop(trunk, selection, algorithm, training(minibatches, epochs), section)
    metrics = loop.update(exp, step=1)
    for name, weight in loop.backend.weights().items():
        difference = (weight - expected[name]).abs()
        assert difference.mean() < 2e-3 * RATE * minibatches * epochs, name
    assert metrics["optimizer_steps"] == minibatches * epochs
    if minibatches * epochs == 1:
        assert metrics["clip_fraction"] == 0.0
    assert (metrics["corrected_fraction"] > 0) == (correction != "none")


def test_bypass_is_the_default_in_float32_and_not_in_bfloat16(model_folder):
    from layersweep.policies.model.trunk import Policy, Trunk
    from layersweep.workers.training.rollout_batch import RolloutBatch

    for dtype, correction in (("float32", "bypass"), ("bfloat16", "token_truncate")):
        policy = Policy(Trunk.load(model_folder, dtype), Selection.layer(2))
        assert RolloutBatch(experience(), policy, GRPO(), training(dtype=dtype)).correction == correction


@pytest.mark.parametrize("correction", ["bypass", "token_truncate", "sequence_mask"])
@pytest.mark.parametrize("missing", [float("nan"), -float("inf")])
def test_a_token_without_a_logprob_costs_itself_alone(trunk, one_rank, correction, missing):
    """With all tokens of one response missing, the update is that of a batch whose response has an advantage of 0: it
    has a weight of 0, and all others keep theirs. Counted, and left out of the mismatch."""
    exp, marked = experience(), experience()
    ends = np.cumsum(exp.lengths)
    row = next(row for row in range(len(ends)) if advantage_of(exp, row) and exp.lengths[row] > 2)
    marked.logprobs[ends[row] - exp.lengths[row] : ends[row]] = missing

    class Without(GRPO):
        def advantages(self, *columns):
            found = super().advantages(*columns)
            found[row] = 0.0
            return found

    settings = {"rollout_correction": correction, "clip_high": 0.28}
    whole = update_loop(trunk, Selection.layer(2), Without(**settings), training(tokens=1000))
    reduced = update_loop(trunk, Selection.layer(2), GRPO(**settings), training(tokens=1000))
    expected, found = whole.update(exp, step=1), reduced.update(marked, step=1)
    assert found["unusable_tokens"] == exp.lengths[row] and expected["unusable_tokens"] == 0
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert found["logprob_mismatch"] == pytest.approx(expected["logprob_mismatch"], rel=1e-5)
    assert all(weight.isfinite().all() for weight in reduced.backend.weights().values())


@pytest.mark.parametrize(
    ("selection", "stage"), [(Selection.layer(2), 0), (Selection.full(), 3)], ids=lambda x: getattr(x, "name", x)
)
def test_an_entropy_bonus_alone_raises_the_entropy(model_folder, trunk, one_rank, selection, stage):
    """All responses scored alike: the loss is minus .1 times the mean over responses of their tokens' mean entropy, of
    the model over transformers, and the step is AdamW's on its gradient."""
    exp = experience()
    exp.reward[:] = 1.0
    model, trained, _ = plain_models(model_folder, selection)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    bonus = torch.zeros(())
    for row in range(len(exp.lengths)):
        end = int(np.cumsum(exp.lengths)[row])
        answer = exp.tokens[end - exp.lengths[row] : end]
        ids = torch.from_numpy(np.concatenate([exp.prompts[row], answer])).long()[None]
        logits = model(ids).logits[0, len(exp.prompts[row]) - 1 : -1]
        bonus = bonus + torch.distributions.Categorical(logits=logits).entropy().mean() / len(exp.lengths)
    (-0.1 * bonus).backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
    optimizer.step()
    section = DeepSpeedConfig(full_zero_stage=stage)
    loop = update_loop(trunk, selection, GRPO(entropy_coefficient=0.1), training(), section)
    metrics = loop.update(exp, step=1)
    assert metrics["loss"] == pytest.approx(-0.1 * float(bonus.detach()), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    expected = dict(model.named_parameters())
    for name, weight in loop.backend.weights().items():
        assert (weight - expected[name]).abs().mean() < 2e-3 * RATE, name
    assert loop.update(exp, step=2)["entropy"] > metrics["entropy"]


def test_a_batch_without_signal_takes_no_step_and_says_so(trunk, one_rank):
    exp = experience()
    exp.reward[:] = 1.0
    loop = update_loop(trunk, Selection.layer(2), GRPO(), training(minibatches=3))
    assert loop.update(exp, step=0)["optimizer_steps"] == 0
    # Of three minibatches of two groups at step 1 the one group with a signal is in one.
    exp.reward[0] = 0.0
    assert loop.update(exp, step=1)["optimizer_steps"] == 1


@pytest.mark.parametrize("correction", ["bypass", "sequence_truncate"])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce_plus_plus"])
def test_every_algorithm_trains(trunk, one_rank, name, correction):
    """Three steps of three minibatches on the same batch raise the mean log-probability of right answers over that of
    wrong ones."""
    from pydantic import TypeAdapter

    from layersweep.policies.config import AlgorithmConfig
    from layersweep.policies.model.tree_batch import pack

    algorithm = TypeAdapter(AlgorithmConfig).validate_python({"type": name, "rollout_correction": correction})
    loop, exp = update_loop(trunk, Selection.layer(2), algorithm, training(minibatches=3)), experience()
    [batch] = pack(exp.prompts, exp.tokens, exp.lengths, range(len(exp.lengths)), 10**6)
    right = torch.from_numpy(exp.reward)[batch.response] > 0

    def lead() -> float:
        with torch.no_grad():
            logp, _ = loop.policy(batch, trunk.prefix(batch, 2), 1.0)
        return float(logp[right].mean() - logp[~right].mean())

    exp.logprobs[batch.token.numpy()] = loop.policy(batch, trunk.prefix(batch, 2), 1.0)[0].detach().numpy()
    before = lead()
    for step in range(3):
        loop.update(exp, step)
    assert lead() > before + 0.01
