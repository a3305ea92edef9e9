"""Lists that must agree do agree: what a spec may name, and the modules that implement it."""

import importlib
import pkgutil
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from layersweep.policies import algorithms
from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.custom import CustomAlgorithm
from layersweep.policies.algorithms.rejection_sampling import RejectionSampling
from layersweep.policies.config import AlgorithmConfig
from layersweep.policies.model.families import FAMILIES
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.rollout.config import TaskConfig
from layersweep.workers.startup.preload.server import TRAINER


def choices(union) -> set[type]:
    """The classes of a discriminated union."""
    return set(get_args(get_args(union)[0]))


def defined_in(package) -> set[type]:
    """Every class that is defined below a package and has a `type` of the spec."""
    found = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.name:
                field = value.model_fields.get("type")
                if field and get_origin(field.annotation) is Literal:
                    found.add(value)
    return found


@pytest.mark.parametrize(
    ("union", "packages"),
    [
        (AlgorithmConfig, ["layersweep.policies.algorithms"]),
        (TaskConfig, ["layersweep.rollout.tasks", "layersweep.rollout.environments"]),
    ],
    ids=["algorithms", "tasks"],
)
def test_a_spec_may_name_whatever_is_implemented(union, packages):
    """Each class once, under a name of its own; but for what controls alone train by."""
    implemented = set().union(*(defined_in(importlib.import_module(package)) for package in packages))
    assert choices(union) == implemented - {RejectionSampling}
    names = [cls.model_fields["type"].default for cls in choices(union)]
    assert len(set(names)) == len(names)
    assert all(
        get_args(cls.model_fields["type"].annotation) == (cls.model_fields["type"].default,) for cls in choices(union)
    )


def test_every_algorithm_has_the_hooks():
    assert {cls for cls in choices(AlgorithmConfig) if not issubclass(cls, PolicyGradient)} == {CustomAlgorithm}
    for cls in choices(AlgorithmConfig) - {CustomAlgorithm}:
        assert cls.advantages is not PolicyGradient.advantages, cls
        assert cls.surrogate is not PolicyGradient.surrogate, cls
        assert cls().build() == cls()
    assert choices(AlgorithmConfig) == {value for value in vars(algorithms).values() if isinstance(value, type)}


def test_every_task_has_the_hooks():
    """See rollout.tasks.base.Task: `build` of the section makes it. The toy tasks need nothing, so they are built."""
    for cls in choices(TaskConfig):
        assert callable(cls.build), cls
        if hasattr(cls, "tiny") and not any(field.is_required() for field in cls.model_fields.values()):
            task = cls().build()
            assert callable(task.prompts) and callable(task.demonstrations) and task.alphabet
            assert getattr(task, "multi_turn", False) or callable(task.score)


def test_model_families_are_those_of_transformers():
    """By the class that transformers has for a family's model_type; whose modules are fused on CPUs, whose code is
    preloaded, and which models are known, are among them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from layersweep.policies.model.fused import ATTENTIONS, MLPS, NORMS

    assert all(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type] == name for name, family in FAMILIES.items())
    assert {f"{family}ForCausalLM" for family in (*ATTENTIONS, *NORMS, *MLPS)} <= set(FAMILIES)
    preloaded = {name.split(".")[2] for name in TRAINER if name.startswith("transformers.models.")}
    assert preloaded <= {family.model_type for family in FAMILIES.values()}
    assert {config["architectures"][0] for config in KNOWN_MODELS.values()} <= set(FAMILIES)


@pytest.mark.slow
def test_every_family_that_a_plan_accepts_is_routed_by_the_engine():
    from layersweep.rollout.engine.model import ROUTED

    assert set(ROUTED) == set(FAMILIES)
    assert all(routed.__name__ == f"Routed{name.removesuffix('ForCausalLM')}" for name, routed in ROUTED.items())


def test_deepspeed_is_a_trainer_backend():
    """All members of the protocol, with its parameters."""
    import inspect

    from layersweep.workers.training.backend import TrainerBackend
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend

    hooks = [name for name, value in vars(TrainerBackend).items() if inspect.isfunction(value) and name[0] != "_"]
    assert sorted(hooks) == ["backward", "forward", "gathered", "load_state", "state", "step", "weights"]
    for name in hooks:
        ours, theirs = (
            list(inspect.signature(getattr(c, name)).parameters) for c in (DeepSpeedBackend, TrainerBackend)
        )
        assert ours == theirs, name
