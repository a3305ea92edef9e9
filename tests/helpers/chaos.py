"""Seeded faults against a sweep that is running, and what must hold afterwards.

    python -m tests.helpers.chaos --faults 30 --seed 0      # about 20 minutes; prints a line per fault and a verdict

Each sweep is the demo made smaller. Faults come one after another at random moments until the sweep ends; where it
cannot go on by itself (its driver is gone) it is resumed. In the end every run is completed, every (run, step) is there
once, the table is that of an undisturbed sweep, and no process is left.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import yaml

from layersweep.cli import DEMO


@dataclass(frozen=True)
class Size:
    """Size of a sweep."""

    steps: int = 16
    layers: tuple[int, ...] = (1, 4)
    prompts: int = 64


RESUMES = 6
"""At most so many in a row without a new fault."""


def spec(folder: Path, size: Size = Size(), **sections) -> Path:
    """The demo with fewer layers and steps and little patience; its file."""
    data = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    data |= {"name": "chaos", "output": str(folder), "layers": list(size.layers)}
    data["training"]["steps"] = size.steps
    data["evaluation"] = {"suites": [{"name": "sort", "prompts": size.prompts, "final_prompts": 16, "samples": 2}]}
    data["recovery"] = {"checkpoint_every": 3, "patience": 12, "retries": 5}
    for name, section in sections.items():
        data[name] = data.get(name, {}) | section
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def start(command: str, target: str, log: Path, *options: str, own_group: bool = False) -> subprocess.Popen:
    """Start `layersweep run|resume`, its output appended to the log; `own_group`: as a shell does."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "layersweep", command, target, *options],
            stdout=file,
            stderr=file,
            process_group=0 if own_group else None,
        )


class Processes:
    """The processes of one driver: itself and everything below it. Any may be gone between two looks at it."""

    def __init__(self, driver: subprocess.Popen):
        self.driver = psutil.Process(driver.pid)
        self.seen: set[psutil.Process] = set()

    def all(self) -> list[psutil.Process]:
        """Those alive now; remembered, so that orphans are found too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= {self.driver, *self.driver.children(recursive=True)}
        return [process for process in self.seen if _alive(process)]

    def of(self, role: str) -> list[psutil.Process]:
        """Workers of an actor, by the name that Ray gives their process."""
        titles = {process: _title(process) for process in self.all()}
        return [
            process
            for process, title in titles.items()
            if title.startswith(f"ray::{role}") or f"/{role}" in title.split(" ")[0]
        ]

    def left(self, seconds: float = 40.0) -> list[str]:
        """What is still there after so long."""
        until = time.monotonic() + seconds
        while (alive := self.all()) and time.monotonic() < until:
            time.sleep(0.2)
        return [f"{process.pid} {_title(process)[:80]}" for process in alive]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    """The command line; "" of a process that is gone or hides it."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _signal(role: str, number: int) -> Callable[[random.Random, Processes, Path], str | None]:
    def fault(rng: random.Random, processes: Processes, folder: Path) -> str | None:
        found = processes.of(role)
        if not found:
            return None
        victim = rng.choice(found)
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        return f"{signal.Signals(number).name} to {role} {victim.pid}"

    return fault


def _driver(rng: random.Random, processes: Processes, folder: Path) -> str | None:
    processes.all()
    os.kill(processes.driver.pid, signal.SIGKILL)
    return f"SIGKILL to the driver {processes.driver.pid}"


