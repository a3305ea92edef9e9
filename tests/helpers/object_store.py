"""A sweep whose output is a bucket, against a server on this machine that speaks S3, and all that reads it afterwards.

    pip install --editable '.[s3]' 'moto[server]'
    python -m tests.helpers.object_store        # about three minutes; prints a line for each thing seen

moto and s3fs are not part of the pinned stack of the tests: botocore wants an older python-dateutil. Sweep, then with
its Ray gone status, pull, report, export and resume by URI; every table must be that of the same sweep in a folder.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml
from moto.server import ThreadedMotoServer

from layersweep.cli import DEMO
from layersweep.workers.storage.files import read_bytes, read_table, resolve_uri

FOLDER = "s3://bucket/runs/small"


def spec(folder: Path, name: str, output: str, steps: int) -> str:
    """Full and two layers of the demo for some steps; its file."""
    data = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    data["training"] |= {"steps": steps, "prompts_per_step": 8, "warmup_steps": 0}
    suite = {"name": "sort", "prompts": 16, "final_prompts": 8, "samples": 2}
    data |= {"name": "small", "layers": [1, 4], "output": output, "evaluation": {"suites": [suite]}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data | {"recovery": {"checkpoint_every": 1}}))
    return str(path)


def layersweep(*arguments: str, expect: int = 0) -> str:
    """A command's output."""
    command = [sys.executable, "-m", "layersweep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_same(folder: str) -> None:
    """Scores, steps and contributions are those of the folder's sweep."""
    step = ["selection", "seed", "step"]
    keys = {"steps": step, "scores": [*step, "split", "prompt", "sample"], "contribution": ["selection"]}
    for name, key in keys.items():
        there, here = (read_table(f"{place}/{name}.parquet") for place in (FOLDER, folder))
        timed = [column for column in there if "seconds" in column]
        there, here = (f.drop(columns=timed).sort_values(key, ignore_index=True) for f in (there, here))
        pd.testing.assert_frame_equal(there, here)


def objects() -> list[str]:
    filesystem, path = resolve_uri(FOLDER)
    return [name.removeprefix(f"{path}/") for name in filesystem.find(path)]


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
                   "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="layersweep-bucket-") as folder:
            check(Path(folder))
    finally:
        server.stop()


def check(folder: Path) -> None:
    """All of it.

    Raises:
        AssertionError: something is not as it should be.
    """
    refused = layersweep("run", spec(folder, "typo", "s3://bucket/runs", 2), expect=2)
    assert "output: cannot write to s3://bucket/runs (The specified bucket does not exist)" in refused, refused
    filesystem, _ = resolve_uri("s3://bucket")
    assert not filesystem.exists("bucket")
    print("a bucket that is not there is refused, and not made")
    filesystem.mkdir("bucket")

    short, local = spec(folder, "bucket", "s3://bucket/runs", 2), str(folder / "local")
    layersweep("run", short)
    layersweep("run", spec(folder, "local", local, 2))
    assert_same(f"{local}/small")
    written = objects()
    assert not [name for name in written if name.endswith(".part") or name == "checkpoints/driver.json"], written
    assert len([name for name in written if name.startswith("tensorboard/")]) == 3
    print(f"run: {len(written)} objects, the tables of a run in a folder")

    assert layersweep("status", FOLDER).count("2/2") == 3
    assert "4 selections, 4 completed" in layersweep("pull", FOLDER, "-o", str(folder / "table.parquet"))
    assert (folder / "table.parquet").read_bytes() == read_bytes(f"{FOLDER}/contribution.parquet")
    assert f"{FOLDER}/report.html" in layersweep("report", FOLDER)
    layersweep("export", FOLDER, "layer-01", "-o", str(folder / "model"))
    layersweep("export", f"{local}/small", "layer-01", "-o", str(folder / "same"))
    assert (folder / "model/model.safetensors").read_bytes() == (folder / "same/model.safetensors").read_bytes()
    print("status, pull, report and export by URI: as from a folder")

    assert "holds a sweep already" in layersweep("run", short, expect=2)
    assert "nothing to do" in layersweep("resume", FOLDER)
    layersweep("resume", FOLDER, spec(folder, "bucket", "s3://bucket/runs", 4))
    layersweep("resume", f"{local}/small", spec(folder, "local", local, 4))
    assert_same(f"{local}/small")
    assert read_table(f"{FOLDER}/steps.parquet")["step"].max() == 3
    print("resume by URI with two steps more: as in a folder")


if __name__ == "__main__":
    main()
