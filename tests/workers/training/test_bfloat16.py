"""Training in bfloat16 against a plain loop with float32 masters."""

import pytest
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig
from tests.helpers.updates import experience
from tests.workers.training.test_old_logprobs import RATE, advantage_of, of_response, response_logp, training

STEPS = 10


def plain_masters(folder: str, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten batches, a step each: gradients of the bfloat16 model, AdamW on float32 masters, which are then rounded into
    it. The flat masters before and after."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    trained = [parameter for name, parameter in model.named_parameters() if selection.trains(name)]
    masters = [parameter.detach().float() for parameter in trained]
    optimizer = torch.optim.AdamW(masters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    before = torch.cat([master.flatten().clone() for master in masters])
    for step in range(STEPS):
        exp, loss = experience(step), torch.zeros(())
        for row in range(len(exp.lengths)):
            logp = response_logp(model, exp, row)
            weight = (logp.detach() - of_response(exp.logprobs, exp, row)).exp().clamp(max=2.0)
            ratio = torch.exp(logp - logp.detach())
            loss = loss - (ratio * advantage_of(exp, row) * weight).mean() / len(exp.lengths)
        for master, gradient in zip(masters, torch.autograd.grad(loss, trained), strict=True):
            master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, 0.5)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(trained, masters, strict=True):
                parameter.copy_(master)
    return before, torch.cat([master.flatten() for master in masters])


@pytest.mark.parametrize(
    ("selection", "stage"),
    [(Selection.layer(2), 0), (Selection.layer(2), 1)] + [(Selection.full(), stage) for stage in (0, 2, 3)],
    ids=lambda x: getattr(x, "name", x),
)  # fmt: skip
def test_ten_steps_follow_float32_masters(model_folder, one_rank, selection, stage):
    """The change of the masters has the same length within 1 % and the same direction, cosine above .99: gradients are
    rounded to bfloat16, 1 part in 256, in another order of operations."""
    from layersweep.policies.model.trunk import Trunk

    before, after = plain_masters(model_folder, selection)
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    settings = training(dtype="bfloat16", tokens=1000).model_copy(update={"weight_decay": 0.01})
    loop = update_loop_of(Trunk.load(model_folder, "bfloat16"), selection, settings, section)
    for step in range(STEPS):
        loop.update(experience(step), step)
    found = trained(loop)
    expected, change = after - before, found - before
    assert float(change.norm()) == pytest.approx(float(expected.norm()), rel=0.01)
    assert torch.cosine_similarity(change, expected, dim=0) > 0.99


def update_loop_of(trunk, selection, settings, section):
    from tests.helpers.updates import update_loop

    return update_loop(trunk, selection, GRPO(), settings, section)


def trained(loop) -> torch.Tensor:
    """The masters, flat, in the order of the parameters."""
    count = sum(weight.numel() for weight in loop.backend.weights().values())
    return torch.cat([tensor.detach().flatten() for _, tensor in loop.backend._optimized()])[:count]
