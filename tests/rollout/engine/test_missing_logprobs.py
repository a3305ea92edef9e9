"""Log-probabilities that vLLM does not give: NaN at their tokens, and the others stay where they belong."""

import math

import numpy as np
import pytest

INF = math.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([-0.5, -0.25, -1.0], [-0.5, -0.25, -1.0]),
        ([-0.5, None, -INF], [-0.5, math.nan, -INF]),
        ([-0.5], [-0.5, math.nan, math.nan]),
        ([], [math.nan] * 3),
        (None, [math.nan] * 3),
    ],
)
def test_a_token_without_a_logprob(given, expected):
    from vllm.logprobs import FlatLogprobs, Logprob
    from vllm.outputs import CompletionOutput

    from layersweep.rollout.engine.request import token_logprobs

    flat = None if given is None else FlatLogprobs()
    for token, logprob in enumerate(given or ()):
        flat.append(None if logprob is None else {token: Logprob(logprob)})
    output = CompletionOutput(0, "", [0, 1, 2], None, flat)
    np.testing.assert_array_equal(np.array(token_logprobs(output)), expected)
