"""What the real collector takes, by itself: `python -m tests.simulations.collector_cost [RUNS STEPS PROMPTS]`

Rows of steps.parquet and scores as runs of 36 layers and full, over as many seeds as it takes, would send them; CPU
seconds, of one thread. By default it prints a table of growing sizes, small enough for a laptop.
"""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.workers.actors.collector import Collector
from layersweep.workers.storage.tables import STEPS
from layersweep.workers.trackers.config import TrackingConfig
from tests.simulations.stand_ins import CollectorCost

SAMPLES, KINDS = 4, 37
SIZES = ((50, 100, 500), (100, 100, 500), (100, 400, 500), (100, 100, 2000))


@dataclass(frozen=True)
class Measured:
    """CPU seconds of one call each, at the size given."""

    runs: int
    steps: int
    prompts: int
    step: float
    commit: float
    scores: float
    frames: float
    """Of a write: rows and scores put together."""
    table: float
    """Of a write: the contribution table."""
    write: float
    memory: float
    """GiB of the process, after the write."""

    def cost(self) -> CollectorCost:
        """As if a write grew with its rows alone: steps' rows with what remains beside the table's share."""
        rows, responses = self.runs * self.steps, self.runs * self.prompts * SAMPLES
        return CollectorCost(
            self.step, self.commit / self.steps, self.scores, self.prompts * SAMPLES, self.frames / rows,
            (self.write - self.frames) / responses,
        )  # fmt: skip


def measure(runs: int, steps: int, prompts: int) -> Measured:
    """A collector with so many runs, each with so many steps and one evaluation of `prompts` prompts, 4 samples."""
    rng, names = np.random.default_rng(0), _names(runs)
    with TemporaryDirectory() as folder:
        facts = [_fact(*name) for name in [("base", 0), *names]]
        constants = dict.fromkeys(("sweep", "model", "algorithm", "task"), "-")
        collector = Collector(
            folder, facts, partial(sweep_table, constants), partial(suite_table, "-"), steps, "-", TrackingConfig()
        )
        collector.next_write = float("inf")  # written below, when everything is there
        row = {column.name: 1 for column in STEPS.columns if not column.required}
        with _cpu() as adding:
            for step in range(steps):
                for name in names:
                    collector.record_step(*name, step, {**row, "step": step})
        with _cpu() as committing:
            for name in names[:10]:
                collector.commit(*name, steps, {"rank-0.safetensors": "0" * 32}, [], 0.0, 2)
        with _cpu() as scoring:
            collector.record_scores("base", 0, 0, _responses(rng, prompts))
            for name in names:
                collector.record_scores(*name, steps, _responses(rng, prompts))
        with _cpu() as framing:
            collector._frames()
        with _cpu() as tabulating:
            collector.table()
        with _cpu() as writing:
            collector.write()
        return Measured(
            runs, steps, prompts, adding() / runs / steps, committing() / min(10, runs), scoring() / (runs + 1),
            framing(), tabulating() - framing(), writing(), _resident(),
        )  # fmt: skip


def _names(runs: int) -> list[tuple[str, int]]:
    kinds = ["full", *(f"layer-{k:02d}" for k in range(KINDS - 1))]
    return [(kinds[i % KINDS], i // KINDS) for i in range(runs)]


def _fact(selection: str, seed: int) -> dict[str, Any]:
    kind, _, layer = selection.partition("-")
    return {
        "selection": selection, "seed": seed, "kind": kind, "layer": int(layer) if layer else None, "depth": None,
        "layers": [], "learning_rate": 1e-5, "trainable_parameters": 1, "seconds": 0.0,
    }  # fmt: skip


def _responses(rng: np.random.Generator, prompts: int) -> dict[str, np.ndarray]:
    count = prompts * SAMPLES
    return {
        "suite": np.full(count, "math", object),
        "split": np.full(count, "selection", object),
        "prompt": np.array([f"prompt-{i:05d}" for i in range(prompts)], object).repeat(SAMPLES),
        "sample": np.tile(np.arange(SAMPLES), prompts),
        "score": (rng.random(count) < 0.5).astype(float),
        "response_tokens": rng.integers(1, 3072, count),
        "truncated": rng.random(count) < 0.1,
        "format_ok": rng.random(count) < 0.9,
        "category": np.full(count, None),
        "losses": np.zeros(count, np.int64),
    }


@contextmanager
def _cpu():
    """Gives a function of the CPU seconds within."""
    began, took = time.process_time(), []
    done: Callable[[], float] = lambda: took[0]  # noqa: E731
    yield done
    took.append(time.process_time() - began)


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def show(found: Measured) -> str:
    return (
        f"{found.runs:>6}{found.steps:>6}{found.prompts:>8}{1e3 * found.step:>9.2f}{1e3 * found.commit:>9.1f}"
        f"{1e3 * found.scores:>9.1f}{found.frames:>9.2f}{found.table:>9.2f}{found.write:>9.2f}{found.memory:>9.2f}"
    )


def main() -> None:
    print(f"{'runs':>6}{'steps':>6}{'prompts':>8}{'step':>9}{'commit':>9}{'scores':>9}"
          f"{'frames':>9}{'table':>9}{'write':>9}{'peak':>9}   (ms, ms, ms, s, s, s, GiB)")  # fmt: skip
    for size in [tuple(map(int, sys.argv[1:4]))] if len(sys.argv) > 1 else SIZES:
        print(show(measure(*size)), flush=True)


if __name__ == "__main__":
    main()
