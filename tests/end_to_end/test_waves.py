"""Many more runs than a machine has room for."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from layersweep.cli import DEMO
from tests.helpers.chaos import Processes, start

pytestmark = [pytest.mark.slow, pytest.mark.long]
MIB = 1 << 20


def pss(pid: int) -> int:
    """Bytes; a page that n processes share counts 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def test_seventy_runs_in_waves_of_four(tmp_path):
    """Ten seeds of six layers and full: engine and small actors ask for 0.6 CPUs, and leave room for four trainers.
    Every run ends, four train at a time, and the driver grows by less than half a MiB a run (0.2 was measured)."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"output": str(tmp_path), "seeds": list(range(10))}
    spec["training"] |= {"steps": 2, "prompts_per_step": 4, "group_size": 4, "warmup_steps": 0}
    spec["evaluation"] = {"suites": [{"name": "sort", "prompts": 8, "samples": 1}]}
    spec["resources"] = {"trainer": {"cpus": (os.cpu_count() - 0.6) / 4}}
    path, log = tmp_path / "spec.yaml", tmp_path / "log.txt"
    path.write_text(yaml.safe_dump(spec))
    process = start("run", str(path), log)
    actors, seen = Processes(process), []
    while process.poll() is None:
        ended = len(list((tmp_path / "demo/overlays").glob("*/model.safetensors")))
        try:
            seen.append((ended, pss(process.pid), len(actors.of("Trainer"))))
        except (OSError, StopIteration):  # it has just ended
            break
        time.sleep(0.5)
    assert process.wait() == 0, log.read_text()[-3000:]
    table = pd.read_parquet(tmp_path / "demo/contribution.parquet")
    assert table["seeds"].tolist() == [1] + 7 * [10] and (table["status"] == "completed").all()
    ended, memory, trainers = np.array(seen).T
    training = (ended > 0) & (ended < 70)
    assert np.median(trainers[training]) <= 4 and trainers.max() <= 8  # those of ended runs are still ending
    early, late = (np.median(memory[(low <= ended) & (ended < low + 10)]) for low in (10, 60))
    assert (late - early) / 50 < MIB / 2
