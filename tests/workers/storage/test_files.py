"""Folders whose names a pattern would read otherwise: nothing is lost in them, on disk and elsewhere."""

import uuid

import pytest

from layersweep.policies.selection import parse_run_name, run_name
from layersweep.workers.storage.files import find_files, read_bytes, remove_folder, resolve_uri, write_atomically
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore, remove_partial_files, runs_of
from layersweep.workers.storage.tables import SCORES

NAMES = ("lr[2e-3]", "a*b", "what?", "[!x]{1,2}")


@pytest.fixture(params=[f"{kind}/{name}" for kind in ("disk", "memory") for name in NAMES])
def root(request, tmp_path):
    kind, _, name = request.param.partition("/")
    return f"{tmp_path}/{name}" if kind == "disk" else f"memory://{uuid.uuid4().hex}/{name}"


def put(target, content=b"1"):
    write_atomically(target, lambda file: file.write(content))


def test_files_are_written_found_and_removed(root):
    put(f"{root}/a/b/c.txt")
    put(f"{root}/a/d.txt", b"old")
    put(f"{root}/a/d.txt", b"new")
    filesystem, folder = resolve_uri(root)
    assert find_files(filesystem, folder) == ["a/b/c.txt", "a/d.txt"]
    assert find_files(filesystem, folder, depth=2) == ["a/d.txt"] and find_files(filesystem, folder, depth=1) == []
    assert read_bytes(f"{root}/a/d.txt") == b"new"
    assert find_files(filesystem, f"{folder}/nowhere") == []
    remove_folder(filesystem, f"{folder}/a/b")
    assert find_files(filesystem, folder) == ["a/d.txt"] and not filesystem.exists(f"{folder}/a/b")


def test_a_run_store_keeps_finds_and_drops_its_checkpoints(root):
    """Three checkpoints of which two are kept; weights given back; scores; what a killed process left."""
    store = RunStore(root, "layer-01-seed0")
    store.write_metadata({"selection": "layer-01"})
    records = []
    for step in (10, 20, 30):
        sums = {
            "rank-0.safetensors": store.write_file(
                step, "rank-0.safetensors", lambda file, step=step: file.write(b"w" * step)
            )
        }
        records.insert(0, CheckpointRecord(step, sums, [{"step": 0}], 1.0))
        store.commit(records[0], keep=2)
    assert store.steps() == [30, 20] and store.records() == (records[:2], [])
    assert store.read_file(records[0], "rank-0.safetensors") == b"w" * 30
    row = dict.fromkeys(("selection", "suite", "split", "prompt"), "a") | dict.fromkeys(("seed", "step", "sample"), 0)
    store.write_scores(30, "final", "math", SCORES.frame([row | {"score": 1.0}]))
    assert store.scored() == {(30, "final", "math")}
    assert runs_of(root) == ["layer-01-seed0"]
    put(f"{root}/checkpoints/layer-01-seed0/step-000040/rank-0.safetensors.7.part")
    remove_partial_files(root, runs_of(root))
    store.delete_weights()
    filesystem, folder = resolve_uri(root)
    left = {path.rsplit("/", 1)[1] for path in find_files(filesystem, folder)}
    assert left == {"run.json", "record.json", "000030.final.math.parquet"}


def test_a_runs_name_has_one_maker_and_one_reader():
    assert run_name("layers-best-5", 3) == "layers-best-5-seed3"
    assert parse_run_name("layer-07@lr-1e-06-seed12") == ("layer-07@lr-1e-06", 12)
    assert parse_run_name("a-seed1-seed2") == ("a-seed1", 2)
    assert parse_run_name("Engine-0") is None
