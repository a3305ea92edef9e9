"""Updates for tests: a batch, an update loop over DeepSpeed, and the same in plain torch over transformers."""

import numpy as np
import torch

from layersweep.policies.algorithms.grpo import GRPO
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig


def experience(seed: int = 0, groups: int = 6, size: int = 4) -> Experience:
    """Groups of unequal prompts and responses; rewards 0/1, the last group without signal."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, 32, rng.integers(3, 9)).astype(np.int32) for _ in range(groups)]
    lengths = rng.integers(1, 8, groups * size).astype(np.int32)
    reward = rng.integers(0, 2, groups * size).astype(np.float32)
    reward[-size:] = 1.0
    rows = np.arange(groups * size)
    return Experience(
        prompts=[prompts[i // size] for i in rows],
        tokens=rng.integers(2, 32, lengths.sum()).astype(np.int32),
        logprobs=np.full(lengths.sum(), -3.0, np.float32) + rng.normal(0, 0.3, lengths.sum()).astype(np.float32),
        lengths=lengths,
        reward=reward,
        group=rows // size,
        trajectory=rows,
        step=np.zeros_like(rows),
        truncated=np.zeros(len(rows), bool),
        format_ok=np.ones(len(rows), bool),
    )


def plain_loss(model, base, exp: Experience, rows, kl: float) -> torch.Tensor:
    """Of some rows, written from the definitions in loss.py, one padded row per response."""
    ends = np.cumsum(exp.lengths)
    total = torch.zeros(())
    for row in rows:
        answer = exp.tokens[ends[row] - exp.lengths[row] : ends[row]]
        ids = torch.from_numpy(np.concatenate([exp.prompts[row], answer])).long()[None]
        at = slice(len(exp.prompts[row]) - 1, -1)
        target = torch.from_numpy(answer).long()
        logp = torch.log_softmax(model(ids).logits[0, at], -1)[range(len(answer)), target]
        with torch.no_grad():
            ref = torch.log_softmax(base(ids).logits[0, at], -1)[range(len(answer)), target]
        old = torch.from_numpy(exp.logprobs[ends[row] - exp.lengths[row] : ends[row]])
        mine = exp.reward[exp.group == exp.group[row]]
        advantage = 0.0 if mine.std() == 0 else (exp.reward[row] - mine.mean()) / (mine.std(ddof=1) + 1e-6)
        rho = torch.exp(logp - old)
        rho = torch.where(rho > 2.0, 2.0 * rho / rho.detach(), rho)  # truncated: the weight, not the gradient
        token = -torch.minimum(rho * advantage, rho.clamp(0.8, 1.28) * advantage)
        token = token + kl * (torch.exp(ref - logp) - (ref - logp) - 1)
        total = total + token.mean() / len(exp.lengths)
    return total


def plain_kl(folder: str, weights: dict[str, torch.Tensor], exp: Experience, rows) -> float:
    """k3 between a model with these weights and a base of its own, the mean over the tokens of some responses."""
    from transformers import AutoModelForCausalLM

    base, model = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    model.load_state_dict(weights, strict=False)
    ends, values = np.cumsum(exp.lengths), []
    for row in rows:
        answer = exp.tokens[ends[row] - exp.lengths[row] : ends[row]]
        ids = torch.from_numpy(np.concatenate([exp.prompts[row], answer])).long()[None]
        with torch.no_grad():
            ref, logp = (
                torch.log_softmax(m(ids).logits[0, len(exp.prompts[row]) - 1 : -1].double(), -1) for m in (base, model)
            )
        for at, token in enumerate(answer):
            ratio = float(torch.exp(ref[at, token] - logp[at, token]))
            values.append(ratio - np.log(ratio) - 1)
    return float(np.mean(values))


def plain_models(folder: str, selection: Selection):
    """The model with the selection's parameters alone to train, those parameters, and the base."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(selection.trains(name))
    return model, [p for p in model.parameters() if p.requires_grad], base


def plain_loop(folder: str, selection: Selection, exp: Experience, kl: float, rate: float, clip: float):
    """One optimizer step over all rows."""
    model, trained, base = plain_models(folder, selection)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    loss = plain_loss(model, base, exp, range(len(exp.lengths)), kl)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    optimizer.step()
    return loss.item(), float(norm), {n: p.detach() for n, p in model.named_parameters()}


def plain_agreement(folder: str, selection: Selection, exp: Experience) -> float:
    """Cosine between the gradients of the even and the odd groups."""
    model, trained, base = plain_models(folder, selection)
    even, odd = (
        torch.cat([g.flatten() for g in torch.autograd.grad(plain_loss(model, base, exp, rows, 0.0), trained)])
        for rows in (np.flatnonzero(exp.group % 2 == 0), np.flatnonzero(exp.group % 2))
    )
    return torch.cosine_similarity(even, odd, dim=0).item()


def assert_same_step(weight: torch.Tensor, expected: torch.Tensor, rate: float) -> None:
    """Compare weights after steps of Adam, which are about the rate wherever the gradient is more than rounding.

    Where the gradient is rounding itself, its sign is the processor's and with it the whole step: single entries.
    """
    difference = (weight - expected).abs().flatten()
    assert difference.median() < 1e-4 * rate
    assert int((difference > 0.05 * rate).sum()) <= max(1, len(difference) // 50)


def leave_group() -> None:
    """Leave torch.distributed with all other ranks: one that ends while another still reads from it makes gloo abort
    that one, now and then, and gloo may wait for ever for a peer when an interpreter ends."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def settings(kl: float, rate: float, clip: float, tokens: int):
    algorithm = GRPO(clip_high=0.28, kl_coefficient=kl)
    training = TrainingConfig(
        steps=4, learning_rate=rate, betas=(0.9, 0.95), gradient_clip=clip, max_response_tokens=8,
        micro_batch_tokens=tokens,
    )  # fmt: skip
    return algorithm, training


def update_loop(trunk, selection: Selection, algorithm, training, section=None, rank: int = 0, ranks: int = 1):
    """An update loop over DeepSpeed, as the trainer makes it."""
    from layersweep.policies.model.trunk import Policy
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
    from layersweep.workers.training.update_loop import UpdateLoop

    backend = DeepSpeedBackend(Policy(trunk, selection), training, section or DeepSpeedConfig(), ranks)
    return UpdateLoop(trunk, backend, algorithm, training, rank, ranks)
