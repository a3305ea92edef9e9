"""What a plan refuses, and what it counts, beside models and placement."""

import importlib.util

import pytest

from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.policies.selection import Selection

EIGHT_BIT = {"training.optimizer": "adamw_8bit"}


def test_8_bit_adamw_needs_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = load_spec("deploy/sweeps/demo.yaml", EIGHT_BIT)
    with pytest.raises(SpecError, match="training.optimizer: adamw_8bit needs bitsandbytes wherever trainers run"):
        make_plan(spec)
    (said,) = make_plan(spec, fetch=False).unchecked  # which may be elsewhere than the trainers
    assert said.startswith("training.optimizer (adamw_8bit needs bitsandbytes") and "pip install bitsandbytes" in said


def test_8_bit_adamw_takes_a_quarter_of_the_moments(monkeypatch):
    """A float32 parameter with its gradient and two moments: 4 + 4 + 8 bytes, or 4 + 4 + 2."""
    plain, eight = (
        make_plan(load_spec("deploy/sweeps/demo.yaml", overrides), fetch=False) for overrides in ({}, EIGHT_BIT)
    )
    layer = Selection.layer(3)
    assert plain.trainer_bytes(layer) == 16 * plain.trainable_parameters(layer)
    assert eight.trainer_bytes(layer) == 10 * plain.trainable_parameters(layer)
