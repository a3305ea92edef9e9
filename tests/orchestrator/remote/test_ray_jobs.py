"""A sweep on a cluster that is started here with `ray start`, seen over nothing but its dashboard's address."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layersweep.cli import DEMO

pytestmark = [pytest.mark.slow, pytest.mark.long]

TOKEN = "0f" * 32


class Head:
    """A head node with token authentication, and the command line as its user has it.

    The node is started by its full path, with an environment that is not activated: `python` on its PATH is a trap.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.dashboard, self.metrics, gcs, agent, client = free_ports(5)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        trap = folder / "bin" / "python"
        trap.parent.mkdir()
        trap.write_text("#!/bin/sh\necho not this python\nexit 7\n")
        trap.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{trap.parent}:/usr/local/bin:/usr/bin:/bin",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }
        command = (
            f"{Path(sys.executable).parent}/ray start --head --block --port {gcs} --dashboard-port {self.dashboard} "
            f"--dashboard-agent-listen-port {agent} --metrics-export-port {self.metrics} --num-cpus 2 "
            f"--ray-client-server-port {client} --object-store-memory 200000000 --disable-usage-stats "
            f"--temp-dir {folder}/ray"
        )
        log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(command.split(), env=self.environment, stdout=log, stderr=log)

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """A command's output, with the dashboard's address."""
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == expect, said
        return said

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """A command that goes on; what it prints is piped."""
        command = [sys.executable, "-m", "layersweep", *arguments, "--address", self.address]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=self.environment | environment)  # fmt: skip

    def scrape(self) -> dict[tuple[str, str], float]:
        """Our metrics by name and run, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://{node_address()}:{self.metrics}/metrics") as page:
            text = page.read().decode()
        found = re.findall(r'^(ray_layersweep_\w+){.*\brun="([^"]+)".*} (\S+)$', text, re.MULTILINE)
        return {(name, run): float(value) for name, run, value in found}


def free_ports(count: int) -> list[int]:
    """Above the range that Ray gives to its workers."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in range(24_000 + os.getpid() % 5_000, 32_000):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports")


def node_address() -> str:
    import ray

    return ray.util.get_node_ip_address()


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    head = Head(tmp_path_factory.mktemp("h"))
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", head.dashboard), 1):
                break
            time.sleep(0.5)
        yield head
    finally:
        head.process.terminate()  # it ends the node's other processes itself
        head.process.wait(60)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Layers 1 and 4 for two steps."""
    folder = tmp_path_factory.mktemp("sweep")
    data = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    data["training"] |= {"steps": 2, "warmup_steps": 0}
    suite = {"name": "sort", "prompts": 16, "samples": 2}
    data |= {"name": "small", "layers": [1, 4], "include_full": False, "evaluation": {"suites": [suite]}}
    for name in ("cluster", "local"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | {"output": str(folder / name)}))
    return folder


@pytest.fixture(scope="module")
def submitted(head, spec):
    """The sweep's folder once it has ended, and the table that was pulled while it ran."""
    said = head.run("submit", str(spec / "cluster.yaml"))
    assert "submitted as layersweep-small-1" in said and "layersweep status --watch small" in said
    assert "the sweep has begun in" in head.run("logs", "small")  # so it returned no sooner
    patience = time.monotonic() + 240
    while not (spec / "live.parquet").exists() and time.monotonic() < patience:
        time.sleep(3)
        with contextlib.suppress(AssertionError):  # no table yet
            head.run("pull", "small", "-o", str(spec / "live.parquet"))
    live = pd.read_parquet(spec / "live.parquet")
    assert f"engines Engine-0 on {socket.gethostname()}" in head.run("status", "small")
    refused = head.run("submit", str(spec / "cluster.yaml"), expect=2)
    assert "name: small is running there already, as layersweep-small-1" in refused
    followed = head.run("logs", "small", "--follow")
    assert "report.html" in followed
    return spec / "cluster" / "small", live


def test_a_driver_that_refuses_is_told_by_submit(head, submitted, spec):
    """The folder holds the sweep already, which the driver finds; submit ends with its words and its exit code."""
    said = head.run("submit", str(spec / "cluster.yaml"), expect=2)
    assert "submitted as layersweep-small-2" in said
    assert f"layersweep: name: {submitted[0]} holds a sweep already" in said
    assert "layersweep-small-1, succeeded" in head.run("status", "small")  # still the sweep's latest job


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"RAY_AUTH_TOKEN": "f0" * 32}, "Authentication failed: Forbidden: Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Authentication required: Unauthorized: Missing authentication token"),
    ],
)
def test_a_wrong_or_missing_token_is_refused_in_one_line(head, environment, said):
    message = head.run("status", "small", expect=2, **environment)
    assert len(message.strip().splitlines()) == 1
    assert message.startswith(f"layersweep: --address {head.address}: {said}; give the cluster's token as RAY_AUTH_")
    assert environment.get("RAY_AUTH_TOKEN", TOKEN) not in message


def test_what_is_pulled_is_what_the_cluster_wrote(head, submitted, tmp_path):
    folder, live = submitted
    assert live["selection"].tolist() == ["base", "layer-01", "layer-04"]
    assert (live["status"] == "running").any()
    assert "3 selections, 3 completed" in head.run("pull", "small", "-o", str(tmp_path / "table.parquet"))
    assert (tmp_path / "table.parquet").read_bytes() == (folder / "contribution.parquet").read_bytes()
    status = head.run("status", "small")
    assert "layersweep-small-1, succeeded" in status
    assert status.count("2/2") == 2


