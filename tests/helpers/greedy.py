"""Greedy answers of one vLLM engine, as JSON: two engines do not fit into one process, so tests run this as one.

    python -m tests.helpers.greedy PROMPTS plain FOLDER            an ordinary vLLM on a model's folder
    python -m tests.helpers.greedy PROMPTS overlay FOLDER WEIGHTS  a sweep's engine that serves WEIGHTS over the base

PROMPTS is JSON, a list of lists of token ids; printed is a list of [tokens, log-probabilities], one per prompt.
"""

import json
import os
import sys

from layersweep.workers.startup.environment import worker_environment

TOKENS = 12


def plain(prompts: list[list[int]], folder: str) -> list:
    from vllm import LLM, SamplingParams

    # Left to itself vLLM serves a float32 folder in 16 bits.
    model = LLM(
        folder, dtype="float32", enforce_eager=True, block_size=32, kv_cache_memory_bytes=64 << 20, max_model_len=128
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=0)
    done = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    answers = [output.outputs[0] for output in done]
    return [
        [list(a.token_ids), [step[token].logprob for step, token in zip(a.logprobs, a.token_ids, strict=True)]]
        for a in answers
    ]


def overlay(prompts: list[list[int]], folder: str, weights: str) -> list:
    import numpy as np
    from safetensors.torch import load_file

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.types import Sampling

    engine = RolloutEngine(folder, "Qwen3ForCausalLM", RolloutConfig(max_model_len=128), "float32", seed=0)
    engine.push("run", 1, load_file(weights)).result(timeout=60)
    sampling = Sampling(temperature=0.0, max_tokens=TOKENS, logprobs=True)
    asked = [np.array(prompt, np.int32) for prompt in prompts]
    done = engine.generate("run", 1, asked, [0] * len(asked), sampling).result(timeout=60)
    ends = np.cumsum(done.lengths)[:-1]
    answers = zip(np.split(done.tokens, ends), np.split(done.logprobs, ends), strict=True)
    return [[tokens.tolist(), logprobs.tolist()] for tokens, logprobs in answers]


if __name__ == "__main__":
    os.environ.update(worker_environment(gpu=False))
    prompts, how, *paths = sys.argv[1:]
    print(json.dumps({"plain": plain, "overlay": overlay}[how](json.loads(prompts), *paths)), flush=True)
    os._exit(0)  # the engine's thread never ends
