"""Values given beside a spec's file: read as YAML, refused like the file's, and in the resolved spec."""

import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.overrides import override, parse_overrides


def test_values_are_yaml():
    found = parse_overrides([
        "training.steps=50", "seeds=[0,1]", "layers=1:4", "training.learning_rate=1e-5", "name=no",
        "evaluation.suites[0].samples=8", "output=s3://b/x=y", "profile=", "task={type: math, data: {path: a}}",
    ])  # fmt: skip
    assert found == {
        "training.steps": 50,
        "seeds": [0, 1],
        "layers": "1:4",
        "training.learning_rate": 1e-5,
        "name": "no",
        "evaluation.suites[0].samples": 8,
        "output": "s3://b/x=y",
        "profile": None,
        "task": {"type": "math", "data": {"path": "a"}},
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["steps"], "steps: not an override; write FIELD=VALUE"),
        (["=3"], "=3: not an override"),
        (["a..b=3"], "a..b=3: not an override"),
        (["a[x]=3"], r"a\[x\]=3: not an override"),
        (["a=1", "a=2"], "a: overridden twice"),
        (["a=["], "a: cannot read '\\['"),
    ],
)
def test_what_is_no_override(texts, message):
    with pytest.raises(SpecError, match="^" + message):
        parse_overrides(texts)


def test_sections_are_added_and_the_source_is_left_alone():
    data = {"a": {"b": 1}, "c": None, "d": [{"e": 1}, {"e": 2}]}
    changed = override(data, {"a.f": 2, "c.g.h": 3, "d[1].e": 4, "i": [5]})
    assert changed == {"a": {"b": 1, "f": 2}, "c": {"g": {"h": 3}}, "d": [{"e": 1}, {"e": 4}], "i": [5]}
    assert data == {"a": {"b": 1}, "c": None, "d": [{"e": 1}, {"e": 2}]}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"a.b.c": 1}, "a.b.c: a.b is 1 in the spec, not a section; override a.b as a whole"),
        ({"a[0]": 1}, "a[0]: a is no list in the spec; override a as a whole"),
        ({"d[2].e": 1}, "d[2].e: d has 1 item in the spec, numbered from 0"),
        ({"d.e": 1}, "d.e: d is [{'e': 1}] in the spec, not a section; override d as a whole"),
    ],
)
def test_paths_that_lead_nowhere(values, problem):
    with pytest.raises(SpecError) as error:
        override({"a": {"b": 1}, "d": [{"e": 1}]}, values)
    assert error.value.problems == [problem]


def test_fields_of_a_section_that_is_written_as_one_text():
    spec = load_spec(DEMO, {"algorithm": "dapo", "algorithm.max_num_gen_batches": 5, "model": "smollm2"})
    assert (spec.algorithm.type, spec.algorithm.max_num_gen_batches, spec.model.path) == ("dapo", 5, "smollm2")
    spec = load_spec({**yaml.safe_load(open(DEMO)), "model": "Qwen/Qwen3-0.6B"}, {"model.revision": "abc"})
    assert (spec.model.type, spec.model.path, spec.model.revision) == ("pretrained", "Qwen/Qwen3-0.6B", "abc")


def test_overrides_are_typed_and_refused_like_the_file():
    spec = load_spec(DEMO, {"training.steps": 50, "seeds": [0, 1], "evaluation.suites[0].samples": 2})
    assert (spec.training.steps, spec.seeds, spec.evaluation.suites[0].samples) == (50, (0, 1), 2)
    assert spec.training.prompts_per_step == load_spec(DEMO).training.prompts_per_step
    with pytest.raises(SpecError) as error:
        load_spec(DEMO, {"training.stpes": 50, "seeds": "x", "resources.engines": 0})
    assert sorted(problem.partition(",")[0] for problem in error.value.problems) == [
        "resources.engines: input should be greater than 0",
        "seeds: needs a list",
        "training.stpes: unknown key. Did you mean steps?",
    ]


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(open(DEMO)) | {"seeds": [5]}))
    assert main(["plan", str(path), "training.steps=7", "seeds=[0,1]", "layers=1:4"]) == 0
    shown = capsys.readouterr().out
    assert "7 steps of 32 prompts" in shown and "8 to train, seeds 0, 1" in shown
    assert "overridden  training.steps=7, seeds=[0, 1], layers=1:4" in shown
    assert main(["plan", "training.steps=7", str(path)]) == 0 and "seeds 5;" in capsys.readouterr().out
    assert main(["run", "--address", "auto", str(path), "--fresh", "training.steps=0"]) == 2
    assert capsys.readouterr().err.startswith("layersweep: training.steps: ")
    assert main(["submit", "--address", "http://nowhere:1", "name=a/b"]) == 2
    assert capsys.readouterr().err.startswith("layersweep: name: ")
    assert main(["resume", str(path), "seeds=[0,0]"]) == 2
    assert capsys.readouterr().err.startswith("layersweep: seeds: seeds must differ")
    assert main(["plan", str(path), "other.yaml"]) == 2
    assert "other.yaml: a second spec" in capsys.readouterr().err
    for arguments in (["plan", "--nothing"], ["report", "a", "b=1"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
