"""What a KV cache in FP8 does to log-probabilities: the engine's against transformers', a real model of 135 M
parameters (SmolLM2).

The engine is vLLM on a CPU, whose kernels round keys and values towards zero; on GPUs they are rounded to the nearest,
which no engine here does, so those rows are transformers' forward with keys and values rounded so, against the one
without, on the same responses. Each row: the difference of log-probabilities in nats; the shares of tokens whose
importance weight is outside of .8 to 1.2, and above the cap of token_truncate; and the share of the sample that the
weights leave, (sum w)^2 / (n sum w^2).

    python -m tests.benchmarks.fp8_cache [float32|bfloat16] [TOKENS]
"""

import sys

import numpy as np

from tests.benchmarks.common import print_table

PROMPTS = [
    "What is 47 + 38?", "Explain why the sky is blue.", "Write a short poem about a river.", "Count from 1 to 30.",
    "A train goes 60 km in 45 minutes. How fast is it?", "List the planets by size.", "What is a prime number?",
    "Write a Python function that reverses a list.",
]  # fmt: skip
SAMPLES = 3
CAP = 2.0
"""Of importance weights, `algorithm.importance_cap` by default."""


def row(name: str, difference: np.ndarray) -> list[str]:
    size, weight = np.abs(difference), np.exp(difference)
    truncated = np.minimum(weight, CAP)
    effective = truncated.mean() ** 2 / (truncated**2).mean()
    shares = ((weight < 0.8) | (weight > 1.2)).mean(), (weight > CAP).mean(), effective
    return [name, f"{size.mean():.2g}", f"{np.quantile(size, 0.99):.2g}", *(f"{100 * share:.2g} %" for share in shares)]


def main() -> None:
    import torch
    from transformers import AutoTokenizer

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine import fp8_cache
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.engine.plain_forward import ChangedWeights, PlainForward, ScoredResponse
    from layersweep.rollout.types import Sampling
    from layersweep.workers.startup.gguf_model import gguf_folder

    dtype = sys.argv[1] if len(sys.argv) > 1 else "bfloat16"
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 192
    folder = str(gguf_folder("smollm2"))
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), PlainForward(folder, dtype)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    prompts = [
        np.array(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False), np.int32)
        for chat in chats
    ]
    base = ChangedWeights(plain.weights, {}, seed=0)

    def forward(responses: list[ScoredResponse], attention: str) -> np.ndarray:
        return torch.cat(plain.logprobs(responses, getattr(torch, dtype), attention)).numpy()

    rows = []
    for cache in ("auto", "fp8"):
        config = RolloutConfig(batching="mixed", max_num_seqs=24, max_model_len=1024, kv_cache_dtype=cache)
        engine = RolloutEngine(folder, plain.model.config.architectures[0], config, dtype, seed=0)
        sampling = Sampling(SAMPLES, max_tokens=tokens, stop_token_ids=(tokenizer.eos_token_id,), logprobs=True)
        done = engine.generate(None, 0, prompts, list(range(len(prompts))), sampling).result()
        answers = np.split(done.tokens, np.cumsum(done.lengths)[:-1])
        responses = [ScoredResponse(base, prompts[i // SAMPLES], answer) for i, answer in enumerate(answers)]
        trainer = forward(responses, plain.attention)
        rows.append(row(f"engine, {cache}, {len(done.tokens)} tokens", trainer - done.logprobs))
    for name, attention in (
        ("forward, towards zero", fp8_cache.TOWARDS_ZERO), ("forward, nearest", fp8_cache.NEAREST),
        ("forward, nearest, queries too", fp8_cache.NEAREST_QUERIES_TOO),
    ):  # fmt: skip
        rows.append(row(name, trainer - forward(responses, attention)))
    print_table(f"SmolLM2-135M, {dtype}", ["", "mean", "99 %", "outside .8 to 1.2", "above 2", "effective"], rows)


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
