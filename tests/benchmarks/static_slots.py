"""What static slots cost on a CPU, beside parting the rows in Python: CPU seconds of one linear module for one batch.

Seven runs and the base have as many rows each; one run, one and the full one, or all seven have weights of their own
in the module. The ways take turns, one thread; each figure is a multiple of the rows parted in Python (`model.py`).

    python -m tests.benchmarks.static_slots
"""

import time
from collections.abc import Callable
from functools import partial

from tests.benchmarks.common import median, print_table

ROUNDS = 41
SHAPES = {"SmolLM2-135M, gate and up": (576, 3072), "Qwen3-1.7B, qkv": (2048, 4096)}
"""Inputs and outputs of a module."""
RUNS = 7


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    from layersweep.rollout.engine.model import _in_groups
    from layersweep.rollout.engine.row_routing import BASE, RowRouting
    from layersweep.rollout.engine.slot_modules import grouped_products, selected_products
    from layersweep.rollout.engine.weight_slots import WeightSlots

    torch.set_num_threads(1)
    rows = []
    for shape, (width, out) in SHAPES.items():
        model = nn.ModuleDict({"up": nn.Linear(width, out, bias=False)}).requires_grad_(False)
        copies = {"up": nn.Linear(width, out, bias=False, device="meta")}
        for count in (32, 256, 1024):
            for owners in (1, 2, RUNS):
                slots = WeightSlots(model, copies, count, torch.device("cpu"))
                names = [f"run-{i}" for i in range(RUNS)]
                own = [p for i, name in enumerate(names) for p in slots.take(name, ["up"] * (i < owners)).values()]
                for weight in own:
                    weight.data.normal_()
                lengths = np.full(RUNS + 1, count // (RUNS + 1))
                routing = RowRouting([*names, None], lengths, torch.device("cpu"))
                slots.fill(routing, count)
                x, stack, of_rows = torch.randn(count, width), slots.stack("up", "weight"), slots.rows("up", count)
                groups = routing.split(tuple(range(owners)), count)
                weights = [model["up"].weight if owner == BASE else own[owner] for owner in groups.owners]
                computes = [partial(F.linear, weight=weight) for weight in weights]
                ways: list[Callable[[], object]] = [
                    partial(_in_groups, groups, count, computes, (x,), {}),
                    partial(grouped_products, x, stack, None, of_rows),
                    partial(selected_products, x, stack, None, of_rows),
                ]
                taken = [[cpu_seconds(way) for way in ways] for _ in range(ROUNDS)]
                parted, grouped, selected = (median(column) for column in zip(*taken, strict=True))
                rows.append([shape, count, owners, 1e3 * parted, grouped / parted, selected / parted])
                for name in names:
                    slots.free(name)
                slots.clear()
    print_table(
        f"Static slots, {RUNS} runs and the base, medians of {ROUNDS}",
        ["module", "rows", "runs with weights", "parted, CPU ms", "grouped / parted", "selected / parted"],
        rows,
    )


if __name__ == "__main__":
    main()
