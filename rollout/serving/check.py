"""Check at a server's start: what it serves is what transformers computes from the same weights."""

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest

from layersweep.policies.model.variant_weights import stack_weights
from layersweep.rollout.engine.plain_forward import PlainForward, ReplacedWeights, ScoredResponse
from layersweep.rollout.engine.selfcheck import PROMPT_TOKENS, RESPONSE_TOKENS, check_served

from .run_engine import RunEngine, ServedModel


async def check_models(
    engine: RunEngine, folder: str, dtype: str, models: Sequence[ServedModel], trust_remote_code: bool = False
) -> float:
    """Compare the base, and the first, the middle and the last model, with transformers; return the largest difference.

    Args:
        engine: with the models loaded.
        folder: of the base.
        dtype: of its weights, a torch dtype's name.
        models: those beside the base.
        trust_remote_code: whether code that the folder brings may run.

    Raises:
        RoutingMismatch: a model differs from transformers by more than rounding explains.
    """
    cache = engine.vllm_config.cache_config.cache_dtype
    plain = await asyncio.to_thread(PlainForward, folder, dtype, trust_remote_code, cache)
    chosen: dict[str | None, ServedModel | None] = {None: None}
    chosen |= {models[at].name: models[at] for at in sorted({0, len(models) // 2, len(models) - 1}) if models}
    random = np.random.default_rng(0)
    prompts = [random.integers(0, plain.model.config.vocab_size, length).astype(np.int32) for length in PROMPT_TOKENS]
    given = await asyncio.gather(*(_served(engine, name, prompt) for name in chosen for prompt in prompts))
    answers = iter(given)
    responses, served = {}, {}
    for name, model in chosen.items():
        files = model.files if model else {}
        weights = ReplacedWeights(plain.weights, stack_weights(files, plain.weights) if files else {})
        own = [next(answers) for _ in prompts]
        responses[name] = [
            ScoredResponse(weights, prompt, tokens) for prompt, (tokens, _) in zip(prompts, own, strict=True)
        ]
        served[name] = torch.cat([logprobs for _, logprobs in own])
    return await asyncio.to_thread(check_served, plain, dtype, responses, served)


async def _served(engine: RunEngine, name: str | None, prompt: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Generate a response; return its tokens and their log-probabilities."""
    sampling = SamplingParams(max_tokens=RESPONSE_TOKENS, seed=0, logprobs=0, ignore_eos=True, detokenize=False)
    run = LoRARequest(name, 1, "check") if name else None
    asked = engine.generate(tokens_input(prompt.tolist()), sampling, f"check-{name}-{len(prompt)}", lora_request=run)
    async for output in asked:
        done = output.outputs[0]
    tokens = np.array(done.token_ids, np.int32)
    logprobs = [place[token].logprob for place, token in zip(done.logprobs, tokens.tolist(), strict=True)]
    return tokens, torch.tensor(logprobs)
