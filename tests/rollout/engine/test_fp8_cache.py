"""A KV cache in FP8: the self-check's plain forward rounds as vLLM does, and planted faults are still refused."""

import numpy as np
import pytest
import torch

from layersweep.rollout.engine.fp8_cache import NEAREST, NEAREST_QUERIES_TOO, to_fp8
from layersweep.rollout.engine.plain_forward import ChangedWeights, PlainForward, ScoredResponse
from layersweep.rollout.engine.selfcheck import RoutingMismatch, check_served
from tests.rollout.engine.test_selfcheck import faults, save

SMALLEST = (
    "the head of full is the base's",
    "the final norm of full is the base's",
    "what a part is fused with is lost",
)
"""Faults that make the least difference."""

needs_avx512 = pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM has no FP8 cache on this CPU")


def test_numbers_of_fp8():
    """Three bits after the leading one: from 1 to 2 in steps of 1/8, ties to even. The largest is 448, the least above
    zero 2^-9, below 2^-6 in steps of that."""
    x = torch.tensor([1.05, 1.0625, 1.07, -1.24, 1000.0, -460.0, 0.0019, 0.005, 0.0])
    assert to_fp8(x).tolist() == [1, 1, 1.125, -1.25, 448, -448, 2**-9, 3 * 2**-9, 0]
    assert to_fp8(x, towards_zero=True).tolist() == [1, 1, 1, -1.125, 448, -448, 0, 2 * 2**-9, 0]
    half = x.bfloat16()
    assert to_fp8(half).dtype == torch.bfloat16 and to_fp8(half, True).tolist()[3] == -1.125


@needs_avx512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vllm_on_a_cpu_rounds_towards_zero(dtype):
    """Its own kernel, over all sizes of numbers, those without a fitting one among them."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    torch.manual_seed(0)
    value = (torch.randn(64, 2, 32) * 10 ** torch.linspace(-4, 3, 64)[:, None, None]).to(dtype)
    cache = torch.zeros(2, 2, 32, 64, dtype=torch.uint8)
    keys, values = cache.view(2, 2, 64, 32).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(value, value, keys, values, torch.arange(64), "vec", 1.0, 1.0, "fp8")
    found = values.contiguous().view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(
        found.flatten().sort()[0], to_fp8(value, True).float().flatten().sort()[0], rtol=0, atol=0
    )


@pytest.mark.parametrize("attention", [NEAREST, NEAREST_QUERIES_TOO])
def test_kernels_on_gpus_may_round_queries_or_not(tmp_path, attention):
    """No such kernel is here: a forward in bfloat16 stands for the engine. Weights of a block that are a quarter off
    are refused either way."""
    plain = PlainForward(save(tmp_path, "Qwen2"), "bfloat16", kv_cache_dtype="fp8")
    plain.cache_attention = NEAREST  # as on a GPU
    random = np.random.default_rng(0)
    base = ChangedWeights(plain.weights, {}, seed=0)
    amounts = {name: 0.25 for name in plain.weights if name.startswith("model.layers.2.")}
    other = ChangedWeights(plain.weights, amounts, seed=1)
    texts = [(random.integers(2, 512, 20), random.integers(2, 512, 12)) for _ in range(6)]

    def served(weights):
        scored = [ScoredResponse(weights, *text) for text in texts]
        return torch.cat(plain.logprobs(scored, torch.bfloat16, attention))

    responses = {None: [ScoredResponse(base, *text) for text in texts]}
    assert 1e-3 < check_served(plain, "bfloat16", responses, {None: served(base)}) < 0.1
    with pytest.raises(RoutingMismatch, match="rounding explains"):
        check_served(plain, "bfloat16", responses, {None: served(other)})


@needs_avx512
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "most", "chosen"),
    [
        ("Llama", "bfloat16", 0.1, SMALLEST),
        pytest.param("Llama", "bfloat16", 0.1, (), marks=pytest.mark.long),
        pytest.param("Llama", "float32", 1e-5, (), marks=pytest.mark.long),
        pytest.param("Qwen2", "bfloat16", 0.1, (), marks=pytest.mark.long),
    ],
)
def test_planted_faults_are_refused_beside_an_fp8_cache(tmp_path, family, dtype, most, chosen):
    """Real vLLM with the cache in FP8, which by itself moves log-probabilities by .05 to .1 nats: the plain forward
    that rounds alike is followed to within rounding, in float32 to 1e-5, and every fault exceeds the limit."""
    seen = faults(save(tmp_path, family), family, f"{dtype},fp8", *chosen)
    assert max(seen["sound"], seen["again"]) < most
    assert len(seen["refusals"]) == len(chosen) or len(seen["refusals"]) >= 15
    assert [fault for fault, refusal in seen["refusals"].items() if not refusal] == []
