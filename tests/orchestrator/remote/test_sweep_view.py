"""A sweep seen from elsewhere, as far as no cluster is needed."""

import os
from io import BytesIO

import fsspec
import numpy as np
import pandas as pd
import pytest
import yaml

from layersweep.cli import main
from layersweep.orchestrator.commands.status import overview, pull
from layersweep.orchestrator.execution.sweep_lock import hold_lock
from layersweep.orchestrator.remote import ray_jobs
from layersweep.orchestrator.remote.ray_jobs import Cluster
from layersweep.orchestrator.remote.ray_token import show_token
from layersweep.orchestrator.remote.sweep_view import SweepView
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.tables import CONTRIBUTION


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    """A home folder without a token, and none in the environment."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def shown(address) -> bool:
    show_token(address)
    return os.environ.get("RAY_AUTH_MODE") == "token"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "localhost:6379", "https://192.0.2.77:8265"])
def test_no_token_is_shown_where_there_is_none(no_token, address):
    assert not shown(address)


@pytest.mark.parametrize(
    "address, here",
    [("http://127.0.0.1:8265", True), ("localhost:6379", True), ("https://198.51.100.7:8265", False), ("auto", False)],
)
def test_this_machines_own_token_is_shown_to_this_machine_alone(no_token, address, here):
    """198.51.100.0/24 is reserved for documentation: never this machine. `auto` is left to Ray itself."""
    (no_token / ".ray").mkdir()
    (no_token / ".ray" / "auth_token").write_text("secret")
    assert shown(address) is here


def test_a_token_set_for_this_command_is_shown_anywhere(no_token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert shown("https://198.51.100.7:8265")


def test_rays_own_switch_wins(no_token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not shown("http://127.0.0.1:8265")


def test_a_job_agent_that_is_starting_is_waited_for(monkeypatch, capsys):
    """As Ray says it: three calls fail, the fourth does not; and with no patience the first failure is told."""
    answers = iter([RuntimeError("status code 500: No available agent to submit job, please try again later.")] * 3)

    def call():
        if (error := next(answers, None)) is not None:
            raise error
        return "answer"

    cluster = Cluster.__new__(Cluster)
    cluster.address = "http://head:8265"
    monkeypatch.setattr(ray_jobs.time, "sleep", lambda seconds: None)
    assert cluster._ask(call) == "answer"
    assert capsys.readouterr().err == "http://head:8265: waiting for the head node's job agent, which is starting\n"
    monkeypatch.setattr(ray_jobs, "AGENT_SECONDS", -1)
    answers = iter([RuntimeError("No available agent to submit job")])
    with pytest.raises(SpecError, match="no job agent after .* --dashboard-agent-listen-port"):
        cluster._ask(call)


TABLE = CONTRIBUTION.frame(pd.DataFrame(
    {
        "selection": ["base", "full", "layer-03"], "kind": ["base", "full", "layer"], "score": [0.25, 0.5, np.nan],
        "contribution": [0.0, 1.0, np.nan], "contribution_low": np.nan, "contribution_high": np.nan,
        "status": ["completed", "running", "failed"], "reason": [None, None, "NonFinite: loss"],
    }
))  # fmt: skip
PHASES = {f"{phase}_seconds": 0.5 for phase in ("rollout", "reward", "update", "sync", "wait")}
STEPS = pd.DataFrame(
    [
        {"selection": "full", "seed": seed, "step": step, "reward_mean": reward, "tokens": 500, **PHASES}
        for seed, step, reward in [(0, 0, 0.1), (0, 1, 0.25), (1, 0, 0.75)]
    ]
)


@pytest.fixture
def bucket(tmp_path):
    """A sweep's folder in fsspec's memory, half-way."""
    folder = f"memory://{tmp_path.name}/demo"
    filesystem, path = fsspec.core.url_to_fs(folder)
    for name, frame in (("contribution", TABLE), ("steps", STEPS)):
        filesystem.pipe_file(f"{path}/{name}.parquet", frame.to_parquet(index=False))
    filesystem.pipe_file(f"{path}/sweep.yaml", yaml.safe_dump({"name": "demo", "training": {"steps": 4}}).encode())
    return folder


def test_overview_takes_the_slowest_seed_and_the_mean_of_rewards():
    """Seed 0 is at its second step, seed 1 at its first: 1/4, mean of .25 and .75; 500 tokens in 2.5 s each."""
    columns = {column.header: list(column.cells) for column in overview(TABLE, STEPS, 4, {}).columns}
    assert columns["step"] == ["", "1/4", ""]
    assert columns["reward"] == ["", "0.500", ""]
    assert columns["tokens/s"] == ["", "400", ""]
    assert columns["status"] == ["completed", "running", "failed: NonFinite: loss"]


def test_overview_tells_where_runs_train_as_long_as_they_do():
    locations = {
        "Engine-0": "a GPU 0",
        "full-seed0": "a GPU 1",
        "full-seed1": "b",
        "layer-03-seed0": "b",
        "fuller-seed0": "c",
    }
    columns = {column.header: list(column.cells) for column in overview(TABLE, STEPS, 4, locations).columns}
    assert columns["on"] == ["", "a GPU 1; b", "b"]
    assert "on" not in [column.header for column in overview(TABLE, STEPS, 4, {"Engine-0": "a GPU 0"}).columns]


def test_status_tells_where_engines_and_runs_are(bucket, capsys):
    filesystem, path = fsspec.core.url_to_fs(f"{bucket}/checkpoints/places.json")
    filesystem.pipe_file(path, b'{"Engine-0": "host-a GPU 0", "full-seed0": "host-b GPU 3"}')
    with hold_lock(bucket):
        assert main(["status", bucket]) == 1
    printed = capsys.readouterr().out
    assert "engines Engine-0 on host-a GPU 0" in printed and "host-b GPU 3" in printed


def test_pull_copies_a_partial_table_from_a_uri(bucket, tmp_path):
    line = pull(SweepView(bucket, None), str(tmp_path / "new" / "table.parquet"))
    assert line.endswith("table.parquet: 3 selections, 1 completed, 1 running, 1 failed")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "table.parquet"), roundtrip(TABLE))


def roundtrip(frame):
    return pd.read_parquet(BytesIO(frame.to_parquet(index=False)))


def test_status_from_a_uri(bucket, capsys):
    assert main(["status", bucket]) == 1  # some run failed
    printed = capsys.readouterr().out
    assert f"sweep   demo -> {bucket}" in printed
    assert "failed: NonFinite: loss" in printed


def test_no_sweep_there_is_bad_input(tmp_path, capsys, no_token, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert main(["pull", str(tmp_path)]) == 2
    assert "no sweep here (there is no sweep.yaml)" in capsys.readouterr().err
    assert main(["status", "nosuch://bucket/demo"]) == 2
    assert main(["status", "demo", "--address", "http://127.0.0.1:9"]) == 2  # the discard port
    assert "no Ray dashboard answers there" in capsys.readouterr().err
