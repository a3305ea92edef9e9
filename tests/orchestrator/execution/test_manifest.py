"""What resume compares, and a manifest that it cannot use: damaged, or out of reach for the moment."""

import pytest

from layersweep.orchestrator.execution import manifest
from layersweep.orchestrator.execution.factorial import resume
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from tests.helpers.model_folders import make


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder with its spec and a manifest of no content."""
    spec = load_spec("deploy/sweeps/demo.yaml", {"output": str(tmp_path)})
    (tmp_path / "demo" / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo" / "sweep.yaml").write_text(write_yaml(spec.model_dump(mode="json")))
    (tmp_path / "demo" / "checkpoints" / "experiment.json").write_text("{}")
    return str(tmp_path / "demo")


def test_a_store_that_does_not_answer_is_refused_with_the_advice_to_resume(folder, monkeypatch):
    def read(filesystem, path):
        raise OSError("503 Slow Down")

    monkeypatch.setattr(manifest, "read_json", read)
    with pytest.raises(SpecError, match="demo: cannot be read now: 503 Slow Down; nothing is lost, resume it"):
        resume(folder, None, None)


def test_a_damaged_manifest_is_refused_with_the_advice_to_start_again(folder):
    with pytest.raises(SpecError, match="is damaged: .*; the sweep cannot go on, start it again"):
        resume(folder, None, None)


def test_a_folder_of_another_name_than_the_spec_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(manifest.SweepManifest, "load", lambda folder: "a manifest")
    (tmp_path / "demo").rename(tmp_path / "copy")
    with pytest.raises(SpecError, match="copy holds the sweep 'copy', the spec is of 'demo'; name both alike"):
        resume(str(tmp_path / "copy"), None, None)


def test_a_finished_sweep_that_was_moved_has_nothing_left_to_do(tmp_path, capsys):
    """The same folder elsewhere is done; a seed more is not."""
    plan = make_plan(load_spec("deploy/sweeps/demo.yaml", {"output": str(tmp_path / "before")}))
    manifest.SweepManifest.begin(plan).finish()
    (tmp_path / "before" / "demo" / "sweep.yaml").write_text(write_yaml(plan.spec.model_dump(mode="json")))
    (tmp_path / "before").rename(tmp_path / "after")
    moved = str(tmp_path / "after" / "demo")
    same, more = (
        make_plan(load_spec("deploy/sweeps/demo.yaml", {"output": str(tmp_path / "after"), "seeds": seeds}))
        for seeds in ([0, 1, 2], [0, 1, 2, 3])
    )
    found = manifest.SweepManifest.load(moved)
    assert found.asks_no_more_than_done(same) and not found.asks_no_more_than_done(more)
    assert resume(moved, None, None) == 0
    assert f"nothing to do: all of {moved} is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file",
    ["chat_template.jinja", "special_tokens_map.json", "vocab.json", "merges.txt", "model.safetensors.index.json"],
)
def test_files_that_prompts_or_weights_depend_on_are_part_of_the_experiment(tmp_path, file):
    """vllm #15705."""
    folder = make(tmp_path / "model")
    (folder / file).write_text("one")
    (folder / "README.md").write_text("one")
    spec = parse_spec({"name": "files", "model": str(folder), "task": {"type": "sort_digits"}})
    before = manifest.model_files(spec)
    (folder / "README.md").write_text("two")
    assert manifest.model_files(spec) == before
    (folder / file).write_text("two")
    assert {name for name, digest in manifest.model_files(spec).items() if before[name] != digest} == {file}
