"""Before the first rollout: does every routed path compute what a plain forward computes?

Routing can fail silently (seen: a normalisation layer that kept the base's weights, a compiled graph that served
the base to everybody), and then every number of a sweep would be wrong without an error. So an engine serves
noisy overlays of the first, the middle and the last block and of the whole model in one batch with the base, and
must agree with transformers on every path, and disagree with it about other weights than the path's own.
"""

import numpy as np
import torch

from layersweep.policies.model.pretrained import load_pretrained
from layersweep.rollout.types import Sampling

from .engine import RolloutEngine

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.05}
"""Nats that engine and plain forward may differ by at most; kernels differ, weights must not."""
ROUNDING = {"float32": 0.0, "bfloat16": 0.1, "float16": 0.1}
"""And on top, as a share of what other weights would make of the same tokens: in half precision the noise that sets a
path apart makes its rounding larger too (0.1 nats and more for a deep model that is noisy all over)."""


class RoutingMismatch(RuntimeError):
    """The engine does not serve what it was given; it must not be used."""


@torch.no_grad()
def check(engine: RolloutEngine, folder: str, dtype: str, whole: bool = True, trust_remote_code: bool = False) -> float:
    """Returns the largest difference seen, in nats.

    Args:
        whole: also of a run of the whole model, which takes a GPU as much memory as the base.

    Raises:
        RoutingMismatch: a path differs from a plain forward, or its own control does not.
    """
    base = load_pretrained(folder, dtype, trust_remote_code)
    count = base.config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)
    paths: dict[str | None, dict[str, torch.Tensor]] = {None: {}}
    for k in sorted({0, count // 2, count - 1}):
        paths[f"selfcheck-{k}"] = _noisy(base, f"model.layers.{k}.", generator)
    if whole:
        paths["selfcheck-full"] = _noisy(base, "", generator)
    for run, weights in paths.items():
        if run:
            engine.push(run, 1, weights).result()
    prompts = [np.random.default_rng(0).integers(0, base.config.vocab_size, n).astype(np.int32) for n in (5, 37)]
    sampling = Sampling(samples=1, max_tokens=4, logprobs=True)
    futures = {run: engine.generate(run, int(run is not None), prompts, [0, 1], sampling) for run in paths}
    done = {run: future.result() for run, future in futures.items()}
    worst = 0.0
    *_, noisiest = paths.values()
    for run, weights in paths.items():
        others = {} if run else noisiest
        own, control = (_difference(base, state, prompts, done[run]) for state in (weights, others))
        worst = max(worst, own)
        if own > TOLERANCE[dtype] + ROUNDING[dtype] * control:
            raise RoutingMismatch(f"{run or 'base'}: log-probabilities differ by {own:.2g} nats from a plain forward")
        if control < 2 * TOLERANCE[dtype]:
            raise RoutingMismatch(
                f"{run or 'base'}: served with others' weights (differs from these by {control:.2g} nats only)"
            )
    for run in paths:
        if run:
            engine.drop(run).result()
    return worst


def _noisy(base: torch.nn.Module, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The weights below `prefix`, each moved by half of its own spread: far outside any tolerance."""
    moved = {}
    for name, weight in base.named_parameters():
        if name.startswith(prefix):
            noise = torch.randn(weight.shape, generator=generator)
            moved[name] = weight + (0.5 * weight.float().std(correction=0).clamp(min=0.1) * noise).to(weight.dtype)
    return moved


def _difference(base: torch.nn.Module, state: dict[str, torch.Tensor], prompts: list[np.ndarray], done) -> float:
    """Largest difference in nats between the engine's and this state's log-probabilities of the same tokens."""
    starts = np.cumsum(done.lengths)[:-1]
    worst = 0.0
    for prompt, answer, given in zip(
        prompts, np.split(done.tokens, starts), np.split(done.logprobs, starts), strict=True
    ):
        ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
        logits = torch.func.functional_call(base, state, (ids,)).logits[0, len(prompt) - 1 : -1].float()
        logp = torch.log_softmax(logits, -1)[range(len(answer)), torch.from_numpy(answer).long()]
        worst = max(worst, float((logp - torch.from_numpy(given.copy())).abs().max()))
    return worst
