"""vLLM by itself on the same model, with CUDA graphs: what the engine's mixed batches are measured against."""

import json
import time
from typing import Any

from tests.gpu.common import setting
from tests.gpu.engine import PROMPT, SEQUENCES, TOKENS
from tests.gpu.findings import say


def rate(engine: Any, sequences: int, tokens: int, vocabulary: int) -> float:
    """Return tokens a second."""
    import numpy as np
    from vllm import SamplingParams

    rng = np.random.default_rng(0)
    prompts = [{"prompt_token_ids": rng.integers(2, vocabulary, PROMPT).tolist()} for _ in range(sequences)]
    params = SamplingParams(max_tokens=tokens, logprobs=0, ignore_eos=True, detokenize=False, seed=1)
    began = time.perf_counter()
    done = engine.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in done) / (time.perf_counter() - began)


def main() -> None:
    given = setting(__doc__)
    from vllm import LLM

    folder, model = given.model()
    few, many = SEQUENCES[given.device]
    memory = {"gpu_memory_utilization": 0.6} if given.gpu else {"kv_cache_memory_bytes": 64 << 20, "block_size": 32}
    graphs = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}} if given.gpu else {
        "enforce_eager": True
    }  # fmt: skip
    engine = LLM(
        folder, skip_tokenizer_init=True, dtype="bfloat16" if given.gpu else "float32", max_num_seqs=many,
        max_model_len=512, **memory, **graphs,
    )  # fmt: skip
    tokens, found = TOKENS[given.device], {}
    for sequences in (8, many):
        rate(engine, sequences, 8, model["vocab_size"])
        found[sequences] = rate(engine, sequences, tokens, model["vocab_size"])
        say("plain", f"{sequences} sequences: tokens/s", found[sequences])
    for kind in ("rates", "graph_rates"):
        if (rates := given.scratch / f"{kind}.json").is_file():
            compare(json.loads(rates.read_text()), found, few, many, ", CUDA graphs" if kind == "graph_rates" else "")


def compare(mixed: dict[str, float], found: dict[int, float], few: int, many: int, how: str) -> None:
    """Hold mixed batches against plain vLLM, by sequences: all at once, and an engine a run one after the other."""
    layers = mixed["layers"]
    share = mixed[f"{layers} runs, {many}"] / found[many]
    say("plain", f"{layers} runs mixed{how}, {many} sequences, of plain vLLM's base", share, ">= 0.8", share >= 0.8,
        must=False)  # fmt: skip
    # One engine after the other: each run's eight sequences alone, at the speed of a plain engine.
    speedup = mixed[f"{layers} runs, {few}"] / found[8]
    say("plain", f"{layers} runs mixed{how}, {few} sequences, of {layers} engines one after the other with 8 each",
        speedup, ">= 6", speedup >= 6, must=False)  # fmt: skip


if __name__ == "__main__":
    main()
    import os

    os._exit(0)
