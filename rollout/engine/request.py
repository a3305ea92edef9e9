"""A request to the engine while its responses are written, and what its caller gets of them."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.outputs import CompletionOutput

from layersweep.rollout.types import Completions, Sampling


@dataclass
class EngineRequest:
    """Request for `prompts` x `sampling.samples` responses of one run."""

    run: str | None
    version: int
    prompts: Sequence[np.ndarray]
    seeds: Sequence[int]
    sampling: Sampling
    done: Future
    outputs: list[Any]
    missing: int
    names: list[str] = field(default_factory=list)
    """Names of its requests within vLLM."""
    cpu_seconds: float = 0.0

    def completions(self) -> Completions:
        """Return its responses, once none is missing."""
        outputs = self.outputs
        lengths = np.fromiter((len(o.token_ids) for o in outputs), np.int32, len(outputs))
        total = int(lengths.sum())
        tokens = np.fromiter((t for o in outputs for t in o.token_ids), np.int32, total)
        logprobs = np.empty(0, np.float32)
        if self.sampling.logprobs:
            logprobs = np.fromiter((x for o in outputs for x in token_logprobs(o)), np.float32, total)
        finished = np.fromiter((o.finish_reason == "stop" for o in outputs), bool, len(outputs))
        return Completions(tokens, logprobs, lengths, finished, self.version, self.cpu_seconds)


def uncancelled() -> Future:
    """Return a future that a caller cannot cancel: a result for a caller that is gone must not stop the engine."""
    future: Future = Future()
    future.set_running_or_notify_cancel()
    return future


def token_logprobs(output: CompletionOutput) -> Sequence[float]:
    """Return the log-probability of each token; NaN where vLLM gives none, which costs the token and not the run."""
    tokens, flat = len(output.token_ids), output.logprobs
    if flat is not None and len(flat.logprobs) == len(flat.start_indices) == tokens:  # as a rule
        return flat.logprobs
    found = [math.nan] * tokens
    for place, (start, end) in enumerate(zip(flat.start_indices, flat.end_indices, strict=True) if flat else ()):
        if start < end and place < tokens:
            found[place] = flat.logprobs[start]
    return found
