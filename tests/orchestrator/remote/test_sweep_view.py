"""A sweep seen from elsewhere, as far as no cluster is needed."""

import os
from dataclasses import replace
from io import BytesIO, StringIO

import fsspec
import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from layersweep.cli import main
from layersweep.orchestrator.commands.status import look, overview, pull
from layersweep.orchestrator.execution.sweep_lock import hold_lock
from layersweep.orchestrator.remote import ray_jobs
from layersweep.orchestrator.remote.ray_jobs import Cluster, Job
from layersweep.orchestrator.remote.ray_token import show_token
from layersweep.orchestrator.remote.sweep_view import SweepView
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.tables import CONTRIBUTION
from tests.helpers.specs import demo


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
    (line,) = pull(SweepView(bucket, None), str(tmp_path / "new" / "table.parquet"))
    assert line.endswith("table.parquet: 3 selections, 1 completed, 1 running, 1 failed")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "table.parquet"), roundtrip(TABLE))


def roundtrip(frame):
    return pd.read_parquet(BytesIO(frame.to_parquet(index=False)))


def test_status_from_a_uri(bucket, capsys):
    assert main(["status", bucket]) == 1  # some run failed
    printed = capsys.readouterr().out
    assert f"sweep   demo -> {bucket}" in printed
    assert "failed: NonFinite: loss" in printed


@pytest.fixture
def factorial_bucket(bucket):
    """The folder of a spec with three sweeps, of which one is half-way, one begun without a table."""
    folder = f"{bucket}-of-factors"
    filesystem, path = fsspec.core.url_to_fs(folder)
    spec = demo(name="demo-of-factors", factors={"algorithm": ["grpo", "gspo", "rloo"]})
    filesystem.pipe_file(f"{path}/sweep.yaml", yaml.safe_dump(spec).encode())
    filesystem.copy(bucket.removeprefix("memory:/"), f"{path}/demo-of-factors-grpo", recursive=True)
    filesystem.pipe_file(f"{path}/demo-of-factors-gspo/sweep.yaml", yaml.safe_dump(spec | {"factors": {}}).encode())
    return folder


def test_status_of_several_sweeps(factorial_bucket, capsys):
    """A table each; the exit code tells that a run of one failed."""
    assert main(["status", factorial_bucket]) == 1
    printed = capsys.readouterr().out
    assert f"sweep   demo-of-factors -> {factorial_bucket}" in printed
    first, second, third = (printed.index(f"sweep   demo-of-factors-{name}") for name in ("grpo", "gspo", "rloo"))
    assert "failed: NonFinite: loss" in printed[first:second]
    assert "not begun" not in printed[:third] and "not begun" in printed[third:]
    again = f"driver  none now; it ended before the sweep did, layersweep resume {factorial_bucket} goes on"
    assert printed.replace("\n", " ").count(again) == 2
    view = SweepView(factorial_bucket, None)
    assert look(view)[1:] == (True, True)  # nothing runs, the third will not begin
    with hold_lock(f"{factorial_bucket}/demo-of-factors-gspo"):
        assert look(view)[1:] == (False, True)


def test_sweeps_of_which_none_runs_now(factorial_bucket, capsys):
    """The first is done, no other begun: `--watch` goes on while the driver of all is there, and ends where it is not;
    of the sweeps that have not begun, status says how to begin them."""
    filesystem, path = fsspec.core.url_to_fs(factorial_bucket)
    filesystem.rm(f"{path}/demo-of-factors-gspo", recursive=True)
    done = CONTRIBUTION.frame(TABLE.assign(status="completed", reason=None)).to_parquet(index=False)
    filesystem.pipe_file(f"{path}/demo-of-factors-grpo/contribution.parquet", done)
    with hold_lock(factorial_bucket):
        assert look(SweepView(factorial_bucket, None))[1:] == (False, False)
    assert main(["status", "--watch", factorial_bucket]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"driver  none now; not all sweeps are done, layersweep resume {factorial_bucket} goes on" in said
    filesystem.rm(f"{path}/demo-of-factors-grpo", recursive=True)
    assert main(["status", "--watch", factorial_bucket]) == 0
    assert "not all sweeps are done, layersweep run begins with the first" in capsys.readouterr().out


def test_pull_of_several_sweeps_is_a_file_each(factorial_bucket, tmp_path):
    (line,) = pull(SweepView(factorial_bucket, None), str(tmp_path / "table.parquet"))
    target = tmp_path / "table-demo-of-factors-grpo.parquet"
    assert line == f"{target}: 3 selections, 1 completed, 1 running, 1 failed"
    pd.testing.assert_frame_equal(pd.read_parquet(target), roundtrip(TABLE))
    filesystem, path = fsspec.core.url_to_fs(factorial_bucket)
    filesystem.rm(f"{path}/demo-of-factors-grpo/contribution.parquet")
    with pytest.raises(SpecError, match="demo-of-factors: no contribution.parquet yet"):
        pull(SweepView(factorial_bucket, None), str(tmp_path / "none.parquet"))


class ClusterWith:
    """A cluster whose nodes see other files than this machine: by path, in a dict."""

    def __init__(self, files):
        self.files, self.asked = files, []

    def read(self, paths):
        self.asked.append(len(paths))
        return [self.files.get(path) for path in paths]

    def logs(self, job):
        return "layersweep: sweep 2 of 2, demo-gspo"


def test_status_of_several_sweeps_through_their_job():
    """Two reads, whatever the number of sweeps; it is over when the job is, though the first sweep's runs all are."""
    spec = yaml.safe_dump(demo(factors={"algorithm": ["grpo", "gspo"]})).encode()
    done = CONTRIBUTION.frame(TABLE.assign(status="completed", reason=None)).to_parquet(index=False)
    one = yaml.safe_dump(demo(name="demo-grpo")).encode()
    sweep = SweepView.__new__(SweepView)
    sweep.folder, sweep.cluster = "/out/demo", ClusterWith(
        {"/out/demo/sweep.yaml": spec, "/out/demo/demo-grpo/sweep.yaml": one,
         "/out/demo/demo-grpo/contribution.parquet": done}
    )  # fmt: skip
    sweep.job = Job("layersweep-demo-1", "demo", "/out/demo", "RUNNING", "", 1.0, None, None)
    shown, over, failed = look(sweep)
    assert (over, failed) == (False, False) and sweep.cluster.asked == [4, 8]
    console = Console(width=150, record=True, file=StringIO())
    console.print(shown)
    said = console.export_text()
    assert "driver  layersweep: sweep 2 of 2, demo-gspo" in said and "not begun" in said
    sweep.job = replace(sweep.job, status="FAILED", ended=2.0)
    assert look(sweep)[1:] == (True, True)


def test_no_sweep_there_is_bad_input(tmp_path, capsys, no_token, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert main(["pull", str(tmp_path)]) == 2
    assert "no sweep here (there is no sweep.yaml)" in capsys.readouterr().err
    assert main(["status", "nosuch://bucket/demo"]) == 2
    assert main(["status", "demo", "--address", "http://127.0.0.1:9"]) == 2  # the discard port
    assert "no Ray dashboard answers there" in capsys.readouterr().err
