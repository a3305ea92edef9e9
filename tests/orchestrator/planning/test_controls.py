"""Controls: what a spec asks for, what is refused, and what resume may add."""

import pytest

from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.policies.selection import Selection
from layersweep.workers.training.drawn_reward import DrawnReward
from tests.helpers.specs import demo

EVERY = [
    {"type": "random_reward", "of": ["full", 3]},
    {"type": "constant_reward", "of": 3},
    {"type": "random_direction", "of": "layer-00"},
    {"type": "supervised", "of": ["layer-03"]},
    {"type": "learning_rate", "of": ["full", 3], "factors": [0.3, 3]},
]


def plan_with(*controls, **changes):
    return make_plan(parse_spec(demo(controls=list(controls), **changes)))


def test_every_control_of_the_demo():
    """A run for each, with the parameters of what it is a control of; rates are the kind's own times the factor."""
    plan = plan_with(*EVERY)
    rates = plan.spec.training.learning_rate
    found = {run.selection.name: (run.control_of, run.peak_rate(rates), run.control) for run in plan.controls}
    assert {name: row[:2] for name, row in found.items()} == {
        "full@random-reward": ("full", 3e-4),
        "layer-03@random-reward": ("layer-03", 1e-3),
        "layer-03@constant-reward": ("layer-03", 1e-3),
        "layer-00@random-direction": ("layer-00", 1e-3),
        "layer-03@supervised": ("layer-03", 1e-3),
        "full@rate-x0.3": ("full", pytest.approx(9e-5)),
        "full@rate-x3": ("full", pytest.approx(9e-4)),
        "layer-03@rate-x0.3": ("layer-03", pytest.approx(3e-4)),
        "layer-03@rate-x3": ("layer-03", pytest.approx(3e-3)),
    }
    assert found["full@random-reward"][2].reward == DrawnReward(0.5)
    assert found["layer-03@constant-reward"][2].reward == DrawnReward(1.0)
    assert [name for name, row in found.items() if row[2].supervised] == ["layer-03@supervised"]
    assert [name for name, row in found.items() if not row[2].trained] == ["layer-00@random-direction"]
    selections = {run.selection.name: run.selection for run in plan.controls}
    assert selections["full@rate-x3"].trains_all
    assert selections["layer-03@supervised"].layers == Selection.layer(3).layers
    assert plan.spec == parse_spec(plan.spec.model_dump(mode="json"))  # as sweep.yaml keeps it


def test_controls_are_no_runs_of_the_sweep():
    """Its runs, the rungs of a search and what is evaluated in the course of training are as without; responses grow
    by 8 controls that train for 30 steps of 32 x 8, all but the first step's, which a seed shares."""
    bare, plan = plan_with(), plan_with(*EVERY)
    assert plan.runs == bare.runs and plan.evaluation_steps == bare.evaluation_steps
    assert plan.training_responses - bare.training_responses == 8 * 29 * 32 * 8
    assert plan.evaluation_responses_by_suite[0] - bare.evaluation_responses_by_suite[0] == 9 * (512 * 4 + 4 * 128 * 4)
    search = {"search": {"budget": 0.5}}
    searched = plan_with({"type": "supervised", "of": "layers"}, layers=search)
    assert searched.rungs == plan_with(layers=search).rungs and len(searched.controls) == 6
    assert searched.expected_steps(searched.controls[0]) == 30


def test_each_seed_has_its_controls():
    runs = plan_with({"type": "random_direction", "of": "layers"}, layers=[1, 4], seeds=[0, 7]).controls
    assert [run.name for run in runs] == [
        f"layer-{k:02d}@random-direction-seed{seed}" for seed in (0, 7) for k in (1, 4)
    ]


@pytest.mark.parametrize(
    ("control", "changes", "expected"),
    [
        ({"type": "supervised", "of": "layer-6"}, {}, "controls[0].of: the sweep trains no layer-6; did you mean "),
        ({"type": "supervised", "of": 9}, {}, "controls[0].of: the sweep trains no layer-09"),
        ({"type": "supervised", "of": "full"}, {"include_full": False}, "controls[0].of: the sweep trains no full"),
        ({"type": "supervised", "of": "layers"}, {"layers": None, "sweep": [{"layers": [[0, 1]]}]},
         "controls[0].of: the sweep trains no layers; "),
        ({"type": "random_direction", "of": 2}, {"layers": {"search": {"budget": 0.5}}}, "a search may stop layer-02"),
        ({"type": "learning_rate", "of": 2, "factors": [1, 3]}, {}, "twice, or 1, which is the run itself"),
        ({"type": "learning_rate", "of": 2, "factors": [3, 3]}, {}, "names a factor twice"),
        ({"type": "learning_rate", "of": 2}, {}, "factors: required"),
        ({"type": "random_reward", "of": 2, "probability": 1}, {}, "probability: input should be less than 1"),
        ({"type": "supervised"}, {}, "of: required"),
        ({"type": "supervised", "of": []}, {}, "of: needs at least 1 in its list"),
        ({"type": "shuffled", "of": 2}, {}, "controls[0].type: no 'shuffled' here; one of random_reward, "),
    ],
)  # fmt: skip
def test_bad_controls(control, changes, expected):
    with pytest.raises(SpecError) as error:
        plan_with(control, **changes)
    assert len(error.value.problems) == 1 and expected in error.value.problems[0]


def test_the_same_control_twice():
    with pytest.raises(SpecError, match=r"controls\[1\]: layer-03@supervised is there already"):
        plan_with({"type": "supervised", "of": "layers"}, {"type": "supervised", "of": 3})


def test_resume_adds_controls_and_changes_none(tmp_path):
    """Added to a sweep that began without; then neither its removal nor another probability is let through."""
    output = {"output": str(tmp_path)}
    one = {"type": "random_reward", "of": 3}
    manifest = SweepManifest.begin(plan_with(**output))
    manifest.update_spec(plan_with(one, **output))
    with pytest.raises(SpecError, match="layer-03@random-reward belongs to the sweep; controls can be added"):
        manifest.update_spec(plan_with({"type": "supervised", "of": 3}, **output))
    with pytest.raises(SpecError, match="controls: layer-03@random-reward is another now"):
        manifest.update_spec(plan_with(one | {"probability": 0.4}, **output))
    manifest.update_spec(plan_with(one, {"type": "learning_rate", "of": "layers", "factors": [2]}, **output))
