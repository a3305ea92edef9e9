"""deploy/slurm/sweep.sbatch as it is, on one machine: `srun` and `scontrol` are stand-ins, Ray and the sweep not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.chaos import Processes, began, spec, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[2]

SRUN = """#!/bin/bash
# One task, here; notes which command came with which options.
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
echo "${options[*]} $*" >> "$SHIM_LOG"
exec "$@"
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames nodes[1-2]" ]] && printf 'node1\\nnode2\\n'
"""


@pytest.fixture
def job(tmp_path):
    """The batch script as Slurm starts it on two nodes of one CPU; ended with all its steps."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = os.environ | {
        "PATH": f"{shims}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SHIM_LOG": str(tmp_path / "srun.log"),
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip
    path = spec(tmp_path, resources={"engine": {"cpus": 0.8}, "trainer": {"cpus": 0.3}})
    log = (tmp_path / "log.txt").open("w")
    script = ["bash", str(ROOT / "deploy/slurm/sweep.sbatch"), "run", str(path)]
    process = subprocess.Popen(script, env=environment, stdout=log, stderr=log)
    steps = Processes(process)
    yield process, steps
    for step in steps.all():
        step.terminate()
    steps.left()


def test_two_nodes_one_sweep_and_the_warning_before_the_time_limit(tmp_path, job):
    """Both nodes take actors: 0.8 of the engine and three times 0.3 are more than one has. Told to end, the sweep
    writes checkpoints and the job says so by its exit code."""
    process, steps = job
    log = tmp_path / "log.txt"
    wait_for(lambda: began(tmp_path), 240, process)
    steps.all()
    head, *others = [line.split(" ray start ") for line in (tmp_path / "srun.log").read_text().splitlines()[1:]]
    assert "--nodelist=node1" in head[0] and head[1].startswith("--head --node-ip-address=")
    assert [options for options, _ in others] == ["--overlap --nodes=1 --ntasks=1 --exclude=node1"]
    assert len(steps.of("Trainer")) == 3
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < until:
        steps.all()
        time.sleep(0.3)
    assert process.returncode == 3, log.read_text()[-3000:]
    assert "layersweep resume" in log.read_text()
    reasons = pd.read_parquet(tmp_path / "chaos/contribution.parquet").set_index("selection")["reason"]
    assert reasons.drop("base").str.startswith("stopped after step").all(), reasons
