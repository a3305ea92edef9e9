"""Low-rank adapters against peft, and against a plain torch loop that adds B A to the matrices itself."""

import pytest
import torch

from layersweep.policies.selection import LowRank, Selection
from tests.helpers.updates import assert_same_step, experience, plain_loss, settings, update_loop

RATE, STEPS = 1e-2, 2
SELECTIONS = [
    Selection.part((2,), None, LowRank(4, 8.0)), Selection.part((0, 3), "attention", LowRank(3, 3.0)),
    Selection.part((1,), "mlp.(up|down)", LowRank(8, 2.0)), Selection.part((0, 1, 2, 3), None, LowRank(2, 4.0)),
]  # fmt: skip


def adapted(trunk, selection: Selection):
    """Return a loop of ours, and the start of its adapters."""
    algorithm, training = settings(0.1, RATE, 0.5, 40)
    loop = update_loop(trunk, selection, algorithm, training.model_copy(update={"schedule": "constant"}))
    return loop, {name: weight.detach().clone() for name, weight in loop.policy.named_weights().items()}


def our_steps(loop, exp):
    """Losses, norms and unclipped gradients by name, of each step."""
    found, step = [], loop.backend.step

    def recorded(rate: float) -> float:
        found.append({name: weight.grad.clone() for name, weight in loop.policy.named_weights().items()})
        return step(rate)

    loop.backend.step = recorded
    metrics = [loop.update(exp, number) for number in range(STEPS)]
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], found


def steps_of(loss_of, trained: dict[str, torch.Tensor]):
    """Two steps of torch's AdamW: losses, norms and clipped gradients by name, of each step."""
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    losses, norms, gradients = [], [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), 0.5, error_if_nonfinite=True)))
        gradients.append({name: weight.grad.clone() for name, weight in trained.items()})
        losses.append(loss.item())
        optimizer.step()
    return losses, norms, gradients


def assert_same(ours, theirs, loop, trained: dict[str, torch.Tensor]) -> None:
    """Losses, norms, gradients, and adapters after two steps; `trained` then gets ours, for what is made of them.

    Where a gradient is rounding, its sign and with it Adam's step are the processor's, and so is a row of the merged
    matrix: this is compared for equal adapters.
    """
    assert ours[0] == pytest.approx(theirs[0], abs=2e-6)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
    for step, (own, other) in enumerate(zip(ours[2], theirs[2], strict=True)):
        factor = min(1.0, 0.5 / (theirs[1][step] + 1e-6))  # theirs are clipped already
        assert own.keys() == other.keys()
        for name, gradient in own.items():
            # Adam's first step magnifies rounding where a gradient is about 1e-8; the second's gradients show it.
            error, bound = float((gradient * factor - other[name]).norm()), (2e-5, 2e-3)[step]
            assert error <= bound * float(other[name].norm()) + 1e-9, (step, name)
            assert (step == 0 and name.endswith("lora_A")) != bool(gradient.any())
    with torch.no_grad():
        for name, weight in loop.policy.named_weights().items():
            assert_same_step(weight, trained[name], RATE)
            trained[name].copy_(weight)


def assert_served(loop, matrices: dict[str, torch.Tensor]) -> None:
    """The matrices that engines get."""
    served = loop.policy.served(loop.backend.weights())
    assert served.keys() == matrices.keys()
    for name, weight in served.items():
        assert torch.allclose(weight, matrices[name], atol=1e-6, rtol=0), name


def model_and_base(folder: str):
    from transformers import AutoModelForCausalLM

    return [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False) for _ in range(2)]


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.name)
def test_two_updates_of_adapters_are_plain_torchs(model_folder, trunk, one_rank, selection):
    """Frozen matrices stay what they were bit for bit; the change is that of the merged matrices."""
    exp, (model, base) = experience(), model_and_base(model_folder)
    before = {name: weight.clone() for name, weight in trunk.model.named_parameters()}
    loop, start = adapted(trunk, selection)
    trained = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    own = {name: weight for name, weight in model.named_parameters() if selection.trains(name)}
    assert {f"{name[:-6]}lora_{x}" for name in own for x in "AB"} == trained.keys()
    assert all(weight.dim() == 2 for weight in own.values())

    def matrices() -> dict[str, torch.Tensor]:
        lora = selection.lora
        return {
            name: weight + (lora.alpha / lora.rank) * trained[f"{name[:-6]}lora_B"] @ trained[f"{name[:-6]}lora_A"]
            for name, weight in own.items()
        }

    def with_adapters(ids):
        return torch.func.functional_call(model, matrices(), (ids,))

    theirs = steps_of(lambda: plain_loss(with_adapters, base, exp, range(len(exp.lengths)), 0.1), trained)
    assert_same(our_steps(loop, exp), theirs, loop, trained)
    assert_served(loop, matrices())
    for name, weight in trunk.model.named_parameters():
        assert torch.equal(weight, before[name]), name
    change = torch.cat([(weight - before[name]).detach().flatten() for name, weight in matrices().items()])
    assert loop.update_norm() == pytest.approx(float(change.norm()), rel=1e-3)


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.name)
def test_two_updates_of_adapters_are_pefts(model_folder, trunk, one_rank, selection):
    """peft's own modules, on the same batch and from the same A; and its merged weights."""
    peft = pytest.importorskip("peft")
    exp, (model, base) = experience(), model_and_base(model_folder)
    targets = [name.removesuffix(".weight") for name, _ in model.named_parameters() if selection.trains(name)]
    config = peft.LoraConfig(r=selection.lora.rank, lora_alpha=selection.lora.alpha, target_modules=targets)
    model = peft.get_peft_model(model, config)
    prefix, suffix = "base_model.model.", ".default.weight"
    trained = {
        name.removeprefix(prefix).removesuffix(suffix): weight
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    loop, start = adapted(trunk, selection)
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for name, weight in trained.items():
            if name.endswith("lora_B"):
                assert torch.equal(weight, start[name])  # zeros
            else:  # of the same distribution: uniform within 1 / sqrt(in)
                assert 0.9 / weight.shape[1] ** 0.5 < float(start[name].abs().max()) <= 1 / weight.shape[1] ** 0.5
                weight.copy_(start[name])
    theirs = steps_of(lambda: plain_loss(model, base, exp, range(len(exp.lengths)), 0.1), trained)
    assert_same(our_steps(loop, exp), theirs, loop, trained)
    merged = dict(model.merge_and_unload().named_parameters())
    assert_served(loop, {name: merged[name] for name in merged if selection.trains(name)})


def test_before_the_first_update_engines_get_the_base(trunk, one_rank):
    loop, _ = adapted(trunk, SELECTIONS[0])
    base = dict(trunk.model.named_parameters())
    served = loop.policy.served(loop.backend.weights())
    assert len(served) == 7 and all(torch.equal(weight, base[name]) for name, weight in served.items())
    assert loop.update_norm() == 0.0


def test_merged_weights_stay_where_they_are(trunk, one_rank):
    """Handles of memory on a GPU are made once (Handles), so what is sent after each step is in the same place."""
    loop, _ = adapted(trunk, SELECTIONS[0])
    places = {name: weight.data_ptr() for name, weight in loop.policy.served(loop.backend.weights()).items()}
    loop.update(experience(), 0)
    again = loop.policy.served(loop.backend.weights())
    assert {name: weight.data_ptr() for name, weight in again.items()} == places
    base = dict(trunk.model.named_parameters())
    assert not any(torch.equal(weight, base[name]) for name, weight in again.items())
