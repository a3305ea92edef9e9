"""Seconds and memory of the engine's self-check, beside the engine's own start.

The memory that the check adds is read from this process, in which engine and check run here as in the engine's actor:
the highest resident set during the check, over the one before it. Mapped weights count where they are read, so most of
what a bfloat16 model adds is its file. A full run is checked too, whose overlay is as large as the model.

    python -m tests.benchmarks.selfcheck_cost                  # SmolLM2-135M in float32 and bfloat16
    python -m tests.benchmarks.selfcheck_cost qwen3-1.7b       # random weights of that shape, bfloat16
"""

import multiprocessing
import sys
import threading
import time
from pathlib import Path

import psutil

from tests.benchmarks.common import print_table, random_model
from tests.benchmarks.rollouts import folder_of

GIB = 1 << 30


def qwen3() -> tuple[str, str]:
    """A folder with random weights of Qwen3-1.7B's shape in bfloat16, and the name of its class."""
    folder = random_model(28, 2048, 16, vocabulary=151936, intermediate=6144, dtype="bfloat16")
    return folder, "Qwen3ForCausalLM"


def resident() -> int:
    """Return the bytes of this process in memory."""
    return psutil.Process().memory_info().rss


class Peak(threading.Thread):
    """Highest resident set while a `with` block runs."""

    def __enter__(self) -> "Peak":
        self.highest, self.over = resident(), threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.highest = max(self.highest, resident())


def measure(name: str, folder: str, architecture: str, dtype: str) -> list[object]:
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.engine.selfcheck import check

    began = time.perf_counter()
    config = RolloutConfig(max_model_len=64, kv_cache_memory_mib=512)
    engine = RolloutEngine(folder, architecture, config, dtype, 0)
    started, before, cpu = time.perf_counter() - began, resident(), time.process_time()
    began = time.perf_counter()
    with Peak() as peak:
        difference = check(engine, folder, dtype)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    size = sum(file.stat().st_size for file in Path(folder).resolve().glob("*.safetensors"))
    return [
        name, dtype, size / GIB, started, seconds, cpu, before / GIB, (peak.highest - before) / GIB, f"{difference:.2g}"
    ]  # fmt: skip


if __name__ == "__main__":
    wanted = sys.argv[1] if sys.argv[1:] else "smollm2"
    model, dtypes = (folder_of(wanted), ["float32", "bfloat16"]) if wanted == "smollm2" else (qwen3(), ["bfloat16"])
    with multiprocessing.get_context("spawn").Pool(
        1, maxtasksperchild=1
    ) as pool:  # an engine is its process's only one
        rows = [pool.apply(measure, (wanted, *model, dtype)) for dtype in dtypes]
    print_table(
        "The self-check",
        ["model", "dtype", "its file, GiB", "engine's start, s", "check, s", "check, CPU s", "engine, GiB",
         "check adds, GiB", "largest difference, nats"],
        rows,
    )  # fmt: skip
