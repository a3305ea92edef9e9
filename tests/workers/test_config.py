"""Numbers that no training can take are refused by the spec, with the field's name."""

import math

import pytest
import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec


def demo(section: str | None, **changes) -> dict:
    data = yaml.safe_load(open(DEMO))
    return data | changes if section is None else data | {section: data.get(section, {}) | changes}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (demo("training", betas=[0.9, 1.0]), "training.betas"),
        (demo("training", betas=[1.5, 0.999]), "training.betas"),
        (demo("training", betas=[-0.1, 0.999]), "training.betas"),
        (demo("training", learning_rate=math.inf), "training.learning_rate"),
        (demo("training", learning_rate={"layer": 1e-3, "full": math.nan}), "training.learning_rate.full"),
        (demo("training", learning_rate={"tune": [1e-3, math.inf], "steps": 5}), "training.learning_rate.tune"),
        (demo("training", weight_decay=math.inf), "training.weight_decay"),
        (demo("training", gradient_clip=math.nan), "training.gradient_clip"),
        (demo("algorithm", clip_high=math.inf), "algorithm.clip_high"),
        (demo("algorithm", kl_coefficient=math.nan), "algorithm.kl_coefficient"),
        (demo("recovery", patience=math.inf), "recovery.patience"),
        (demo("model", initializer_range=math.inf), "model.initializer_range"),
        (demo("model", seed=-1), "model.seed"),
        (demo(None, seeds=[0, -1]), "seeds"),
        (demo(None, seeds=[2**32]), "seeds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_refused_by_name(data, field):
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    assert any(problem.startswith(field) for problem in caught.value.problems), caught.value.problems


def test_the_demo_itself_is_fine():
    spec = parse_spec(demo("training", betas=[0.0, 0.999]))
    assert spec.training.betas == (0.0, 0.999)
    assert spec.training.micro_batch_tokens is None
