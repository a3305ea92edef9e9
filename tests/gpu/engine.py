"""The engine: it starts, passes its self-check, takes every run's weights, and how fast it is by runs and sequences."""

import json
import time
from typing import Any

from tests.gpu.common import Setting, setting
from tests.gpu.findings import say

PROMPT = 128
SEQUENCES = {"cuda": (224, 256), "cpu": (8, 16)}
"""Sequences at a time: eight a run of a model of 28 layers, and as a plain engine has them."""
TOKENS = {"cuda": 96, "cpu": 8}


def rate(engine: Any, runs: list[str | None], sequences: int, tokens: int, vocabulary: int) -> float:
    """Return tokens a second of so many sequences, dealt out among runs."""
    import numpy as np

    from layersweep.rollout.types import Sampling

    rng, each = np.random.default_rng(0), max(1, sequences // len(runs))
    sampling = Sampling(samples=1, max_tokens=tokens, logprobs=True)
    prompts = [[rng.integers(2, vocabulary, PROMPT).astype(np.int32) for _ in range(each)] for _ in runs]
    began = time.perf_counter()
    waiting = [
        engine.generate(run, int(run is not None), mine, list(range(each)), sampling)
        for run, mine in zip(runs, prompts, strict=True)
    ]
    return sum(len(future.result(120).tokens) for future in waiting) / (time.perf_counter() - began)


def compare(given: Setting, part: str, found: dict[str, float], before: str, than: str) -> None:
    """Say how fast each mixture is against an earlier part, which left its tokens a second in the file `before`."""
    if (rates := given.scratch / before).is_file():
        other = json.loads(rates.read_text())
        for mixture in found.keys() - {"layers"}:
            faster = found[mixture] / other[mixture]
            say(part, f"{mixture} sequences, of {than}", faster, "> 1", faster > 1, must=False)


def measure(given: Setting, part: str, **settings: Any) -> dict[str, float]:
    """Start and check an engine, and return its tokens a second by mixture and number of sequences.

    Args:
        settings: fields of the spec's `rollout` section.
    """
    import vllm

    from layersweep.policies.model.pretrained import load_pretrained
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.engine.selfcheck import RoutingMismatch, check
    from layersweep.workers.transport.weight_transfer import in_parts

    folder, model = given.model()
    say(part, "vLLM", vllm.__version__)
    layers, vocabulary, dtype = model["num_hidden_layers"], model["vocab_size"], "bfloat16" if given.gpu else "float32"
    most = max(SEQUENCES[given.device])
    config = RolloutConfig(
        batching="mixed", max_num_seqs=most, max_model_len=512, gpu_memory_utilization=0.6, **settings
    )
    began = time.perf_counter()
    engine = RolloutEngine(folder, model["architectures"][0], config, dtype, 0)
    say(part, "start, seconds", time.perf_counter() - began)
    runner = engine._engine.vllm_config.use_v2_model_runner
    say(part, "vLLM's V2 model runner", runner, "True" if given.gpu else "", runner if given.gpu else None)
    began = time.perf_counter()
    try:
        worst = check(engine, folder, dtype)
        say(part, "self-check: difference from transformers, nats", worst, "within its limits", True)
    except RoutingMismatch as mismatch:
        say(part, "self-check", str(mismatch), "within its limits", False)
    say(part, "self-check, seconds", time.perf_counter() - began)

    weights = {name: weight.detach() for name, weight in load_pretrained(folder, dtype).named_parameters()}
    began = time.perf_counter()
    for k in range(layers):
        block = {name: weight for name, weight in weights.items() if name.startswith(f"model.layers.{k}.")}
        engine.push(f"layer-{k:02d}", 1, block).result(60)
    say(part, "push of a layer, ms", 1000 * (time.perf_counter() - began) / layers)
    began = time.perf_counter()
    engine.push_parts("full", 1, ({name: weights[name] for name in names} for names in in_parts(weights)))
    say(part, "push of the whole model by blocks, seconds", time.perf_counter() - began)

    if engine.cuda_graphs:
        began = time.perf_counter()
        engine.capture().result(120)
        say(part, "capture of all sizes, seconds", time.perf_counter() - began)

    runs = [f"layer-{k:02d}" for k in range(layers)]
    mixes = {"base": [None], "one run": runs[:1], f"{layers} runs": runs, f"{layers} runs and full": [*runs, "full"]}
    found = {}
    for sequences in SEQUENCES[given.device]:
        rate(engine, [None], sequences, 8, vocabulary)
        for name, mix in mixes.items():
            speed = rate(engine, mix, sequences, TOKENS[given.device], vocabulary)
            found[f"{name}, {sequences}"] = speed
            say(part, f"{name}, {sequences} sequences: tokens/s", speed)
    if engine.cuda_graphs:
        replays = engine.replays().result()
        say(part, "batches that were replays", replays, "> 0", replays > 0)
    return found | {"layers": layers}


def main() -> None:
    given = setting(__doc__)
    (given.scratch / "rates.json").write_text(json.dumps(measure(given, "engine")))


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
