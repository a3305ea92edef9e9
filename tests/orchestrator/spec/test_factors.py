"""Several sweeps in one spec: what they are called, what they share, and what is refused."""

import pytest

from layersweep.cli import main
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import folders_of, sweeps_of
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from tests.orchestrator.spec.test_spec import demo


def expanded(**factors):
    return sweeps_of(parse_spec(demo(factors=factors)))


def test_each_value_of_each_field_with_every_other():
    """Two algorithms at three KL weights: six sweeps, in folders of their own, that are the demo but for these."""
    sweeps = expanded(
        **{
            "algorithm": [{"type": "gspo"}, {"type": "grpo", "clip_high": 0.3}],
            "algorithm.kl_coefficient": [0, 0.01, 1e-3],
        }
    )
    names = [f"demo-{algorithm}-kl_coefficient-{kl}" for algorithm in ("gspo", "grpo") for kl in ("0", "0.01", "0.001")]
    assert [spec.name for spec in sweeps] == names
    assert [spec.folder for spec in sweeps] == [f"runs/demo/{name}" for name in names]
    assert [(spec.algorithm.type, spec.algorithm.kl_coefficient) for spec in sweeps] == [
        (algorithm, kl) for algorithm in ("gspo", "grpo") for kl in (0.0, 0.01, 0.001)
    ]
    assert sweeps[3].algorithm.clip_high == 0.3
    bare = parse_spec(demo())
    same = {"algorithm": bare.algorithm, "name": "demo", "output": "runs"}
    assert all(spec.model_copy(update=same) == bare for spec in sweeps)


def test_names_of_values():
    """A section's type, a path's last part, a number's field; a mapping's own names."""
    named = {"tight": {"type": "grpo", "clip_high": 0.1}, "loose": "grpo"}
    assert [spec.name for spec in expanded(algorithm=named)] == ["demo-tight", "demo-loose"]
    assert [spec.name for spec in expanded(model=["Qwen/Qwen3-1.7B-Base", "/models/a b/"])] == [
        "demo-Qwen3.1.7B.Base", "demo-a.b"
    ]  # fmt: skip
    assert [spec.training.learning_rate.full for spec in expanded(**{"training.learning_rate": [1e-3, 0.01]})] == [
        1e-3, 0.01
    ]  # fmt: skip
    without = parse_spec(demo())
    assert sweeps_of(without) == [without]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"algorithm": ["grpo"]}, "factors.algorithm: "),
        ({"algorithm": ["grpo", "grp"]}, "factors, demo-grp: algorithm.type: no 'grp' here"),
        ({"algorithm": ["grpo", "grpo"]}, "factors.algorithm: two levels are called grpo; give names"),
        ({"seeds": [[0], [1]]}, "factors.seeds: [0] has no name of its own; give names"),
        ({"name": ["a", "b"]}, "factors: name is the same for all"),
        ({"evaluation.suites[3].samples": [1, 2]}, "evaluation.suites[3].samples: evaluation.suites has 1 items"),
        ({"algorithm type": ["a", "b"]}, "factors.algorithm type"),
    ],
)
def test_bad_factors(factors, expected):
    with pytest.raises(SpecError) as error:
        expanded(**factors)
    assert expected in "\n".join(error.value.problems)


def test_commands_about_one_sweep_say_that_these_are_several(capsys, tmp_path):
    spec = parse_spec(demo(factors={"algorithm": ["grpo", "gspo"]}))
    with pytest.raises(SpecError, match="factors: a plan is of one sweep, and these are several: demo-grpo, demo-gspo"):
        make_plan(spec)
    (tmp_path / "factors.yaml").write_text(write_yaml(spec.model_dump(mode="json")))
    assert main(["plan", str(tmp_path / "factors.yaml")]) == 0
    out = capsys.readouterr().out
    assert "demo-grpo -> " in out and "demo-gspo -> " in out
    assert main(["submit", str(tmp_path / "factors.yaml"), "--address", "http://nowhere:8265"]) == 2
    assert "factors: a job is one sweep" in capsys.readouterr().err
    assert load_spec(str(tmp_path / "factors.yaml")) == spec


def test_folders_of_several_sweeps(tmp_path):
    """Those that have begun; of what has no factors, or is not there, what was asked for."""
    folder = tmp_path / "demo"
    folder.mkdir()
    assert folders_of(str(folder)) == [str(folder)]
    (folder / "sweep.yaml").write_text(write_yaml(demo()))
    assert folders_of(str(folder)) == [str(folder)]
    (folder / "sweep.yaml").write_text(write_yaml(demo(factors={"algorithm": ["grpo", "gspo"]})))
    assert folders_of(str(folder)) == [str(folder)]
    for name in ("demo-gspo", "demo-grpo"):
        (folder / name).mkdir()
        (folder / name / "sweep.yaml").write_text(write_yaml(demo()))
    assert folders_of(f"{folder}/") == [f"{folder}/demo-grpo", f"{folder}/demo-gspo"]
