"""How the cost of a whole sweep grows with the number of layers, at a fixed width.

The demo's tiny model with more layers; a KL term keeps every group in the computation whatever its rewards, so the
work depends on the number of layers alone. A sweep has one run per layer and one of all parameters, and a run's
forward pass is as deep as the model: with L layers the parts grow with L times L. Steady state is the difference
between sweeps of N and 2N steps, in CPU seconds of the processes started; wall clock needs a machine that is idle.

    python -m tests.benchmarks.growth
    python -m tests.benchmarks.growth 4 8      # some numbers of layers
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.startup.tiny_model_training import make_tiny_model
from tests.benchmarks.common import print_table, sweep

LAYERS = (4, 8, 12, 16, 24)
STEPS = 5


def deep(layers: int) -> dict[str, Any]:
    """The demo's spec with another number of layers, and hardly any evaluation."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    spec["model"] |= {"layers": layers, "minimum_accuracy": 0.0}
    spec["algorithm"] |= {"kl_coefficient": 0.001}
    spec["evaluation"] = {"suites": [{"name": "sort", "prompts": 16, "samples": 1}]}
    return spec


def measure(layers: int) -> list[object]:
    """A row: wall and CPU seconds of a sweep of STEPS steps, and the steady state's per run and step."""
    spec = deep(layers)
    parsed = parse_spec(spec)
    make_tiny_model(parsed.model, parsed.task)
    once, twice = sweep(spec, STEPS), sweep(spec, 2 * STEPS)
    wall, cpu = ((b - a) / (STEPS * (layers + 1)) for a, b in ((once.wall, twice.wall), (once.cpu, twice.cpu)))
    return [layers, layers + 1, once.wall, once.cpu, wall, cpu, cpu / layers, max(once.others, twice.others)]


if __name__ == "__main__":
    print_table(
        f"Sweeps of {STEPS} steps by number of layers",
        ["layers", "runs", "wall s", "CPU s", "wall s per run and step", "CPU s per run and step",
         "the same per layer", "cores busy otherwise"],
        [measure(layers) for layers in map(int, sys.argv[1:] or LAYERS)],
    )  # fmt: skip
