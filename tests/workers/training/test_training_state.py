"""A run that was stopped and restored goes on bit for bit as one that was not; a damaged file is noticed."""

import io

import numpy as np
import pytest
import torch

from layersweep.policies.selection import LowRank, Selection
from layersweep.workers.config import DeepSpeedConfig
from layersweep.workers.storage.run_store import CheckpointRecord, CorruptFile, RunStore, checksum, rank_file
from tests.helpers.updates import experience, leave_group, settings, update_loop


def _loop(folder: str, selection: Selection, stage: int, dtype: str, rank: int, ranks: int):
    from layersweep.policies.model.trunk import Trunk

    algorithm, training = settings(0.1, 1e-3, 0.5, 40)
    training = training.model_copy(update={"dtype": dtype})
    section = DeepSpeedConfig(layer_zero_stage=min(stage, 1), full_zero_stage=stage)
    return update_loop(Trunk.load(folder, dtype), selection, algorithm, training, section, rank, ranks)


def _rank(rank: int, ranks: int, port: int, folder: str, selection: Selection, stage: int, dtype: str, out) -> None:
    """Four steps without a pause, and two, a dump, a new loop and the other two."""
    from layersweep.workers.storage.tensor_file import write_tensors
    from layersweep.workers.training.distributed import prepare
    from layersweep.workers.training.training_state import dump, restore

    prepare(rank, ranks, "127.0.0.1", port, gpu=False)
    straight = _loop(folder, selection, stage, dtype, rank, ranks)
    for step in range(2):
        straight.update(experience(step), step)
    file = io.BytesIO()
    write_tensors(file, dump(straight.backend, rank, straight.device))
    content = file.getvalue()
    rng = torch.get_rng_state()
    for step in (2, 3):
        straight.update(experience(step), step)
    paused = _loop(folder, selection, stage, dtype, rank, ranks)
    before = {name: weight.clone() for name, weight in paused.backend.weights().items()}
    torch.rand(7)
    restore(paused.backend, rank, paused.device, content)
    assert torch.equal(torch.get_rng_state(), rng)
    for step in (2, 3):
        paused.update(experience(step), step)
    ours, theirs = paused.backend.weights(), straight.backend.weights()
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    moved = all(not torch.equal(ours[name], before[name]) for name in before)
    out.put((same, moved, len(content)))
    leave_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selection", "ranks", "stage", "dtype"),
    [
        (Selection.layer(2), 1, 0, "float32"),
        (Selection.layer(2), 1, 1, "bfloat16"),
        (Selection.part((1, 3), "attention"), 1, 0, "float32"),
        (Selection.part((), "embed_tokens"), 1, 1, "bfloat16"),
        (Selection.part((1,), "mlp", LowRank(4, 8.0)), 1, 0, "float32"),
        (Selection.part((1, 2), None, LowRank(4, 4.0)), 2, 1, "bfloat16"),
        (Selection.full(), 2, 2, "float32"),
        (Selection.full(), 2, 3, "bfloat16"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_a_restored_run_goes_on_bit_for_bit(model_folder, selection, ranks, stage, dtype):
    from layersweep.workers.training.distributed import serve_store

    context = torch.multiprocessing.get_context("spawn")
    out, store = context.SimpleQueue(), serve_store()
    arguments = (store.port, model_folder, selection, stage, dtype, out)
    processes = [context.Process(target=_rank, args=(rank, ranks, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    results = [out.get() for _ in processes]
    assert [result[:2] for result in results] == [(True, True)] * ranks


def committed(folder, *steps: int) -> RunStore:
    store = RunStore(str(folder), "layer-01-seed0")
    for step in steps:
        files = {
            rank_file(0): store.write_file(step, rank_file(0), lambda file, step=step: file.write(bytes([step]) * 100))
        }
        rows = [{"step": s, "loss": np.float32(0.5), "kl": float("nan")} for s in range(step)]
        store.commit(CheckpointRecord(step, files, rows, 1.5), keep=2)
    return store


def test_records_come_back_newest_first_and_old_ones_go(tmp_path):
    store = committed(tmp_path, 5, 10, 15)
    records, problems = store.records()
    assert [record.step for record in records] == [15, 10] and problems == []
    assert [row["step"] for row in records[0].rows] == list(range(15))
    assert records[0].rows[0]["loss"] == 0.5 and np.isnan(records[0].rows[0]["kl"])
    assert store.read_file(records[0], rank_file(0)) == bytes([15]) * 100
    assert not (tmp_path / "checkpoints/layer-01-seed0/step-000005").exists()


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_tensor_file_is_noticed(tmp_path, harm):
    store = committed(tmp_path, 5, 10)
    path = tmp_path / "checkpoints/layer-01-seed0/step-000010/rank-0.safetensors"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    {"truncate": lambda: path.write_bytes(content[:40]), "flip": lambda: path.write_bytes(content),
     "remove": path.unlink}[harm]()  # fmt: skip
    newest, previous = store.records()[0]
    with pytest.raises(CorruptFile, match="step-000010"):
        store.read_file(newest, rank_file(0))
    assert store.read_file(previous, rank_file(0)) == bytes([5]) * 100


def test_a_damaged_record_is_said_and_the_one_before_used(tmp_path):
    store = committed(tmp_path, 5, 10)
    path = tmp_path / "checkpoints/layer-01-seed0/step-000010/record.json"
    path.write_text(path.read_text().replace('"seconds": 1.5', '"seconds": 2.5'))
    records, problems = store.records()
    assert [record.step for record in records] == [5]
    assert len(problems) == 1 and "step-000010/record.json is damaged" in problems[0]


def test_damaged_facts_count_as_none(tmp_path):
    store = committed(tmp_path, 5)
    store.write_metadata({"status": "completed", "layers": [1]})
    assert store.metadata() == {"status": "completed", "layers": [1]}
    path = tmp_path / "checkpoints/layer-01-seed0/run.json"
    path.write_text(path.read_text().replace("completed", "pruned"))
    assert store.metadata() == {}


def test_checksums_are_xxh3():
    """The published XXH3-128 of no bytes with seed 0."""
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    from layersweep.workers.storage.files import write_atomically

    target = tmp_path / "table"
    write_atomically(str(target), lambda file: file.write(b"old"))

    def full(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(str(target), full)
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["table"]
