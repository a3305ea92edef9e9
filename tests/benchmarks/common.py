"""Models and experience to measure on, what a sweep costs, and how a table is printed."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from layersweep.workers.startup.environment import worker_environment
from tests.benchmarks.meter import Meter

os.environ.update(worker_environment(gpu=False))


def random_model(
    layers: int,
    hidden: int,
    heads: int,
    vocabulary: int = 32,
    intermediate: int | None = None,
    end: int | None = 1,
    dtype: str = "float32",
) -> str:
    """A folder with a random Qwen3 of this shape (head_dim hidden / heads, one KV head for every two heads, tied).

    `end` is the token that ends a response; with None, no response ends itself.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        head_dim=hidden // heads, tie_word_embeddings=True, initializer_range=0.05, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=end, pad_token_id=0, dtype=dtype,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="layersweep-benchmark-")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Markdown, so that it can be pasted where results are kept."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |")


def synthetic_experience(prompts: int, group: int, prompt_tokens: int, response_tokens: int, vocabulary: int) -> Any:
    """An Experience of `prompts` groups, all of these lengths; every group has signal, so nothing is skipped."""
    import numpy as np

    from layersweep.rollout.types import Experience

    rng = np.random.default_rng(0)
    rows, tokens = np.arange(prompts * group), prompts * group * response_tokens
    questions = rng.integers(2, vocabulary, (prompts, prompt_tokens)).astype(np.int32)
    return Experience(
        prompts=list(questions.repeat(group, axis=0)),
        tokens=rng.integers(2, vocabulary, tokens).astype(np.int32),
        logprobs=np.full(tokens, -np.log(vocabulary), np.float32),
        lengths=np.full(len(rows), response_tokens, np.int32),
        reward=(rows % 2).astype(np.float32),
        group=rows // group,
        trajectory=rows,
        step=np.zeros_like(rows),
        truncated=np.zeros(len(rows), bool),
        format_ok=np.ones(len(rows), bool),
    )


@dataclass(frozen=True)
class Spent:
    """What some work cost."""

    wall: float
    """Seconds; they suffer from whatever else the machine does."""
    cpu: float
    """Seconds, of every process that was started meanwhile."""
    others: float
    """Cores that the machine kept busy with something else meanwhile."""


def machine_cpu_seconds() -> float:
    """Busy seconds of all cores since boot: user, nice, system, irq, softirq; not idle, iowait and stolen."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def spent(work: Callable[[], object]) -> Spent:
    """The cost of `work` and of every process that it starts; this process itself counts as something else."""
    began, busy = time.perf_counter(), machine_cpu_seconds()
    with Meter() as meter:
        work()
    wall = time.perf_counter() - began
    return Spent(wall, meter.cpu, max(0.0, machine_cpu_seconds() - busy - meter.cpu) / wall)


def sweep(spec: dict[str, Any], steps: int) -> Spent:
    """One whole sweep of `steps` steps, started cold: the command line from its start to its exit."""
    with tempfile.TemporaryDirectory(prefix="layersweep-benchmark-") as folder:
        spec = spec | {"training": spec["training"] | {"steps": steps}, "output": folder}
        file, log = Path(folder) / "sweep.yaml", Path(folder) / "log"
        file.write_text(yaml.safe_dump(spec))
        with log.open("w") as output:
            command = [sys.executable, "-m", "layersweep", "run", str(file)]
            # Ray gives its workers niceness 15: on a machine that is not quite idle they would lose to any peer.
            environment = os.environ | {"RAY_worker_niceness": "0"}
            result = spent(
                lambda: subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
            )
        scored = Path(folder) / spec["name"] / "contribution.parquet"
        if not scored.is_file() or set(pandas.read_parquet(scored)["status"]) != {"completed"}:
            raise RuntimeError(f"the sweep failed:\n{log.read_text()}")
        return result
