"""A short training on one batch, against plain torch loops over transformers."""

import pytest
import torch

from layersweep.policies.selection import LowRank, Selection
from layersweep.workers.config import DeepSpeedConfig
from layersweep.workers.training.screening import train_on_batch
from layersweep.workers.training.setup import TrainingSetup
from tests.helpers.updates import (
    assert_same_step,
    experience,
    plain_loss,
    plain_models,
    settings,
)

RATE = 1e-3


def trained(trunk, selection: Selection, exp, steps: int):
    algorithm, training = settings(0.0, RATE, 0.5, 40)
    training = training.model_copy(update={"epochs": steps})
    return train_on_batch(trunk, TrainingSetup(algorithm, training, DeepSpeedConfig(), "float32"), exp, selection)


@pytest.mark.parametrize(
    "selection", [Selection.layer(1), Selection.part((), r"^model\.norm"), Selection.several((0, 3))],
    ids=lambda selection: selection.name,
)  # fmt: skip
def test_it_is_so_many_steps_of_adamw_on_the_whole_batch(model_folder, trunk, one_rank, selection):
    """The ratio is taken against the engine's log-probabilities at every step. The base stays what it was."""
    exp, before = experience(), {name: weight.clone() for name, weight in trunk.model.named_parameters()}
    model, parameters, base = plain_models(model_folder, selection)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        plain_loss(model, base, exp, range(len(exp.lengths)), 0.0).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    steps, weights = trained(trunk, selection, exp, 3)
    assert steps == 3
    expected = {name: weight.detach() for name, weight in model.named_parameters() if selection.trains(name)}
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert_same_step(weight, expected[name], RATE)
        assert (weight - before[name]).abs().max() > 1.5 * RATE  # three steps, not one
    assert all(torch.equal(weight, before[name]) for name, weight in trunk.model.named_parameters())


def test_adapters_come_merged(trunk, one_rank):
    """A matrix changes by one of the adapters' rank; nothing else is served."""
    selection = Selection.part((2,), "mlp", LowRank(2, 2.0))
    steps, weights = trained(trunk, selection, experience(), 2)
    base = dict(trunk.model.named_parameters())
    assert steps == 2 and sorted(weights) == [
        f"model.layers.2.mlp.{name}_proj.weight" for name in ("down", "gate", "up")
    ]
    for name, weight in weights.items():
        values = torch.linalg.svdvals((weight - base[name]).double())
        assert values[0] > 0 and values[2] < 1e-3 * values[0]


def test_a_batch_without_signal_trains_nothing(trunk, one_rank):
    exp = experience()
    exp.reward[:] = 1.0
    steps, weights = trained(trunk, Selection.layer(0), exp, 3)
    base = dict(trunk.model.named_parameters())
    assert steps == 0 and all(torch.equal(weight, base[name]) for name, weight in weights.items())
