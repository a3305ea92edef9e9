"""Paths of a spec: where it is launched they become what every process of a cluster understands."""

import pytest

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.orchestrator.spec.sweep_spec import SweepSpec


def spec(**changes) -> SweepSpec:
    math = {"type": "math", "data": {"path": "data/train.jsonl"}}
    suites = [
        {"name": "own", "task": {"type": "math", "data": {"path": "s3://bucket/test.jsonl"}}},
        {"name": "other", "task": {"type": "code", "data": {"path": "~/code.jsonl"}}},
        {"name": "hub", "task": {"type": "math", "data": {"hub": "some/set"}}},
        {"name": "same"},
    ]
    sections = {"name": "paths", "model": "models/mine", "task": math, "evaluation": {"suites": suites}}
    return parse_spec(
        sections | {"output": "runs", "profile": "runs/earlier", "combine": [{"only": "best 1"}]} | changes
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    return tmp_path


def test_every_path_becomes_absolute_and_what_is_no_path_stays(folder):
    (folder / "models/mine").mkdir(parents=True)
    there = with_absolute_paths(spec())
    assert there.output == f"{folder}/runs"
    assert there.profile == f"{folder}/runs/earlier"
    assert there.model.path == f"{folder}/models/mine"
    assert there.task.data.path == f"{folder}/data/train.jsonl"
    assert [suite.task and suite.task.data.path for suite in there.evaluation.suites] == [
        "s3://bucket/test.jsonl", "/home/someone/code.jsonl", None, None
    ]  # fmt: skip
    assert with_absolute_paths(there) == there
    assert with_absolute_paths(spec(output="s3://bucket/runs")).output == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("file:///data/x", "/data/x"),
        ("local:///data/x", "/data/x"),
        ("file://x", "{here}/x"),
        ("file://~/x", "/home/someone/x"),
        ("a::b", "{here}/a::b"),
    ],
)
def test_a_local_path_may_be_written_as_a_uri_and_hold_colons(folder, given, meant):
    data = {"type": "math", "data": {"path": given}}
    there = with_absolute_paths(spec(output=given, profile=given, task=data))
    meant = meant.format(here=folder)
    assert (there.output, there.profile, there.task.data.path) == (meant, meant, meant)
    assert there.folder == f"{meant}/paths"


def test_a_name_that_is_no_folder_here_is_a_hub_name(folder):
    assert with_absolute_paths(spec(model="models/mine")).model.path == "models/mine"


def test_what_travels_with_a_job_stays_relative(folder):
    """The job runs in that folder, wherever the cluster puts it; its output must outlive the job all the same."""
    (folder / "taken/data").mkdir(parents=True)
    (folder / "taken/data/train.jsonl").write_text("")
    there = with_absolute_paths(spec(), taken_along=f"{folder}/taken")
    assert there.task.data.path == "data/train.jsonl"
    assert there.profile == f"{folder}/runs/earlier"
    assert there.output == f"{folder}/runs"


def test_a_chat_templates_file_is_read_once(folder):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "mine.jinja").write_text(template)
    for given in ("mine.jinja", template):
        model = {"type": "pretrained", "path": "a/b", "chat_template": given}
        assert with_absolute_paths(spec(model=model)).model.chat_template == template
    with pytest.raises(SpecError, match="^model.chat_template: other.jinja: No such file"):
        with_absolute_paths(spec(model={"type": "pretrained", "path": "a/b", "chat_template": "other.jinja"}))
