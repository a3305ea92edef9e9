"""What an update costs by the depth of the trained layer: the first, the middle, the last, and all parameters.

CPU seconds of UpdateLoop.update on one fixed batch (random tokens, every group with signal) with one thread. A second
epoch reuses the input of the trained layer, so its marginal cost is the suffix alone. The last table has the same
batch with and without the prompt shared: responses of a group as one tree, and as one row each (a loop is made to
do that by prompts that all differ), which is how a trainer with padded rows computes them.

    python -m tests.benchmarks.update_by_depth
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.benchmarks.common import median, print_table, random_model, synthetic_experience

LAYERS, HIDDEN, VOCABULARY = 16, 256, 256
PROMPTS, GROUP, PROMPT_TOKENS, RESPONSE_TOKENS = 2, 8, 96, 64
REPETITIONS = 5
KL = {"without KL": 0.0, "with KL": 0.001}


def unshared(experience: Any) -> Any:
    """The same batch with a prompt of its own for each response."""
    rng = np.random.default_rng(1)
    own = rng.integers(2, VOCABULARY, (len(experience.prompts), PROMPT_TOKENS)).astype(np.int32)
    return replace(experience, prompts=list(own))


def seconds(works: list[Callable[[], object]]) -> list[float]:
    """Median CPU seconds of each, taking turns, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(1 + REPETITIONS):
        for work, of in zip(works, times, strict=True):
            began = time.process_time()
            work()
            of.append(time.process_time() - began)
    return [median(of[1:]) for of in times]


def main() -> None:
    import torch

    from layersweep.policies.algorithms.grpo import GRPO
    from layersweep.policies.model.tree_batch import pack
    from layersweep.policies.model.trunk import Policy, Trunk
    from layersweep.policies.selection import Selection
    from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
    from layersweep.workers.training.distributed import prepare, serve_store
    from layersweep.workers.training.update_loop import UpdateLoop

    store = serve_store()
    prepare(0, 1, "127.0.0.1", store.port, gpu=False)
    torch.set_num_threads(1)
    trunk = Trunk.load(random_model(LAYERS, HIDDEN, heads=8, vocabulary=VOCABULARY), "float32")
    tree = synthetic_experience(PROMPTS, GROUP, PROMPT_TOKENS, RESPONSE_TOKENS, VOCABULARY)
    row_each = unshared(tree)
    selections = [Selection.layer(k) for k in (0, LAYERS // 2, LAYERS - 1)] + [Selection.full()]
    names = [selection.name for selection in selections]

    def update(selection: Selection, epochs: int, kl: float, experience: Any) -> Callable[[], object]:
        training = TrainingConfig(epochs=epochs, max_response_tokens=RESPONSE_TOKENS, micro_batch_tokens=16384)
        backend = DeepSpeedBackend(Policy(trunk, selection), training, DeepSpeedConfig())
        loop = UpdateLoop(trunk, backend, GRPO(kl_coefficient=kl), training)
        return lambda: loop.update(experience, step=1)  # at step 0 the gradients' agreement comes on top

    rows = []
    for label, kl in KL.items():
        one = seconds([update(selection, 1, kl, tree) for selection in selections])
        two = seconds([update(selection, 2, kl, tree) for selection in selections])
        for name, first, both in zip(names, one, two, strict=True):
            second = both - first
            rows.append([name, label, first, first / one[-1], second, second / (two[-1] - one[-1]), second / first])
    print_table(
        f"An update by depth, {LAYERS} layers, hidden {HIDDEN}, medians of {REPETITIONS}",
        ["trained", "loss", "1 epoch, CPU s", "of full", "a 2nd epoch, CPU s", "of full's 2nd", "of its own 1st"],
        rows,
    )

    rows = []
    for label, kl in KL.items():
        packed = seconds([update(selection, 1, kl, tree) for selection in selections])
        padded = seconds([update(selection, 1, kl, row_each) for selection in selections])
        rows += [[n, label, a, b, b / a] for n, a, b in zip(names, packed, padded, strict=True)]
    tokens = [
        sum(batch.input_ids.numel() for batch in pack(e.prompts, e.tokens, e.lengths, range(len(e.lengths)), 16384))
        for e in (tree, row_each)
    ]
    print_table(
        f"Responses of a group as one tree ({tokens[0]} tokens) and as a row each ({tokens[1]} tokens), 1 epoch",
        ["trained", "loss", "tree, CPU s", "rows, CPU s", "rows / tree"],
        rows,
    )


if __name__ == "__main__":
    main()
