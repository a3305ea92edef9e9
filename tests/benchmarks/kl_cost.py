"""What it costs to measure the KL to the base where the loss has no KL term: CPU seconds beside those of an update.

`UpdateLoop` measures it on one in 8 steps and the last, on one in 32 responses. Each line is the measurement of one
such step, and an update without it, taking turns on one fixed batch with one thread; the share is what a run pays: the
measurement over 8 updates. `smollm2` is the real model with 135 M parameters.

    python -m tests.benchmarks.kl_cost [smollm2]
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from tests.benchmarks.common import median, print_table, random_model, synthetic_experience

ROUNDS = {"demo": 9, "smollm2": 3}
BATCH = {"demo": (32, 8, 7, 7), "smollm2": (8, 4, 24, 12)}
"""Prompts, group size, tokens of a prompt and of a response: of the demo, and of smollm2-arithmetic nearly."""


def cpu_seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


def main() -> None:
    import torch

    from layersweep.policies.algorithms.grpo import GRPO
    from layersweep.policies.model.trunk import Policy, Trunk
    from layersweep.policies.selection import Selection
    from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
    from layersweep.workers.startup.gguf_model import gguf_folder
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
    from layersweep.workers.training.distributed import prepare, serve_store
    from layersweep.workers.training.rollout_batch import RolloutBatch
    from layersweep.workers.training.update_loop import SAMPLED_STEPS, UpdateLoop

    name = "smollm2" if "smollm2" in sys.argv[1:] else "demo"
    store = serve_store()
    prepare(0, 1, "127.0.0.1", store.port, gpu=False)
    torch.set_num_threads(1)
    folder = str(gguf_folder("smollm2")) if name == "smollm2" else random_model(6, 64, heads=2)
    trunk = Trunk.load(folder, "float32")
    layers = len(trunk.model.model.layers)
    experience = synthetic_experience(*BATCH[name], vocabulary=32)
    rows = []
    for selection in [*(Selection.layer(k) for k in (0, layers // 2, layers - 1)), Selection.full()]:
        training = TrainingConfig(steps=100, minibatches=2, prompts_per_step=BATCH[name][0],
                                  max_response_tokens=BATCH[name][3], micro_batch_tokens=16384)  # fmt: skip
        backend = DeepSpeedBackend(Policy(trunk, selection), training, DeepSpeedConfig())
        loop = UpdateLoop(trunk, backend, GRPO(), training)
        batch = RolloutBatch(experience, loop.policy, loop.algorithm, training)
        updates, measured = [], []
        for _ in range(1 + ROUNDS[name]):
            updates.append(cpu_seconds(loop.update, experience, 1))  # step 1 is none of those that measure
            measured.append(cpu_seconds(loop._sampled_kl, batch, SAMPLED_STEPS))
        update, kl = median(updates[1:]), median(measured[1:])
        rows.append([selection.name, update, kl, f"{100 * kl / update / SAMPLED_STEPS:.2f} %"])
    print_table(
        f"Measuring KL, {name}, {np.prod(BATCH[name][:2])} responses, medians of {ROUNDS[name]}",
        ["trained", "an update, CPU s", "the KL of a measured step, CPU s", "of all updates"],
        rows,
    )


if __name__ == "__main__":
    main()
