"""Measures of the untrained base's layers, from one batch of its own responses."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.model.tree_batch import MicroBatch, pack
from layersweep.policies.model.trunk import Policy, Trunk, run_blocks
from layersweep.policies.selection import MODULES, Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import TrainingConfig

from .half_gradients import half_gradients
from .rollout_batch import RolloutBatch

SKIPPED = {"attention": "self_attn", "mlp": "mlp"}
"""Modules of a block that add to the residual stream, by part."""
FISHER_PROMPTS = 32
"""Prompts that the Fisher information is measured on, each with a backward pass of its own."""


def probe(
    trunk: Trunk, algorithm: PolicyGradient, training: TrainingConfig, experience: Experience,
    further: Sequence[Selection] = (),
) -> list[dict[str, object]]:  # fmt: skip
    """Measure every layer and its attention, MLP and norms.

    It takes the memory of a copy of the model and of two gradients in float32.

    Args:
        experience: responses of the base, as for the first update.
        further: other selections to measure, in layers or outside of them. Of adapters, which are no parameters of the
            base, the number is all that is known of them.

    Returns:
        Rows of probe.parquet without sweep and seed.
    """
    policy = Policy(trunk, Selection.full())
    policy.entropy_gradient = algorithm.entropy_coefficient > 0
    gradients = gradient_sums(RolloutBatch(experience, policy, algorithm, training))
    fisher = fisher_traces(policy, training, experience)
    skipped = skip_losses(trunk, training, experience)
    rows = []
    for selection in dict.fromkeys([*_layers_and_parts(len(trunk.layers)), *further]):
        if not (own := [name for name in gradients if selection.trains(name)]):
            continue
        layer = selection.layers[0] if len(selection.layers) == 1 else None
        facts = {
            "selection": selection.name, "layer": layer, "modules": selection.modules,
            "lora_rank": selection.lora and selection.lora.rank,
        }  # fmt: skip
        if selection.lora:
            weights = policy.named_weights()
            facts["parameters"] = selection.lora.rank * sum(sum(weights[name].shape) for name in own)
        else:
            facts |= gradient_facts(np.sum([gradients[name] for name in own], axis=0))
            facts["fisher_trace"] = sum(fisher[name] for name in own)
            facts["skip_loss"] = skipped.get((layer, selection.modules))
        rows.append(facts)
    return rows


def _layers_and_parts(count: int) -> Iterator[Selection]:
    """Yield every layer and its parts."""
    for k in range(count):
        yield Selection.layer(k)
        yield from (Selection.part((k,), part) for part in MODULES)


def gradient_sums(batch: RolloutBatch) -> dict[str, np.ndarray]:
    """Return by parameter, of the gradients e of the even and o of the odd prompts: entries, e e, o o, e o, and sign(e)
    o + sign(o) e, summed."""
    even, odd = half_gradients(batch)
    return {
        name: np.array([
            e.numel(), _dot(e, e), _dot(o, o), _dot(e, o), _dot(e.sign(), o) + _dot(o.sign(), e),
        ])
        for name, e, o in zip(batch.policy.named_weights(), even, odd, strict=True)
    }  # fmt: skip


def gradient_facts(sums: np.ndarray) -> dict[str, float]:
    """Return columns of probe.parquet from the sums of `gradient_sums`, NaN where a half has no gradient.

    `gain`: AdamW's first step from the gradient g moves a weight by -rate * sign(g), which lowers the loss of another
    batch with the gradient h by rate * sign(g) h to first order. One half makes the step, the other is the other batch,
    and the mean is over both ways: noise gains nothing.
    """
    count, even, odd, both, gain = map(float, sums)
    known = even > 0 and odd > 0
    return {
        "parameters": count,
        "gradient_norm": math.sqrt(max(0.0, even + odd + 2 * both)) / 2 if known else math.nan,
        "gradient_agreement": both / math.sqrt(even * odd) if known else math.nan,
        "first_order_gain": gain / 2 if known else math.nan,
    }


def fisher_traces(policy: Policy, training: TrainingConfig, experience: Experience) -> dict[str, float]:
    """Return by parameter the trace of its block of the policy's Fisher information, E |grad log p(response)|^2: on the
    first response to each of at most FISHER_PROMPTS prompts."""
    rows, weights = first_responses(experience)[:FISHER_PROMPTS], policy.named_weights()
    total = dict.fromkeys(weights, 0.0)
    for row in rows:
        (batch,) = _packed(policy.trunk, training, experience, [row])
        logp, _ = policy(batch, None, training.temperature)
        for name, gradient in zip(weights, torch.autograd.grad(logp.sum(), list(weights.values())), strict=True):
            total[name] += float(gradient.float().square().sum()) / len(rows)
    return total


def first_responses(experience: Experience) -> np.ndarray:
    """Return the rows of the first response to each prompt."""
    return np.unique(experience.group, return_index=True)[1]


@torch.no_grad()
def skip_losses(trunk: Trunk, training: TrainingConfig, experience: Experience) -> dict[tuple[int, str | None], float]:
    """Return by layer and part the rise of the mean negative log-likelihood of the base's responses, in nats a token,
    when it adds nothing to the residual stream: on the first response to each prompt."""
    rows = first_responses(experience)
    risen: dict[tuple[int, str | None], float] = {}
    for batch in _packed(trunk, training, experience, rows):
        hidden = trunk.prefix(batch, 0)
        whole = trunk.reference(batch, hidden, 0, training.temperature)
        for k, block in enumerate(trunk.layers):
            for part in (None, *SKIPPED):
                with adding_nothing(block, SKIPPED.values() if part is None else [SKIPPED[part]]):
                    logp = trunk.reference(batch, hidden, k, training.temperature)
                risen[k, part] = risen.get((k, part), 0.0) + float((whole - logp).double().sum())
            hidden = run_blocks(trunk.model.model, batch, hidden, [block])
    tokens = int(experience.lengths[rows].sum())
    return {which: total / tokens for which, total in risen.items()}


@contextmanager
def adding_nothing(block: nn.Module, modules: Iterable[str]) -> Iterator[None]:
    """Have modules of a block return zeros."""

    def zeros(_module: nn.Module, _inputs: object, output: Tensor | tuple) -> Tensor | tuple:
        return torch.zeros_like(output) if isinstance(output, Tensor) else (torch.zeros_like(output[0]), *output[1:])

    with ExitStack() as hooks:
        for name in modules:
            hooks.callback(getattr(block, name).register_forward_hook(zeros).remove)
        yield


def _packed(
    trunk: Trunk, training: TrainingConfig, experience: Experience, rows: Sequence[int]
) -> Iterator[MicroBatch]:
    """Yield micro batches of some rows on the trunk's device."""
    for batch in pack(
        experience.prompts, experience.tokens, experience.lengths, rows, training.micro_batch_tokens, trunk.varlen
    ):
        yield batch.to(trunk.model.device)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
