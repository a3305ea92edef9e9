"""Self-check before the first rollout: engine and trainer compute what transformers does from the same weights.

Routing can fail silently (seen: a normalisation layer that kept the base's weights, a compiled graph that served the
base to every run), and a trainer can compute another model than the checkpoint's (seen: a rotary embedding that it does
not know); then every number of a sweep would be wrong without an error. So an engine serves the base and changed
weights of the first, the middle and the last block, of a part of one and of the whole model, all in one batch, and its
log-probabilities are compared with those of transformers' own forward from the same weights; so are the trainer's, of
the base.

What is compared is the root mean square, over a run's response tokens, of the difference in nats.

**Limits.** Two right programs differ by rounding alone. What rounding does to this model is measured: the plain forward
is computed in bfloat16 beside float32, and their difference r has in it the model's depth, its logits' size, and how
much its blocks amplify an error. Rounding errors are small, so they scale with the dtype's unit roundoff u (2^-8 for
bfloat16, 2^-11 for float16, 2^-24 for float32): r u / 2^-8 is expected in the engine's dtype. In float32 the sums of
matrix products round as well, where half precision sums in float32: for n terms of either sign that makes sqrt(n) times
as much (Higham, Accuracy and Stability of Numerical Algorithms, section 2.8), with n the hidden size. In any
dtype log-probabilities are float32 numbers, which are 2^-23 of their size apart. Allowed is `ALLOWANCE` times what is
expected. SmolLM2-135M: expected .08 (bfloat16) and 3e-5 nats (float32); seen .04 to .11 and
5e-6 to 1.4e-5.

**KV cache in FP8** (`rollout.kv_cache_dtype`). The plain forward rounds keys and values as the cache does. What is left
is that a number which rounding puts on the other side of a boundary is off by a whole step of FP8. How much that makes
in all is measured likewise, in bfloat16 beside float32, both with such a cache, and taken as it is for every dtype: in
a finer one there are fewer such numbers, but one makes more of them in the blocks above. That extrapolates nothing, and
is a sum of many parts, so allowed is `CACHE_ALLOWANCE` times as much. On GPUs kernels round queries and attention
weights too, or do not; there the difference that rounding queries makes to the plain forward counts besides. The
trainer has no cache, and is held to the limits without one. SmolLM2-135M in bfloat16: expected .43 to .72, seen .17 to
.70, another run's weights at the middle block 1.2; so of real models only faults of that size are found.

**Changes.** One block is moved by half of its weights' own size, which is far above rounding in any dtype, yet no
chaos, since the blocks around it are the base's (by all of it, block 0 of SmolLM2 makes 20 times as much of rounding).
The last block, after which nothing amplifies, is moved by all of it: in a model that was never trained a block adds
little. In the run of the whole model all blocks are moved by a twentieth, as training could, and embedding, final norm
and LM head by a quarter.

**Control.** The same comparison with another run's weights must exceed the limit by `MARGIN`; else the check could not
have seen a mistake, and says so.
"""

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Trunk
from layersweep.rollout.types import Completions, Sampling

from .engine import RolloutEngine
from .fp8_cache import NEAREST, NEAREST_QUERIES_TOO
from .plain_forward import BLOCK, ChangedWeights, PlainForward, ScoredResponse

logger = logging.getLogger(__name__)

FLOAT32_STEP = 2.0**-23
"""Distance between neighbouring float32 numbers, relative to their size."""
ALLOWANCE = 4.0
"""Difference from the plain forward that is allowed, as a multiple of the expected rounding error."""
CACHE_ALLOWANCE = 1.5
"""The same, of what a KV cache in FP8 makes of rounding errors."""
MARGIN = 1.5
"""Difference that another run's weights must make at least, as a multiple of the limit."""
BLOCK_CHANGE, LAST_BLOCK_CHANGE, ALL_BLOCKS_CHANGE, OUTER_CHANGE = 0.5, 1.0, 0.05, 0.25
"""Shares of a weight's size by which it is moved: in one block; in the last; in every block of the whole model, and in
that run outside of blocks."""
NOT_IN_PART = ("k_proj", "up_proj", "post_attention_layernorm", "q_norm")
"""Modules of the last block that the run over a part of it leaves alone: two whose weights vLLM fuses with those of
others, and two norms."""
PROMPT_TOKENS = (12, 34)
"""Lengths of the two prompts. The second is longer than a block of the KV cache, so that a cached prefix of other
weights would be used."""
RESPONSE_TOKENS = 12


class RoutingMismatch(RuntimeError):
    """Error: engine or trainer compute something else than what they were given, or the check cannot tell."""


