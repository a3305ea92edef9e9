"""Muon with AdamW for the rest, and groups without weight decay, in DeepSpeed against torch's optimizers by hand."""

import pytest
import torch
from safetensors.torch import save

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.workers.config import DeepSpeedConfig
from layersweep.workers.training.optimizer import OptimizerPair, make_optimizer
from layersweep.workers.training.training_state import dump, restore
from tests.helpers.updates import (
    experience,
    plain_loss,
    plain_models,
    update_loop,
)
from tests.workers.training.test_old_logprobs import RATE, training

STEPS = 3


def settings(dtype: str = "float32", **changes):
    return training(dtype=dtype, tokens=1000).model_copy(update={"optimizer": "muon", "weight_decay": 0.1} | changes)


def is_matrix_of_a_block(name: str) -> bool:
    return "proj.weight" in name  # q, k, v, o, gate, up and down


def plain(folder: str, selection: Selection) -> dict[str, torch.Tensor]:
    model, trained, base = plain_models(folder, selection)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = [
        torch.optim.Muon(
            [p for name, p in named.items() if is_matrix_of_a_block(name)], lr=RATE, weight_decay=0.1, momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for name, p in named.items() if not is_matrix_of_a_block(name)], lr=RATE, betas=(0.9, 0.95),
            weight_decay=0.1,
        ),
    ]  # fmt: skip
    for step in range(STEPS):
        model.zero_grad()
        exp = experience(step)
        plain_loss(model, base, exp, range(len(exp.lengths)), 0.0).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize("selection", [Selection.layer(2), Selection.full()], ids=lambda s: s.name)
def test_muon_moves_matrices_and_adamw_the_rest(model_folder, trunk, one_rank, selection):
    """Three steps at ZeRO 0, within a tenth of how far they went: torch's Muon orthogonalises in bfloat16, where a
    gradient's last bit shows, most in directions in which it is small. AdamW goes elsewhere, by as much."""
    expected = plain(model_folder, selection)
    loop = update_loop(trunk, selection, GRPO(clip_high=0.28), settings())
    before = {name: weight.clone() for name, weight in loop.backend.weights().items()}
    for step in range(STEPS):
        loop.update(experience(step), step)
    for name, weight in loop.backend.weights().items():
        moved = (expected[name] - before[name]).norm()
        assert (weight - expected[name]).norm() < (0.1 if is_matrix_of_a_block(name) else 0.01) * moved, name


def test_muons_first_update_is_as_large_as_adamws(model_folder, trunk, one_rank):
    """A matrix [m, n] of rank r moves by U V^T with singular values near 1, times .2 sqrt(max(m, n)) rate: a root mean
    square of .2 sqrt(max / (m n) * r) = .2 rate where r = min(m, n). Gradients of 24 responses have that rank here;
    Newton-Schulz leaves singular values between .7 and 1.2."""
    loop = update_loop(trunk, Selection.layer(2), GRPO(), settings(weight_decay=0.0))
    before = {name: weight.clone() for name, weight in loop.backend.weights().items()}
    loop.update(experience(), 0)
    for name, weight in loop.backend.weights().items():
        if is_matrix_of_a_block(name):
            size = (weight - before[name]).square().mean().sqrt() / RATE
            assert 0.1 < size < 0.26, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_muon_goes_on_bit_for_bit(model_folder, one_rank, dtype):
    goes_on_bit_for_bit(model_folder, dtype, "muon")


def goes_on_bit_for_bit(model_folder, dtype, optimizer):
    """Two updates in one, and the second after a checkpoint of the first."""

    def loop():
        return update_loop(
            Trunk.load(model_folder, dtype), Selection.layer(2), GRPO(), settings(dtype, optimizer=optimizer)
        )

    straight, resumed = loop(), loop()
    straight.update(experience(0), 0)
    content = save({name: tensor.contiguous() for name, tensor in dump(straight.backend, 0, straight.device).items()})
    straight.update(experience(1), 1)
    restore(resumed.backend, 0, resumed.device, content)
    resumed.update(experience(1), 1)
    theirs = straight.backend.weights()
    assert all(torch.equal(weight, theirs[name]) for name, weight in resumed.backend.weights().items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_norms_are_left_out_of_weight_decay(trunk, optimizer):
    """A gradient of 0 leaves a weight to the decay alone: 1 - rate * .1 for matrices, and norms stay."""
    policy = Policy(trunk, Selection.layer(1))
    made = make_optimizer(policy, settings(optimizer=optimizer, decay_norms_and_biases=False))
    before = {name: weight.detach().clone() for name, weight in policy.named_weights().items()}
    for group in made.param_groups:
        group["lr"] = 0.5
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight)
    made.step()
    for name, weight in policy.named_weights().items():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if weight.ndim == 2 else 1.0))


def test_groups_by_what_is_boosted_and_by_optimizer(trunk):
    """Muon leaves the embedding (tied to the head) and the norms to AdamW; boosted layers have twice the rate in both.
    Four layers of 7 matrices and 4 norms, a last norm and an embedding."""
    made = make_optimizer(Policy(trunk, Selection.boost((1, 3), "boost")), settings())
    assert isinstance(made, OptimizerPair)
    sizes = {(group["factor"], "momentum" in group): len(group["params"]) for group in made.param_groups}
    assert sizes == {(1, False): 2 * 4 + 2, (2, False): 2 * 4, (1, True): 2 * 7, (2, True): 2 * 7}
    plain_adamw = make_optimizer(Policy(trunk, Selection.layer(1)), training())
    assert isinstance(plain_adamw, torch.optim.AdamW) and len(plain_adamw.param_groups) == 1


# AdamW with moments in 8 bits


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("bfloat16", 0), ("float32", 3), ("bfloat16", 2)])
@pytest.mark.parametrize("selection", [Selection.layer(2), Selection.full()], ids=lambda s: s.name)
def test_8_bit_adamw_goes_where_adamw_goes(model_folder, one_rank, selection, dtype, stage):
    """Three steps beside torch's AdamW through the same backend: its first step is the same, as moments are rounded
    after it, and its third within 5 % of how far it went. Moments of large tensors take a byte."""
    pytest.importorskip("bitsandbytes")
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    loops = [
        update_loop(Trunk.load(model_folder, dtype), selection, GRPO(), settings(dtype, optimizer=optimizer), section)
        for optimizer in ("adamw", "adamw_8bit")
    ]
    start = masters(loops[0])
    for step, tolerance in enumerate((1e-3, 0.05, 0.05)):
        for loop in loops:
            loop.update(experience(step), step)
        exact, eight = (masters(loop) for loop in loops)
        assert (eight - exact).norm() < tolerance * (exact - start).norm()
    state = loops[1].backend.state()
    moments = {name: tensor for name, tensor in state.items() if name.endswith(("/state1", "/state2"))}
    assert any(tensor.dtype == torch.uint8 for tensor in moments.values())
    assert all((tensor.dtype == torch.uint8) is (tensor.numel() >= 4096) for tensor in moments.values())


def masters(loop) -> torch.Tensor:
    """All that the optimizer works on, float32, flat."""
    return torch.cat([tensor.detach().flatten().clone() for _, tensor in loop.backend._optimized()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_8_bit_adamw_goes_on_bit_for_bit(model_folder, one_rank, dtype):
    pytest.importorskip("bitsandbytes")
    goes_on_bit_for_bit(model_folder, dtype, "adamw_8bit")
