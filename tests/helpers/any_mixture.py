"""One capture, many batches: runs of every kind in changing numbers, under new weights, and one in another's place."""

import re
from typing import Any

import numpy as np

SHARES = {
    "block": (r"layers\.1\.", 0.5),
    "same-block": (r"layers\.1\.", 0.4),
    "part": (r"layers\.2\.(self_attn\.q_proj|mlp\.down_proj|input_layernorm)", 1.0),
    "norms": (r"layers\.0\..*norm", 0.5),
    "outside": (r"lm_head|model\.norm", 0.3),
    "embedding": (r"embed_tokens", 0.3),
    "full": (r".", 0.05),
}
"""Weights that each run changes, and by what share of their size."""


def serve(engine: Any, folder: str) -> dict[str, Any]:
    """Return the largest difference from transformers, of any token in any batch, and what it took.

    Keys: `mixture` and `mixture_control`, the latter against the base's weights, the least of any run; `captures` of
    the batches after the first; `replays`; `preemptions`.
    """
    import torch
    from vllm.compilation.counter import compilation_counter
    from vllm.v1.core.sched.scheduler import Scheduler

    from layersweep.rollout.engine.plain_forward import ChangedWeights, PlainForward, ScoredResponse
    from layersweep.rollout.types import Sampling

    plain, rng, preempted = PlainForward(folder, "float32"), np.random.default_rng(2), []
    base = ChangedWeights(plain.weights, {}, seed=0)
    weights: dict[str | None, ChangedWeights] = {None: base}
    versions: dict[str | None, int] = {None: 0}
    preempt = Scheduler._preempt_request
    Scheduler._preempt_request = lambda *args, **kwargs: preempted.append(1) or preempt(*args, **kwargs)

    def push(run: str, kind: str, seed: int) -> None:
        pattern, share = SHARES[kind]
        changed = {name: share for name in plain.weights if re.search(pattern, name)}
        weights[run] = ChangedWeights(plain.weights, changed, seed)
        versions[run] = versions.get(run, 0) + 1
        engine.push(run, versions[run], weights[run]).result(60)

    def largest(counts: dict[str | None, int], tokens: int) -> tuple[float, float]:
        prompts = {run: [rng.integers(2, 32, 20).astype(np.int32) for _ in range(n)] for run, n in counts.items()}
        sampling = Sampling(1, max_tokens=tokens, logprobs=True)
        waiting = {
            run: engine.generate(run, versions[run], mine, list(range(len(mine))), sampling)
            for run, mine in prompts.items()
        }
        off, others = [], []
        for run, future in waiting.items():
            done = future.result(300)
            pairs = zip(prompts[run], np.split(done.tokens, np.cumsum(done.lengths)[:-1]), strict=True)
            both = [(ScoredResponse(weights[run], *pair), ScoredResponse(base, *pair)) for pair in pairs]
            served = torch.from_numpy(done.logprobs.copy())
            for scored, found in zip(zip(*both, strict=True), (off, others), strict=True):
                found.append(float((torch.cat(plain.logprobs(scored, torch.float32)) - served).abs().max()))
        return max(off), min(other for run, other in zip(waiting, others, strict=True) if run)

    for seed, kind in enumerate(SHARES):
        push(kind, kind, seed)
    engine.capture().result(120)
    captured, replayed = compilation_counter.num_gpu_runner_capture_triggers, engine.replays().result()
    found = [largest(dict.fromkeys(weights, 1), 6)]
    found.append(largest({"full": 5, "block": 1, None: 3, "embedding": 2}, 6))
    push("block", "block", 20)
    engine.drop("same-block").result(60)
    del weights["same-block"]
    push("later", "same-block", 21)
    found.append(largest({run: i % 3 + 1 for i, run in enumerate(weights)}, 6))
    found.append(largest(dict.fromkeys(weights, 3), 70))  # more than the cache holds
    Scheduler._preempt_request = preempt
    for run in filter(None, weights):
        engine.drop(run).result(60)
    return {
        "mixture": max(off for off, _ in found),
        "mixture_control": min(other for _, other in found),
        "captures": compilation_counter.num_gpu_runner_capture_triggers - captured,
        "replays": engine.replays().result() - replayed,
        "preemptions": len(preempted),
    }


def self_check_without_rows(engine: Any, folder: str) -> str:
    """Return what the self-check says of an engine whose replays all see the rows of the first."""
    from layersweep.rollout.engine.selfcheck import RoutingMismatch, check
    from layersweep.rollout.engine.weight_slots import WeightSlots

    fill, WeightSlots.fill = WeightSlots.fill, lambda self, routing, rows: None
    try:
        check(engine, folder, "float32")
        return ""
    except RoutingMismatch as mismatch:
        return str(mismatch)
    finally:
        WeightSlots.fill = fill