def check(engine: RolloutEngine, folder: str, dtype: str, full: bool = True, trust_remote_code: bool = False) -> float:
    """Compare the engine's and the trainer's forward with transformers'; return the largest difference, in nats (rms).

    Args:
        engine: with nothing to do.
        folder: of the checkpoint that it serves.
        dtype: of its weights, a torch dtype's name.
        full: also a run of the whole model, which takes the engine as much memory as the base.

    Raises:
        RoutingMismatch: a path differs from the plain forward, or could not be told from another run's.
    """
    plain = PlainForward(folder, dtype, trust_remote_code, engine.kv_cache_dtype)
    runs = _changed_weights(plain, full)
    random = np.random.default_rng(0)
    vocabulary = plain.model.config.vocab_size
    prompts = [random.integers(0, vocabulary, length).astype(np.int32) for length in PROMPT_TOKENS]
    try:
        completions = _serve(engine, runs, prompts)
    finally:
        for run in filter(None, runs):
            engine.drop(run).result()

    own = {run: _responses(weights, prompts, completions[run]) for run, weights in runs.items()}
    first, *_, last = runs.values()
    others = {run: _responses(last if run is None else first, prompts, completions[run]) for run in runs}
    exact, limits = _exact_and_limits(plain, own, dtype)
    of_others = _logprobs(plain, others, torch.bfloat16)
    worst = 0.0
    for run, limit in limits.items():
        served = torch.from_numpy(completions[run].logprobs.copy())
        difference, control = _rms(served - exact[run]), _rms(of_others[run] - exact[run])
        worst = max(worst, difference)
        _require(difference, limit, f"the engine's {run or 'base'}")
        # A part moves less than its block, for which the same is required.
        if run != "selfcheck-part" and not control > MARGIN * limit:
            raise RoutingMismatch(
                f"the self-check cannot tell {run or 'base'} from another run: their log-probabilities differ by "
                f"{control:.2g} nats, and rounding may make {limit:.2g}"
            )
    logger.info("self-check: %.2g nats at most from transformers (limits from %.2g)", worst, min(limits.values()))
    if plain.cache_attention != plain.attention:
        exact, limits = _exact_and_limits(plain, {None: own[None]}, dtype, plain.attention)
    trained = _trainer_logprobs(plain, prompts, completions[None])
    difference = _rms(trained - exact[None])
    _require(difference, limits[None], "the trainer's base")
    return max(worst, difference)


def check_served(
    plain: PlainForward,
    dtype: str,
    responses: Mapping[str | None, list[ScoredResponse]],
    served: Mapping[str | None, Tensor],
) -> float:
    """Compare an engine's log-probabilities with transformers'; return the largest difference, in nats (rms).

    Args:
        dtype: of the engine's weights.
        responses: of each model, with its weights.
        served: the engine's log-probabilities [tokens of all its responses].

    Raises:
        RoutingMismatch: a model differs from the plain forward.
    """
    exact, limits = _exact_and_limits(plain, responses, dtype)
    differences = {name: _rms(served[name] - exact[name]) for name in responses}
    for name, difference in differences.items():
        _require(difference, limits[name], f"the engine's {name or 'base'}")
    return max(differences.values())


