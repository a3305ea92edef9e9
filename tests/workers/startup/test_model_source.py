"""The base model as actors get it: the tiny model on another node, a hub model's revision."""

import json
import os
import pickle
import shutil
from pathlib import Path

import psutil
import pytest

from layersweep.orchestrator.execution.ray_session import start_ray
from layersweep.policies.config import PretrainedModel
from layersweep.workers.startup import model_source
from layersweep.workers.startup.model_source import (
    HubOutOfReach,
    ModelSource,
    read_folder,
    resolve_source,
    write_folder,
)


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    (folder / "not a file").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x00\x01")
    return folder


def test_a_folder_arrives_whole_and_once(tmp_path, made):
    other = tmp_path / "another node/models/key"
    write_folder(read_folder(made), other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {
        "config.json": b"{}", "model.safetensors": b"\x00\x01",
    }  # fmt: skip
    (other / "model.safetensors").write_bytes(b"its own")
    write_folder(read_folder(made), other)  # another process was faster
    assert (other / "model.safetensors").read_bytes() == b"its own"
    assert [path.name for path in other.parent.iterdir()] == ["key"]


def test_what_is_there_already_is_not_fetched(made):
    assert ModelSource(str(made), files=b"no reference").here() == str(made)


@pytest.mark.slow
def test_a_restarted_actor_gets_the_files_again(tmp_path, made, capfd):
    """Its arguments are repeated as they were; and Ray has nothing to warn of, which it does on the terminal."""
    import ray

    class Reader:
        def __init__(self, source: ModelSource):
            self.source = source

        def config(self) -> tuple[int, bytes]:
            return os.getpid(), (Path(self.source.here()) / "config.json").read_bytes()

    start_ray("local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        source = ModelSource.of_tiny(str(tmp_path / "elsewhere"), read_folder(made))
        reader = ray.remote(Reader).options(num_cpus=0.1, max_restarts=1, max_task_retries=-1).remote(source)
        del source
        before, content = ray.get(reader.config.remote())
        shutil.rmtree(tmp_path / "elsewhere")
        process = psutil.Process(before)
        ray.kill(reader, no_restart=False)
        process.wait(60)  # it returns before the process has ended
        after, again = ray.get(reader.config.remote())
    finally:
        ray.shutdown()
    assert content == again == b"{}" and before != after
    assert "constructor arguments in the object store" not in capfd.readouterr().err


COMMITS = {"main": "a" * 40, "older": "b" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache with two revisions of a model, and no hub. Their configurations differ in the number of layers."""
    repository = tmp_path / "models--someone--some-model"
    for layers, (name, commit) in enumerate(COMMITS.items(), start=3):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        (snapshot / "model.safetensors").write_bytes(b"")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(model_source, "hub_resolves", lambda: False)
    return repository


@pytest.mark.parametrize(("revision", "commit", "layers"), [(None, "a" * 40, 3), ("older", "b" * 40, 4)])
def test_every_actor_loads_the_commit_that_the_plan_resolved(hub, revision, commit, layers):
    """open-r1 #85, transformers #27923: a revision that reaches some readers and not others. The name of a revision is
    resolved once, to its commit; what it names later does not count."""
    source, folder = resolve_source(PretrainedModel(path="someone/some-model", revision=revision))
    assert (source.path, source.revision) == ("someone/some-model", commit)
    (hub / "refs" / (revision or "main")).write_text("c" * 40)  # somebody pushes
    there = Path(pickle.loads(pickle.dumps(source)).here())
    assert there == folder == hub / "snapshots" / commit
    assert json.loads((there / "config.json").read_text())["num_hidden_layers"] == layers


def test_a_revision_without_weights_in_the_cache_is_refused(hub):
    """A plan fetches config.json alone: a folder of the snapshot is there, and no weights."""
    source, folder = resolve_source(PretrainedModel(path="someone/some-model"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubOutOfReach, match="no \\*.safetensors"):
        source.here()


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    source, folder = resolve_source(PretrainedModel(path="~/model", trust_remote_code=True))
    assert source.here() == str(folder) == str(tmp_path / "model")
    assert (source.revision, source.trust_remote_code) == (None, True)