def _truncated(rng: random.Random, processes: Processes, folder: Path) -> str | None:
    """The newest checkpoint of a run is cut, and the driver killed, so that it is needed."""
    records = sorted((folder / "chaos/checkpoints").glob("*/step-*/record.json"), key=lambda p: p.stat().st_mtime)
    if not records:
        return None
    place = records[-1].parent
    victim = rng.choice([place / "record.json", place / "rank-0.safetensors"])
    _driver(rng, processes, folder)
    os.truncate(victim, victim.stat().st_size // 2)
    return f"SIGKILL to the driver, {victim.relative_to(folder)} cut in half"


def _quota(role: str) -> Callable[[random.Random, Processes, Path], str | None]:
    def fault(rng: random.Random, processes: Processes, folder: Path) -> str | None:
        """For some seconds an actor may write no file larger than 1 KiB: write() fails as on a full disk."""
        found = processes.of(role)
        if not found:
            return None
        victim = rng.choice(found)
        try:
            victim.rlimit(psutil.RLIMIT_FSIZE, (1024, psutil.RLIM_INFINITY))
        except psutil.NoSuchProcess:
            return None
        time.sleep(6)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        return f"quota for {role} {victim.pid}"

    return fault


FAULTS: dict[str, Callable[[random.Random, Processes, Path], str | None]] = {
    "trainer": _signal("Trainer", signal.SIGKILL),
    "engine": _signal("Engine", signal.SIGKILL),
    "driver": _driver,
    "hung engine": _signal("Engine", signal.SIGSTOP),
    "collector": _signal("Collector", signal.SIGKILL),
    "truncated": _truncated,
    "rollout": _signal("RolloutWorker", signal.SIGKILL),
    "quota": _quota("Trainer"),
    "hung trainer": _signal("Trainer", signal.SIGSTOP),
    "raylet": _signal("raylet", signal.SIGKILL),
    "collector's quota": _quota("Collector"),
    "stop": lambda rng, processes, folder: os.kill(processes.driver.pid, signal.SIGINT) or "SIGINT to the driver",
}


def began(folder: Path) -> bool:
    """Whether a step is in the run store, or in the tables."""
    return any((folder / "chaos/checkpoints").glob("*/step-*/record.json"))


def wait_for(condition: Callable[[], bool], seconds: float, process: subprocess.Popen) -> None:
    """Until it holds, while a process runs.

    Raises:
        AssertionError: the process ends before, or the time does.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.3)


def sweep_through(folder: Path, faults: list[str], rng: random.Random, say: Callable[[str], None]) -> int:
    """Run one sweep while faults come. How many came; the sweep is done then.

    Raises:
        AssertionError: it does not end, or leaves processes behind.
    """
    log = folder / "log.txt"
    process = start("run", str(spec(folder)), log)
    processes, came, resumes = Processes(process), 0, 0
    pause = time.monotonic() + rng.uniform(2, 12)
    while True:
        time.sleep(0.3)
        processes.all()
        code = process.poll()
        if code == 0:
            break
        if code is not None:
            left = processes.left()
            assert not left, f"left by a driver that ended with {code}: {left}\n{log.read_text()[-3000:]}"
            resumes += 1
            assert resumes <= RESUMES, f"still not done:\n{log.read_text()[-5000:]}"
            say(f"    resume after exit {code}")
            process = start("resume", str(folder / "chaos"), log)
            processes = Processes(process)
            pause = time.monotonic() + rng.uniform(2, 12) if came < len(faults) else float("inf")
            continue
        if came < len(faults) and began(folder) and time.monotonic() > pause and processes.of("Trainer"):
            name = faults[came]
            done = FAULTS[name](rng, processes, folder)
            if done:
                say(f"  {name}: {done}")
                came, resumes = came + 1, 0
            pause = time.monotonic() + rng.uniform(3, 10)
    assert not (left := processes.left()), left
    return came


def check(folder: Path, expected: pd.DataFrame, size: Size = Size()) -> None:
    """Every run completed, every step once, the table that of an undisturbed sweep.

    Raises:
        AssertionError: one of these does not hold.
    """
    table = pd.read_parquet(folder / "chaos/contribution.parquet").set_index("selection")
    assert (table["status"] == "completed").all(), table[["status", "reason"]]
    steps = pd.read_parquet(folder / "chaos/steps.parquet")
    for run, rows in steps.groupby(["selection", "seed"]):
        assert sorted(rows["step"]) == list(range(size.steps)), (run, sorted(rows["step"]))
    assert set(steps["selection"]) == {"full", *(f"layer-{k:02d}" for k in size.layers)}
    same = ["score", "contribution", "update_norm", "generated_tokens", "final_score"]
    pd.testing.assert_frame_equal(table[same], expected[same], rtol=0, atol=1e-6, check_dtype=False)


def undisturbed(folder: Path, size: Size = Size()) -> pd.DataFrame:
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    assert start("run", str(spec(folder, size)), log).wait() == 0, log.read_text()[-3000:]
    table = pd.read_parquet(folder / "chaos/contribution.parquet").set_index("selection")
    check(folder, table, size)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    names = list(FAULTS)
    wanted = [names[i % len(names)] for i in range(args.faults)]
    rng.shuffle(wanted)
    with tempfile.TemporaryDirectory(prefix="layersweep-chaos-") as root:
        expected = undisturbed(Path(root) / "undisturbed")
        print(expected[["score", "contribution"]].round(3).to_string())
        done = number = 0
        while done < args.faults:
            folder = Path(root) / f"sweep-{number}"
            folder.mkdir()
            print(f"sweep {number}, after {done} faults")
            done += sweep_through(folder, wanted[done : done + 6], rng, print)
            check(folder, expected)
            print("  every run completed, every step once, the same table")
            number += 1
    print(f"{done} faults in {number} sweeps: all recovered")


if __name__ == "__main__":
    main()
