"""The course of the learning rate: by hand, against transformers', and as the optimizer gets it."""

import math

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.selection import Selection
from layersweep.workers.config import TrainingConfig
from layersweep.workers.training.schedule import learning_rate
from tests.helpers.updates import experience, update_loop
from tests.workers.training.test_old_logprobs import training


def config(schedule: str, unit: str, **changes) -> TrainingConfig:
    return TrainingConfig(schedule=schedule, schedule_unit=unit, **{"steps": 4, "warmup_steps": 1, "minibatches": 2,
                                                                   "epochs": 1} | changes)  # fmt: skip


def rates(training: TrainingConfig) -> list[list[float]]:
    """Of a peak of 12, by batch and optimizer step."""
    per_batch = training.minibatches * training.epochs
    return [[learning_rate(training, 12.0, step, n) for n in range(per_batch)] for step in range(training.steps)]


@pytest.mark.parametrize(
    ("schedule", "unit", "expected"),
    [
        ("constant", "batch", [[12, 12]] * 4),
        # one batch of warm-up, then 3 left: 1, 2/3, 1/3, and 0 after the last
        ("linear", "batch", [[12, 12], [12, 12], [8, 8], [4, 4]]),
        # half of 1 + cos 0, cos pi/3, cos 2 pi/3: 1, 3/4, 1/4
        ("cosine", "batch", [[12, 12], [12, 12], [9, 9], [3, 3]]),
        # two optimizer steps of warm-up, then 6 left: 1, 5/6, ... 1/6
        ("linear", "optimizer_step", [[6, 12], [12, 10], [8, 6], [4, 2]]),
        ("constant", "optimizer_step", [[6, 12], [12, 12], [12, 12], [12, 12]]),
        ("cosine", "optimizer_step", [[6, 12], [12, 6 + 3 * 3**0.5], [9, 6], [3, 6 - 3 * 3**0.5]]),
    ],
)
def test_by_hand(schedule, unit, expected):
    for found, wanted in zip(rates(config(schedule, unit)), expected, strict=True):
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("unit", ["batch", "optimizer_step"])
@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", lambda optimizer, n, total: get_constant_schedule_with_warmup(optimizer, n)),
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
    ],
)
def test_as_transformers_has_it(schedule, unit, theirs):
    """After the warm-up the same at every step, and 0 at the one after the last; the warm-up is theirs a step ahead."""
    ours = config(schedule, unit, steps=11, warmup_steps=3, minibatches=4, epochs=2)
    per_batch = 8 if unit == "optimizer_step" else 1
    warmup, total = 3 * per_batch, 11 * per_batch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = theirs(optimizer, warmup, total).lr_lambdas[0]
    for step in range(total):
        found = learning_rate(ours, 1.0, step // per_batch, step % per_batch)
        assert found == pytest.approx(factor(step + 1 if step < warmup else step), abs=1e-12)
    if schedule != "constant":
        assert factor(total) == learning_rate(ours, 1.0, 11) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("unit", "expected"), [("batch", [1, 1, 1, 1]), ("optimizer_step", [1 / 8, 2 / 8, 3 / 8, 4 / 8])]
)
def test_each_optimizer_step_has_its_own(trunk, one_rank, unit, expected):
    """Two epochs of two minibatches: four optimizer steps, the first batch's, of two batches of warm-up (by batch of
    one). steps.parquet has the last one's."""
    warmup = 2 if unit == "optimizer_step" else 1
    changes = {"minibatches": 2, "epochs": 2, "steps": 4, "warmup_steps": warmup, "schedule_unit": unit}
    loop = update_loop(trunk, Selection.layer(2), GRPO(), training(tokens=1000).model_copy(update=changes))
    given, step = [], loop.backend.step
    loop.backend.step = lambda rate: given.append(rate) or step(rate)
    row = loop.update(experience(0), 0)
    assert [rate / loop.peak for rate in given] == pytest.approx(expected)
    assert row["learning_rate"] == given[-1] and math.isfinite(row["loss"])