def _changed_weights(plain: PlainForward, full: bool) -> dict[str | None, ChangedWeights]:
    """Make the weights of each run that is checked; None is the base."""
    count = plain.model.config.num_hidden_layers
    runs: dict[str | None, ChangedWeights] = {None: ChangedWeights(plain.weights, {}, seed=0)}
    part = [
        name
        for name in plain.weights
        if name.startswith(BLOCK.format(count - 1)) and name.split(".")[-2] not in NOT_IN_PART
    ]
    runs["selfcheck-part"] = ChangedWeights(plain.weights, dict.fromkeys(part, LAST_BLOCK_CHANGE), seed=count + 1)
    for k in sorted({0, count // 2, count - 1}):
        change = LAST_BLOCK_CHANGE if k == count - 1 else BLOCK_CHANGE
        amounts = {name: change for name in plain.weights if name.startswith(BLOCK.format(k))}
        runs[f"selfcheck-{k}"] = ChangedWeights(plain.weights, amounts, seed=k)
    if full:
        blocks = BLOCK.split("{")[0]
        amounts = {name: ALL_BLOCKS_CHANGE if name.startswith(blocks) else OUTER_CHANGE for name in plain.weights}
        runs["selfcheck-full"] = ChangedWeights(plain.weights, amounts, seed=count)
    return runs


def _serve(
    engine: RolloutEngine, runs: Mapping[str | None, ChangedWeights], prompts: list[np.ndarray]
) -> dict[str | None, Completions]:
    """Generate responses of every run to the same prompts, in one batch.

    The middle run has served other weights just before: its second version must not meet what they left behind. With
    CUDA graphs, prompts are computed as ever and responses by replays.
    """
    sampling = Sampling(samples=1, max_tokens=RESPONSE_TOKENS, logprobs=True)
    names = [run for run in runs if run]
    updated = names[len(names) // 2]
    for run in names:
        if run == updated:
            weights = runs[run]
            engine.push(run, 1, ChangedWeights(weights.base, weights.amounts, weights.seed + 1000)).result()
            engine.generate(run, 1, prompts, [0, 1], sampling).result()
        engine.push(run, 1 + (run == updated), runs[run]).result()
    versions = {run: 0 if run is None else 1 + (run == updated) for run in runs}
    if engine.cuda_graphs:
        engine.capture().result()
        before = engine.replays().result()
    futures = {run: engine.generate(run, versions[run], prompts, [0, 1], sampling) for run in runs}
    completions = {run: future.result() for run, future in futures.items()}
    if engine.cuda_graphs and engine.replays().result() == before:
        raise RoutingMismatch("the self-check cannot tell: no batch was the replay of a CUDA graph")
    return completions


def _responses(weights: ChangedWeights, prompts: list[np.ndarray], done: Completions) -> list[ScoredResponse]:
    responses = np.split(done.tokens, np.cumsum(done.lengths)[:-1])
    return [ScoredResponse(weights, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _logprobs(
    plain: PlainForward,
    responses: Mapping[str | None, list[ScoredResponse]],
    dtype: torch.dtype,
    attention: str | None = None,
) -> dict[str | None, Tensor]:
    """Return each run's log-probabilities [tokens of all its responses]."""
    found = iter(plain.logprobs([response for several in responses.values() for response in several], dtype, attention))
    return {run: torch.cat([next(found) for _ in several]) for run, several in responses.items()}


@torch.no_grad()
def _trainer_logprobs(plain: PlainForward, prompts: list[np.ndarray], done: Completions) -> Tensor:
    """Return the base's log-probabilities [tokens] as the trainer computes them; turns the plain model into a trunk."""
    trunk = Trunk(plain.model)
    found = torch.empty(len(done.tokens))
    for batch in pack(prompts, done.tokens, done.lengths, range(len(prompts)), max_tokens=1 << 20):
        found[batch.token] = trunk.reference(batch, trunk.prefix(batch, 0), 0, temperature=1.0)
    return found


def _exact_and_limits(
    plain: PlainForward, responses: Mapping[str | None, list[ScoredResponse]], dtype: str, attention: str | None = None
) -> tuple[dict[str | None, Tensor], dict[str | None, float]]:
    """Return each run's log-probabilities in float32, and the difference from them that rounding explains, in nats.

    Args:
        attention: of the plain forward, see PlainForward.logprobs.
    """

    def differences(other: dict[str | None, Tensor]) -> dict[str | None, float]:
        overall = _rms(torch.cat(list(other.values())) - torch.cat(list(exact.values())))
        return {run: max(overall, _rms(other[run] - exact[run])) for run in responses}

    exact = _logprobs(plain, responses, torch.float32, attention)
    rounded = differences(_logprobs(plain, responses, torch.bfloat16, attention))
    if (attention or plain.cache_attention) != plain.attention:
        if plain.cache_attention == NEAREST:
            queries = differences(_logprobs(plain, responses, torch.float32, NEAREST_QUERIES_TOO))
            rounded = {run: math.hypot(rounded[run], queries[run]) for run in responses}
        return exact, {run: CACHE_ALLOWANCE * difference for run, difference in rounded.items()}
    scale = _rounding_scale(dtype, plain.model.config.hidden_size)
    expected = {run: scale * difference for run, difference in rounded.items()}
    return exact, {run: ALLOWANCE * (expected[run] + FLOAT32_STEP * _rms(exact[run])) for run in responses}


def _rounding_scale(dtype: str, terms: int) -> float:
    """Return rounding in `dtype` over rounding in bfloat16, for matrix products of so many terms."""
    ratio = 2.0 ** {"bfloat16": 0, "float16": -3, "float32": -16}[dtype]
    return ratio * math.sqrt(terms) if dtype == "float32" else ratio


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _require(difference: float, limit: float, which: str) -> None:
    if not difference <= limit:  # NaN neither
        raise RoutingMismatch(
            f"{which}: log-probabilities differ by {difference:.2g} nats (root mean square) from transformers' own "
            f"forward; rounding explains {limit:.2g}"
        )
