"""The documentation of a spec: one section of it, and the JSON Schema that editors use."""

import json
from pathlib import Path

import jsonschema
import pytest

from layersweep.cli import DEMO, main
from layersweep.orchestrator.spec.load import read_spec
from layersweep.orchestrator.spec.schema_docs import json_schema
from layersweep.orchestrator.spec.sweep_spec import SweepSpec

FOLDER = Path(DEMO).parent
PRESETS = sorted(FOLDER.glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema(SweepSpec))
BASE = {"name": "a", "model": "smollm2", "task": {"type": "sort_digits"}}


def test_a_section_is_printed_alone(capsys):
    assert main(["schema", "training"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("training = ") and "    steps = 100" in lines
    assert "        Rollout batches of a run." in lines
    assert not any(line.strip().startswith("suites") for line in lines)
    assert main(["schema", "evaluation.suites.samples"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "samples = 4", "    Responses per prompt; a prompt's score is their mean (pass@1). Below 4 the interval widens."
    ]  # fmt: skip


def test_alternatives_that_share_a_field_print_it_once(capsys):
    assert main(["schema", "task.seconds"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "seconds = 10.0", "    Bound on one call, in CPU time and in wall time."
    ]  # fmt: skip
    assert main(["schema", "task.data.path"]) == 0
    assert capsys.readouterr().out.count("path = None") == 1


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("trainig", "trainig: no such field of a spec; did you mean training?"),
        ("training.step", "training.step: no such field of a spec; did you mean steps?"),
        ("name.x", "name.x: no such field of a spec; it has no fields"),
    ],
)
def test_a_section_that_is_not_there(capsys, section, says):
    assert main(["schema", section]) == 2
    assert capsys.readouterr().err == f"layersweep: {says}\n"


def test_the_file_beside_the_presets_is_the_commands_output(capsys):
    assert main(["schema", "--json"]) == 0
    printed = capsys.readouterr().out
    committed = (FOLDER / "sweep.schema.json").read_text()
    assert printed == committed, "write it anew: layersweep schema --json > deploy/sweeps/sweep.schema.json"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_name_the_schema_and_fulfil_it(path):
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=sweep.schema.json"
    VALIDATOR.validate(read_spec(str(path)))


def test_every_field_has_its_documentation():
    training = json_schema(SweepSpec)["$defs"]["TrainingConfig"]
    assert training["properties"]["steps"]["description"] == "Rollout batches of a run."
    assert training["description"] == "How every run trains." and "title" not in training["properties"]["steps"]


SHORT = [
    {"model": "org/name"}, {"model": {"type": "pretrained", "path": "a"}}, {"model": {"type": "tiny"}}, {"seeds": 3},
    {"seeds": [0, 1]}, {"layers": 7}, {"layers": [0, 7]}, {"layers": "0:28:2"}, {"layers": {"search": {"budget": 0.3}}},
    {"training": {"learning_rate": 5e-6}}, {"training": {"learning_rate": {"layer": 1e-5}}},
    {"training": {"learning_rate": {"tune": [1e-6, 5e-6], "steps": 20}}},
    {"task": {"type": "prompts", "data": {"path": "a"}, "reward": "a.py:f"}},
    {"task": {"type": "prompts", "data": {"path": "a"}, "reward": ["a.py:f", {"path": "a.g", "weight": 0.5}]}},
    {"task": {"type": "environment", "path": "a.py:World", "max_turns": 3}},
]  # fmt: skip
WRONG = [
    {"trainings": {}}, {"training": {"stepss": 1}}, {"training": {"steps": "many"}}, {"task": {"type": "nothing"}},
    {"model": 7}, {"seeds": "all"}, {"layers": {"serach": {}}}, {"task": {"type": "prompts", "data": {"path": "a"}}},
    {"algorithm": {"type": "grpo", "clip_high": "x"}}, {"training": {"learning_rate": {"rate": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("change", SHORT + WRONG, ids=json.dumps)
def test_the_schema_takes_what_the_spec_takes(change):
    """Short forms included; what the schema refuses, the spec refuses."""
    assert VALIDATOR.is_valid(BASE | change) == (change in SHORT)
    if change in WRONG:
        with pytest.raises(ValueError):
            SweepSpec.model_validate(BASE | change)
    else:
        SweepSpec.model_validate(BASE | change)
