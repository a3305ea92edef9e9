"""Activation checkpointing changes no number, and float32 sums of gradients in bfloat16 lose none."""

import numpy as np
import pytest
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.algorithms.loss import LossTokens
from layersweep.policies.model.architecture import GpuKernels
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
from layersweep.workers.training.micro_batch_size import unchecked_tokens
from layersweep.workers.training.update_loop import UpdateLoop
from tests.helpers.updates import experience, settings
from tests.workers.training.test_micro_batch_size import SMOLLM2


def after(trunk, selection: Selection, stage: int, unchecked: float) -> tuple[dict, dict[str, torch.Tensor], bool]:
    """Metrics and weights after two updates in several micro batches, and whether blocks were computed again."""
    algorithm, training = settings(0.1, 1e-3, 0.5, 40)
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    backend = DeepSpeedBackend(Policy(trunk, selection), training, section)
    loop = UpdateLoop(trunk, backend, algorithm, training, unchecked_tokens=unchecked)
    calls = []
    block = backend.policy.trained.model.layers[2]
    block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    metrics = [loop.update(experience(step), step) for step in (1, 2)]
    weights = {name: weight.clone() for name, weight in backend.weights().items()}
    return metrics[-1], weights, len(calls)


@pytest.mark.parametrize(
    ("selection", "stage"),
    [(Selection.layer(2), 0), (Selection.several((1, 2)), 1), (Selection.full(), 2), (Selection.full(), 3)],
    ids=lambda x: getattr(x, "name", x),
)
def test_checkpointed_updates_are_the_same_bit_for_bit(trunk, one_rank, selection, stage):
    """And each block is computed twice, the second time in the backward pass."""
    plain, weights, once = after(trunk, selection, stage, unchecked=1e9)
    checked, others, twice = after(trunk, selection, stage, unchecked=0)
    assert twice == 2 * once > 0
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    for name in ("loss", "grad_norm", "entropy", "kl", "update_norm"):
        assert plain[name] == checked[name]


def test_only_what_would_not_fit_is_checkpointed(trunk, one_rank):
    """The largest micro batch is 40 tokens by the spec, or a longer response with its prompt, which is never cut."""
    algorithm, training = settings(0.0, 1e-3, 0.5, 40)
    backend = DeepSpeedBackend(Policy(trunk, Selection.layer(2)), training, DeepSpeedConfig())
    loop = UpdateLoop(trunk, backend, algorithm, training, unchecked_tokens=40)
    exp = experience()
    loop.update(exp, 1)
    assert not backend.policy.checkpointing
    exp.prompts[0] = np.full(60, 2, np.int32)
    loop.update(exp, 1)
    assert backend.policy.checkpointing


def test_auto_goes_by_the_memory(monkeypatch):
    """A quarter of 40e9 bytes on a GPU, an eighth of a machine's 24e9 on CPUs. SmolLM2 keeps of a token, in bfloat16,
    in each of 30 blocks 4 * 2 * 576 for the norms, 2 * (4 * 576 + 3 * 1536) besides and, as it trains,
    2 * (2 * 576 + 576 + 1536 + 2 * 576) more, and 4 * 576 for the final norm. FlashAttention keeps 2 * 2 * 192 of keys
    and values in place of 2 * 576, and a float32 number for each of 9 heads; fused modules 2 bytes for 4 of a norm's
    input, 2 * 576 numbers less as it trains, and 1536 of the gate."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"total": 24e9}))
    half = TrainingConfig(dtype="bfloat16", attention="masked")
    block = 4 * 2 * 576 + 2 * (4 * 576 + 3 * 1536) + 2 * (2 * 576 + 576 + 1536 + 2 * 576)
    token = 30 * block + 4 * 576
    assert unchecked_tokens(half, SMOLLM2, Selection.full(), 40e9, GpuKernels()) == 1e10 / token
    assert unchecked_tokens(half, SMOLLM2, Selection.full(), 0) == 3e9 / token
    token -= 30 * (2 * (2 * 576 - 4 * 192) - 4 * 9)
    assert unchecked_tokens(half, SMOLLM2, Selection.full(), 40e9, GpuKernels(varlen=True)) == 1e10 / token
    token -= 30 * 2 * (2 * 576 + 2 * 576 + 1536) + 2 * 576
    assert unchecked_tokens(TrainingConfig(dtype="bfloat16"), SMOLLM2, Selection.full(), 40e9) == 1e10 / token
    for name, expected in (("on", 0), ("off", float("inf"))):
        assert unchecked_tokens(TrainingConfig(checkpointing=name), SMOLLM2, Selection.full(), 40e9) == expected


@pytest.mark.parametrize(("selection", "stage"), [(Selection.layer(2), 0), (Selection.layer(2), 1),
                                                  (Selection.full(), 2), (Selection.full(), 3)],
                         ids=lambda x: getattr(x, "name", x))  # fmt: skip
def test_gradients_of_micro_batches_are_summed_in_float32(model_folder, one_rank, selection, stage):
    """In bfloat16 with about one micro batch a prompt: the norm of the gradient is that of the micro batches' own
    gradients, from the bare policy, summed in float32; summed in bfloat16 it is another by far more."""
    exp, trunk = experience(groups=12), Trunk.load(model_folder, "bfloat16")
    training = TrainingConfig(dtype="bfloat16", max_response_tokens=8, micro_batch_tokens=20, gradient_clip=1e9)
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    algorithm, policy = GRPO(clip_high=0.28, rollout_correction="bypass"), Policy(trunk, selection)
    parameters = list(policy.parameters())
    exact, rounded = ([torch.zeros_like(p, dtype=d) for p in parameters] for d in (torch.float32, torch.bfloat16))
    advantage = algorithm.advantages(exp.reward, exp.group, exp.trajectory, exp.step, exp.anchor)
    weight = 1 / (exp.lengths * len(exp.lengths))
    used = np.flatnonzero(advantage)
    for batch in (batches := pack(exp.prompts, exp.tokens, exp.lengths, used, 20)):
        hidden = None if selection.trains_all else trunk.prefix(batch, policy.start)
        logp, _ = policy(batch, hidden, 1.0)
        given = (torch.from_numpy(np.asarray(x, np.float32))[batch.response] for x in (advantage, weight))
        old = torch.from_numpy(exp.logprobs)[batch.token]
        loss = algorithm.loss(LossTokens(logp, old, *given, batch.response)).loss
        for sums in zip(exact, rounded, torch.autograd.grad(loss, parameters), strict=True):
            sums[0].add_(sums[2])
            sums[1].add_(sums[2])
    assert len(batches) > 10
    norms = [float(torch.nn.utils.get_total_norm([g.float() for g in sums])) for sums in (exact, rounded)]
    backend = DeepSpeedBackend(Policy(trunk, selection), training, section)
    found = UpdateLoop(trunk, backend, algorithm, training).update(exp, 1)["grad_norm"]
    assert abs(found / norms[0] - 1) < 2e-6 < abs(norms[1] / norms[0] - 1)
