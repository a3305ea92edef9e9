"""Several sweeps in one spec: what they are called, what they share, and what is refused."""

import pytest

from layersweep.cli import main
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.orchestrator.spec.yaml_core import write_yaml
from tests.helpers.specs import demo


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
        ({"algorithm": ["grpo"]}, "factors.algorithm: needs two values or more, as a list"),
        ({"algorithm": "grpo"}, "factors.algorithm: needs two values or more, as a list"),
        ({"algorithm": ["grpo", "grp"]}, "factors, demo-grp: algorithm.type: no 'grp' here"),
        ({"algorithm": ["grpo", "grpo"]}, "factors.algorithm: two levels are called grpo; give names"),
        ({"seeds": [[0], [1]]}, "factors.seeds: [0] has no name of its own; give names"),
        ({"name": ["a", "b"]}, "factors: name is the same for all"),
        ({"evaluation.suites[3].samples": [1, 2]}, "evaluation.suites[3].samples: evaluation.suites has 1 item"),
        ({"algorithm type": ["a", "b"]}, "factors.algorithm type"),
        (
            {"algorithm": {"a": "grpo", "a-b": "grpo"}, "training.steps": {"b-c": 8, "c": 9}},
            "factors: two sweeps are called demo-a-b-c; name the levels",
        ),
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
    assert load_spec(str(tmp_path / "factors.yaml")) == spec


def test_paths_of_levels_mean_the_same_everywhere(tmp_path, monkeypatch):
    """A file by its value or within a section is named absolutely, under the names that the levels had; a factor
    without paths stays as it is written, and what lies in a folder that travels stays relative."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b.jsonl").write_text("")
    math = {"type": "math", "data": {"path": "there/b.jsonl"}}
    factors = {"task": {"sums": math, "sort": {"type": "sort_digits"}}, "algorithm": ["grpo", "gspo"]}
    spec = parse_spec(demo(model="/model", factors=factors))
    absolute = with_absolute_paths(spec)
    assert absolute.factors["algorithm"] == ("grpo", "gspo")
    assert absolute.factors["task"]["sums"]["data"]["path"] == f"{tmp_path}/there/b.jsonl"
    assert [one.name for one in sweeps_of(absolute)] == [one.name for one in sweeps_of(spec)]
    travelling = with_absolute_paths(parse_spec(demo(factors={"task.data.path": ["b.jsonl", "c.jsonl"]}, model="/model",
                                                     task=math)), "there")  # fmt: skip
    assert travelling.factors["task.data.path"] == {"b.jsonl": "b.jsonl", "c.jsonl": f"{tmp_path}/c.jsonl"}


@pytest.mark.parametrize(
    "command",
    ["report", "export -o out", "responses --run layer-01", "rescore", "dissect", "compose --best 1", "serve"],
)
def test_commands_about_one_finished_sweep_name_those_in_a_folder_of_several(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    spec = parse_spec(demo(factors={"algorithm": ["grpo", "gspo"]}))
    (tmp_path / "demo" / "sweep.yaml").write_text(write_yaml(spec.model_dump(mode="json")))
    name, *options = command.split()
    assert main([name, "demo", *(["full"] if name == "export" else []), *options]) == 2
    said = "layersweep: demo: these are several sweeps; name one of demo/demo-grpo, demo/demo-gspo\n"
    assert capsys.readouterr().err == said
