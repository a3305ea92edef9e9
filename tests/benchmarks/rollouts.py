"""Rollouts: all runs in one batch (mixed) against one run at a time (swap) and against one engine per run.

One round pushes every run's layer and generates M responses of 16 tokens to prompts of 16 for each. Mixed, swap
and auto take turns on the same engine, round by round. So does the fourth, what an engine per run costs at the
least: each run's requests alone, on vLLM's own unrouted path, without any push (the engines would be alike, so
one stands for all). CPU seconds are the whole process's.

    python -m tests.benchmarks.rollouts            # tiny, and hidden 512 (about 20 minutes)
    python -m tests.benchmarks.rollouts tiny 8     # one model and number of runs
    python -m tests.benchmarks.rollouts smollm2 8  # SmolLM2-135M, M = 8 and 32 only, 3 rounds
"""

import sys
import time

from tests.benchmarks.common import median, print_table, random_model

SHAPES = {"tiny": (6, 64, 2), "hidden-512": (12, 512, 8)}
RESPONSES = {"smollm2": (8, 32)}
ROUNDS = {"smollm2": 3}


def folder_of(shape: str) -> tuple[str, str]:
    """A model's folder and the name of its class."""
    if shape != "smollm2":
        return random_model(*SHAPES[shape]), "Qwen3ForCausalLM"
    from layersweep.policies.config import PretrainedModel
    from layersweep.workers.startup.model_source import resolve_source

    return str(resolve_source(PretrainedModel(path="smollm2"))[1]), "LlamaForCausalLM"


def measure(shape: str, runs: int) -> list[list[object]]:
    """A row per M: tokens per CPU second of each mode, and mixed over swap, over separate engines, auto over best."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.types import Sampling

    folder, architecture = folder_of(shape)
    config = RolloutConfig(max_model_len=64, batching="auto", kv_cache_memory_mib=256)
    state = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    layers = max(int(n.split(".")[2]) for n in state if n.startswith("model.layers.")) + 1
    block = [{n: p.detach() for n, p in state.items() if n.startswith(f"model.layers.{k}.")} for k in range(layers)]
    engine = RolloutEngine(folder, architecture, config, "float32", 0)
    rng = np.random.default_rng(0)
    version = 0

    def one_round(mode: str, responses: int) -> float:
        """Tokens per CPU second."""
        nonlocal version
        version += 1
        samples = min(8, responses)
        prompts = [rng.integers(2, 32, 16).astype(np.int32) for _ in range(responses // samples)]
        sampling, seeds = Sampling(samples, max_tokens=16, logprobs=True), list(range(len(prompts)))
        began = time.process_time()
        if mode == "each":
            done = [engine.generate(None, 0, prompts, seeds, sampling).result() for _ in range(runs)]
        else:
            for i in range(runs):
                engine.push(f"run-{i}", version, block[i * layers // runs]).result()
            waiting = [engine.generate(f"run-{i}", version, prompts, seeds, sampling) for i in range(runs)]
            done = [future.result() for future in waiting]
        return sum(len(completions.tokens) for completions in done) / (time.process_time() - began)

    rows = []
    for responses in RESPONSES.get(shape, (4, 16, 64)):
        rates: dict[str, list[float]] = {"mixed": [], "swap": [], "each": [], "auto": []}
        engine.batching = type(engine.batching)()
        while not engine.batching.decided:
            one_round("auto", responses)
        auto = engine.batching.mixed
        for _ in range(ROUNDS.get(shape, 5)):
            for mode, mixed in (("mixed", True), ("swap", False), ("auto", auto), ("each", auto)):
                engine.batching.mixed, engine.batching.decided = mixed, True
                rates[mode].append(one_round(mode, responses))
        mixed, swap, apart, chosen = (median(rates[m]) for m in ("mixed", "swap", "each", "auto"))
        rows.append(
            [shape, runs, responses, mixed, swap, apart, mixed / swap, mixed / apart, chosen / max(mixed, swap),
             "mixed" if auto else "swap"]
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    shapes = sys.argv[1:2] or list(SHAPES)
    counts = [int(c) for c in sys.argv[2:]] or [8, 16]
    print_table(
        "Rollout tokens per CPU second, medians of 5 rounds (smollm2: 3)",
        [
            "model",
            "runs",
            "M",
            "mixed",
            "swap",
            "an engine each",
            "mixed / swap",
            "mixed / each",
            "auto / best",
            "auto",
        ],
        [row for shape in shapes for count in counts for row in measure(shape, count)],
    )
