"""Trackers, read back with the formats' own readers."""

import json
import math

import fsspec
import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layersweep.workers.trackers import FailSafeTracker
from layersweep.workers.trackers.tensorboard import TensorBoard


def row(step, selection="layer-03", seed=0, **metrics):
    """What a tracker gets: the run, and one row of its steps."""
    run = {"selection": selection, "seed": seed, "kind": "layer", "layer": 3}
    return run, {"selection": selection, "seed": seed, "step": step, **metrics}


def read_back(folder, run) -> pd.DataFrame:
    """Scalars by step, as TensorBoard itself reads a run's folder."""
    events = EventAccumulator(str(folder / run), size_guidance={"scalars": 0})
    events.Reload()
    columns = {}
    for tag in events.Tags()["scalars"]:
        values = events.Scalars(tag)
        assert len({event.step for event in values}) == len(values), f"{tag}: several values at a step"
        columns[tag] = pd.Series({event.step: event.value for event in values})
    return pd.DataFrame(columns)


def test_scalars_read_back_and_what_is_missing_is_left_out(tmp_path):
    board = TensorBoard(str(tmp_path))
    board.step(*row(0, reward_mean=0.25, kl=None, tokens=448))
    board.step(*row(1, reward_mean=0.5, kl=math.nan, tokens=450))
    board.step(*row(0, seed=1, reward_mean=0.125, kl=0.75, tokens=449))
    board.close()
    frame = read_back(tmp_path, "layer-03-seed0")
    assert frame.to_dict("index") == {0: {"reward_mean": 0.25, "tokens": 448}, 1: {"reward_mean": 0.5, "tokens": 450}}
    assert read_back(tmp_path, "layer-03-seed1").loc[0, "kl"] == 0.75


def test_a_float64_reads_back_as_the_nearest_float32(tmp_path):
    board = TensorBoard(str(tmp_path))
    board.step(*row(0, loss=1 / 3))
    assert read_back(tmp_path, "layer-03-seed0").loc[0, "loss"] == float(np.float32(1 / 3)) != 1 / 3


def test_steps_after_a_checkpoint_are_replaced(tmp_path):
    """A run at step 3 goes on from step 1, in the same process and then in another one: the newer values count, and
    what lies above them is gone."""
    board = TensorBoard(str(tmp_path))
    for step, reward in [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (1, 10.0), (2, 20.0)]:
        board.step(*row(step, reward_mean=reward))
    assert read_back(tmp_path, "layer-03-seed0")["reward_mean"].to_dict() == {0: 0, 1: 10, 2: 20}
    again = TensorBoard(str(tmp_path))
    again.step(*row(2, reward_mean=200.0))
    assert read_back(tmp_path, "layer-03-seed0")["reward_mean"].to_dict() == {0: 0, 1: 10, 2: 200}
    replayed = TensorBoard(str(tmp_path))
    for step in range(2):
        replayed.step(*row(step, reward_mean=-step))
    assert read_back(tmp_path, "layer-03-seed0")["reward_mean"].to_dict() == {0: 0, 1: -1}


def test_a_remote_folder_is_brought_up_to_date_with_each_table(tmp_path):
    board = TensorBoard("memory://bucket/demo/tensorboard")
    remote = fsspec.filesystem("memory")
    board.step(*row(0, reward_mean=0.5))
    assert not remote.exists("/bucket/demo/tensorboard")
    board.table(pd.DataFrame())
    board.step(*row(1, reward_mean=0.75))
    board.close()
    remote.get("/bucket/demo/tensorboard", str(tmp_path / "copy"), recursive=True)
    assert read_back(tmp_path / "copy", "layer-03-seed0")["reward_mean"].to_dict() == {0: 0.5, 1: 0.75}


def test_a_tracker_that_fails_ends_and_says_so_once(caplog):
    class Unreachable:
        def __init__(self):
            self.calls = 0

        def step(self, run, row):
            self.calls += 1
            raise ConnectionError("no route to host")

    broken = Unreachable()
    tracker = FailSafeTracker(broken)
    tracker.step(*row(0))
    tracker.step(*row(1))
    tracker.close()
    assert broken.calls == 1
    assert caplog.text.count("Unreachable failed") == 1
    assert "no route to host" in caplog.text


def table():
    return pd.DataFrame(
        {"selection": ["base", "layer-03"], "score": [0.25, 0.5], "contribution": [0.0, np.nan], "layers": [[], [3]]}
    )


def test_wandb_offline_keeps_every_step(tmp_path):
    """Read back from W&B's own transaction log; a step that comes again is dropped by W&B."""
    pytest.importorskip("wandb")
    from layersweep.workers.trackers.config import WandbConfig
    from layersweep.workers.trackers.wandb import WeightsAndBiases

    tracker = WeightsAndBiases(WandbConfig(mode="offline"), "demo", str(tmp_path))
    for step, reward in [(0, 0.25), (1, 0.5), (1, 0.5), (2, 0.75)]:
        tracker.step(*row(step, reward_mean=reward))
    tracker.step(*row(0, selection="full", reward_mean=0.125))
    tracker.table(table())
    tracker.close()
    logs = {file.stem.removeprefix("run-demo-"): file for file in tmp_path.glob("wandb/*/run-*.wandb")}
    assert set(logs) == {"layer-03-seed0", "full-seed0", "demo"}
    assert wandb_history(logs["layer-03-seed0"]) == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert wandb_history(logs["full-seed0"]) == [(0, 0.125)]
    (file,) = tmp_path.glob("wandb/*-demo-demo/files/media/table/contribution_*.json")
    assert json.loads(file.read_text())["data"] == [["base", 0.25, 0.0], ["layer-03", 0.5, None]]


def wandb_history(file) -> list[tuple[int, float]]:
    """Steps and rewards of W&B's file: a header of 7 bytes, then blocks of 32 KiB in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import CheckpointRecord

    data, at, part, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            history, part = CheckpointRecord.FromString(part).history, b""
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
            rows += [(values["_step"], values["reward_mean"])] if values else []
    return rows


def test_mlflow_finds_its_runs_again(tmp_path):
    """A second process goes on in the first one's runs, and repeats nothing."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    from layersweep.workers.trackers.config import MLflowConfig
    from layersweep.workers.trackers.mlflow import MLflow

    config = MLflowConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    for steps in (range(2), range(3)):
        tracker = MLflow(config, "demo")
        for step in steps:
            tracker.step(*row(step, reward_mean=step / 4))
        tracker.table(table())
        tracker.table(table())
        tracker.close()
    client = MlflowClient(config.uri)
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id])}
    assert set(runs) == {"demo/demo", "demo/layer-03-seed0"}
    history = client.get_metric_history(runs["demo/layer-03-seed0"].info.run_id, "reward_mean")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert runs["demo/demo"].data.metrics == {"score/base": 0.25, "score/layer-03": 0.5, "contribution/base": 0.0}