def test_a_cluster_gives_the_numbers_of_a_local_run(submitted, spec):
    command = [sys.executable, "-m", "layersweep", "run", str(spec / "local.yaml")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert_same_scores(submitted[0], spec / "local" / "small")


def assert_same_scores(*folders):
    keys = ["selection", "prompt", "sample"]
    there, here = (pd.read_parquet(folder / "scores.parquet") for folder in folders)
    pd.testing.assert_frame_equal(*(f.sort_values(keys, ignore_index=True) for f in (there, here)))


def test_sweeps_that_are_submitted_at_once_do_not_meet(head, submitted, spec):
    """`left` is `small` by another name, `right` has other seeds. Of two that are both called `left` one runs; the
    other is refused and leaves nothing."""
    for name, seed in (("left", 0), ("right", 1)):
        data = yaml.safe_load((spec / "cluster.yaml").read_text()) | {"name": name, "seeds": [seed]}
        (spec / f"{name}.yaml").write_text(yaml.safe_dump(data))
        (spec / f"{name}-local.yaml").write_text(yaml.safe_dump(data | {"output": str(spec / "local")}))
    submits = [head.start("submit", str(spec / f"{name}.yaml")) for name in ("left", "right", "left")]
    said = [process.communicate(timeout=300)[0] for process in submits]
    codes = [process.returncode for process in submits]
    assert codes[1] == 0 and sorted(codes) == [0, 0, 2], said
    refused = said[codes.index(2)]
    assert refused == (
        "layersweep: name: left is running there already, as layersweep-left-1; stop it, or choose another name\n"
    )
    for name in ("left", "right"):
        head.run("logs", name, "--follow")
        assert f"layersweep-{name}-1, succeeded" in head.run("status", name)
    command = [sys.executable, "-m", "layersweep", "run", str(spec / "right-local.yaml")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert_same_scores(spec / "cluster" / "left", submitted[0])
    assert_same_scores(spec / "cluster" / "right", spec / "local" / "right")


def test_several_sweeps_are_one_job(head, spec, tmp_path):
    """Stopped in the second of two, gone on with by another job, and pulled as a table each."""
    data = yaml.safe_load((spec / "cluster.yaml").read_text())
    data |= {"name": "both", "layers": [1], "factors": {"algorithm": ["grpo", "gspo"]}}
    data["training"]["steps"] = 30
    (spec / "both.yaml").write_text(yaml.safe_dump(data))
    folder = spec / "cluster" / "both"
    assert "submitted as layersweep-both-1" in head.run("submit", str(spec / "both.yaml"))
    patience = time.monotonic() + 240
    while not (folder / "both-gspo" / "steps.parquet").exists() and time.monotonic() < patience:
        time.sleep(1)
    head.run("stop", "both")
    assert "stopped in sweep 2 of 2" in head.run("logs", "both")
    status = head.run("status", "both")
    assert "layersweep-both-1, stopped" in status and "30/30" in status
    assert status.index("sweep   both-grpo") < status.index("30/30") < status.index("sweep   both-gspo")
    followed = head.run("submit", str(spec / "both.yaml"), "--resume", "--follow")
    assert f"nothing to do: all of {folder}/both-grpo is done" in followed
    assert "no comparison" in followed  # reached; without a full run there is nothing to compare
    head.run("pull", "both", "-o", str(tmp_path / "table.parquet"))
    for name in ("both-grpo", "both-gspo"):
        assert (tmp_path / f"table-{name}.parquet").read_bytes() == (
            folder / name / "contribution.parquet"
        ).read_bytes()
    assert head.run("status", "both").count("30/30") == 2


def test_metrics_are_scraped_by_run(head, submitted):
    """Counters outlive their process: two steps each, and 37,056 float32 parameters of a layer pushed at each."""
    metrics = head.scrape()
    for run in ("layer-01-seed0", "layer-04-seed0"):
        assert metrics["ray_layersweep_steps_total", run] == 2
        assert metrics["ray_layersweep_pushed_bytes_total", run] == 2 * 4 * 37_056


def test_tensorboard_has_what_steps_parquet_has(submitted):
    folder, _ = submitted
    for (selection, seed), rows in pd.read_parquet(folder / "steps.parquet").groupby(["selection", "seed"]):
        events = EventAccumulator(str(folder / "tensorboard" / f"{selection}-seed{seed}"))
        events.Reload()
        expected = rows.set_index("step").drop(columns=["selection", "seed"]).dropna(axis="columns", how="all")
        assert set(events.Tags()["scalars"]) == set(expected)
        for tag, column in expected.astype(np.float32).items():
            assert {event.step: event.value for event in events.Scalars(tag)} == column.dropna().to_dict()


def test_nothing_of_the_cluster_holds_the_token(head, submitted):
    """Neither the sweep's folder nor any log of the cluster."""
    for folder in (submitted[0], head.folder):
        found = subprocess.run(["grep", "-rl", TOKEN, str(folder)], capture_output=True, text=True)
        assert found.stdout == ""
