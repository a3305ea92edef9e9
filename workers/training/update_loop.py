"""One run's updates: from a rollout batch to optimizer steps over the selection's parameters."""

import math
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.loss import token_weights
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Trunk
from layersweep.rollout.types import Experience
from layersweep.workers.config import TrainingConfig

from .backend import NonFinite, TrainerBackend
from .microbatch_cache import CacheBudget, MicroBatchCache, TrainingMicroBatch

SAMPLED_STEPS, SAMPLED_RESPONSES = 8, 32
"""Sample on which the KL to the base is measured where the loss does not need it: one in so many steps, and the last,
one in so many responses. It takes below 3 % of the updates' time, also of models that are mostly overhead."""


class GradientMissing(RuntimeError):
    """Rewards that differ gave no gradient at all: the update computed something else than it should have."""


@dataclass
class _Sums:
    """Sums of an update over tokens and optimizer steps, on this rank."""

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    tokens: float = 0.0
    mismatch: float = 0.0
    mismatch_tokens: float = 0.0
    grad_norms: list[float] = field(default_factory=list)


def learning_rate(config: TrainingConfig, peak: float, step: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then the schedule down to 0 at `steps`."""
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return peak * (1 - done)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak


class UpdateLoop:
    """Trains one selection.

    Args:
        trunk: the frozen base model, which the trainers of a node share.
        backend: the trained parameters, their gradients and optimizer state.
        algorithm: advantages and loss.
        training: of the spec, with `micro_batch_tokens` chosen.
        rank, ranks: this process's place in the run's data-parallel group; torch.distributed is initialised.
    """

    def __init__(
        self,
        trunk: Trunk,
        backend: TrainerBackend,
        algorithm: PolicyGradient,
        training: TrainingConfig,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.trunk, self.backend, self.algorithm, self.training = trunk, backend, algorithm, training
        self.rank, self.ranks = rank, ranks
        self.policy, self.selection = backend.policy, backend.policy.selection
        self.peak = training.learning_rate.of(self.selection.trains_all)
        embedding = trunk.model.get_input_embeddings().weight
        self.device, self.vocabulary = embedding.device, len(embedding)

    def update(self, experience: Experience, step: int) -> dict[str, float | None]:
        """Train on one rollout batch: `epochs` passes of `minibatches` optimizer steps each.

        Groups whose rewards are all equal have no advantage: without a KL term their gradient is zero, so they
        are left out of the computation (not of the averages) and counted.

        Args:
            step: of the run, from 0: decides learning rate and the order of minibatches.

        Returns:
            The metrics of steps.parquet that the trainer knows; None for what nothing measured.

        Raises:
            NonFinite: before the weights are touched (at ZeRO 0; above it, before they leave the trainer).
            GradientMissing: advantages other than 0, and gradients of 0 that no clip explains.
            ValueError: a token that the model has no embedding for.
        """
        began, cpu = time.perf_counter(), time.process_time()
        self._check_tokens(experience)
        rate = learning_rate(self.training, self.peak, step)
        algorithm, limit = self.algorithm, self.training.max_response_tokens
        reward = algorithm.shaped(experience.reward, experience.lengths, limit)
        advantage = algorithm.advantages(
            reward, experience.group, experience.trajectory, experience.step, experience.anchor
        )
        advantages = torch.from_numpy(advantage).to(self.device)
        old_logp = torch.from_numpy(experience.logprobs).to(self.device)
        agreement = {"gradient_agreement": self._agreement(experience, advantage, old_logp)} if step == 0 else {}
        kl = algorithm.kl_coefficient > 0
        sampled = {}
        if not kl and (step % SAMPLED_STEPS == 0 or step == self.training.steps - 1):
            sampled = {"kl": self._sampled_kl(experience, advantage, step)}
        budget = CacheBudget(self.training.prefix_cache_mib << 20 if self.training.epochs > 1 else 0)
        minibatches = [
            self._micro_batches(experience, rows, advantage, kl, budget) for rows in self._minibatches(experience, step)
        ]
        sums = _Sums()
        for epoch in range(self.training.epochs):
            for number, micro_batches in enumerate(minibatches):
                first = epoch == 0 and number == 0
                self._optimizer_step(micro_batches, old_logp, advantages, sums, rate, first)
        return self._metrics(experience, advantage, sums, rate, began, cpu) | agreement | sampled

    def _check_tokens(self, experience: Experience) -> None:
        """Refuse tokens beyond the embedding: on a GPU they would end the process, without a word of which."""
        highest = max(int(tokens.max(initial=0)) for tokens in (experience.tokens, *experience.prompts))
        if highest >= self.vocabulary:
            raise ValueError(
                f"token {highest} is outside the model's embedding of {self.vocabulary} rows: the tokenizer is of "
                "another model, or has tokens added to it"
            )

    def _minibatches(self, experience: Experience, step: int) -> list[np.ndarray]:
        """Return the rows of each minibatch: whole groups, dealt out in an order that depends on the step alone."""
        groups = np.unique(experience.group)
        order = np.random.default_rng(step).permutation(groups)
        parts = np.array_split(order, self.training.minibatches)
        return [np.flatnonzero(np.isin(experience.group, part)) for part in parts]

    def _agreement(self, experience: Experience, advantage: np.ndarray, old_logp: Tensor) -> float:
        """Return the cosine between the loss's gradients of the even and of the odd prompts, at the present weights.

        It takes as much memory as AdamW's moments, which are not there yet at the first step. NaN where a half has no
        signal, and for a whole model that is sharded, because then no rank has memory for the whole gradient.
        """
        if self.selection.trains_all and self.backend.sharded:
            return math.nan
        groups = np.unique(experience.group)
        even, odd = (
            self._gradient(experience, np.flatnonzero(np.isin(experience.group, half)), advantage, old_logp)
            for half in (groups[::2], groups[1::2])
        )
        dot, norm_even, norm_odd = _dot(even, odd), math.sqrt(_dot(even, even)), math.sqrt(_dot(odd, odd))
        return dot / (norm_even * norm_odd) if norm_even and norm_odd else math.nan

    def _gradient(
        self, experience: Experience, rows: np.ndarray, advantage: np.ndarray, old_logp: Tensor
    ) -> list[Tensor]:
        """Return the loss's gradient over some rows and all ranks, float32, a tensor per parameter.

        The KL term has no gradient at the base. torch.autograd.grad on the bare policy leaves the gradients that the
        backend keeps as they are.
        """
        parameters, advantages = list(self.policy.parameters()), torch.from_numpy(advantage).to(self.device)
        total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for micro_batch in self._micro_batches(experience, rows, advantage, kl=False, budget=CacheBudget(0)):
            batch = micro_batch.batch
            logp, _ = self.policy(batch, micro_batch.hidden, self.training.temperature)
            old, weight = old_logp[batch.token], micro_batch.weight
            loss = self.algorithm.loss(logp, old, advantages[batch.response], weight).loss
            for so_far, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                so_far += gradient
        if self.ranks > 1:
            for gradient in total:
                dist.all_reduce(gradient)
        return total

    @torch.no_grad()
    def _sampled_kl(self, experience: Experience, advantage: np.ndarray, step: int) -> float:
        """Return the KL of the present weights to the base (k3, nats a token) on a sample of the batch's responses.

        Which ones depends on the step alone: rewards have no part in it, so it speaks of all groups.
        """
        responses = len(experience.lengths)
        rows = np.random.default_rng(step).choice(responses, -(-responses // SAMPLED_RESPONSES), replace=False)
        totals = torch.zeros(2, dtype=torch.float64)
        for micro_batch in self._micro_batches(experience, np.sort(rows), advantage, kl=True, budget=CacheBudget(0)):
            logp, _ = self.backend.forward(micro_batch.batch, micro_batch.hidden, self.training.temperature)
            if micro_batch.weight.any():
                q = (micro_batch.ref_logp - logp).double()
                totals += torch.tensor([(torch.expm1(q) - q).sum().item(), micro_batch.batch.tokens])
        kl, tokens = self._over_ranks(totals)
        return kl / tokens

    def _over_ranks(self, totals: Tensor) -> list[float]:
        """Sum each of `totals` over the ranks."""
        if self.ranks > 1:
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        return totals.tolist()

    def _micro_batches(
        self, experience: Experience, rows: np.ndarray, advantage: np.ndarray, kl: bool, budget: CacheBudget
    ) -> MicroBatchCache:
        """Return this rank's micro batches of one minibatch, weighted over the whole minibatch.

        Args:
            kl: whether the loss has a KL term: then groups without signal belong to it too, and each micro batch
                brings the reference's log-probabilities.
        """
        lengths = torch.from_numpy(experience.lengths[rows])
        weights = torch.zeros(len(experience.lengths))
        weights[rows] = token_weights(lengths, self.algorithm.aggregation, self.training.max_response_tokens)
        weights = weights.to(self.device)
        used = rows if kl else rows[advantage[rows] != 0]
        batches = pack(
            experience.prompts, experience.tokens, experience.lengths, used, self.training.micro_batch_tokens
        )

        def make(number: int, scale: float, ref_logp: Tensor | None) -> TrainingMicroBatch:
            batch = batches[number].to(self.device)
            hidden = None if self.selection.trains_all else self.trunk.prefix(batch, self.policy.start)
            if kl and ref_logp is None:
                below = hidden if hidden is not None else self.trunk.prefix(batch, 0)
                ref_logp = self.trunk.reference(batch, below, self.policy.start, self.training.temperature)
            return TrainingMicroBatch(batch, hidden, weights[batch.response] * (scale * self.ranks), ref_logp)

        mine = range(self.rank, len(batches), self.ranks)
        # Every rank must make the same number of backward passes: collectives wait for each other.
        short = -(-len(batches) // self.ranks) - len(mine)
        return MicroBatchCache(
            [partial(make, i, 1.0) for i in mine] + [partial(make, i, 0.0) for i in range(short)], budget
        )

    def _optimizer_step(
        self,
        micro_batches: MicroBatchCache,
        old_logp: Tensor,
        advantages: Tensor,
        sums: _Sums,
        rate: float,
        first: bool,
    ) -> None:
        if not len(micro_batches):
            return  # every group without signal: nothing to learn from
        temperature = self.training.temperature
        for i, micro_batch in enumerate(micro_batches):
            batch, weight = micro_batch.batch, micro_batch.weight
            live = float(weight.any())
            logp, entropy = self.backend.forward(batch, micro_batch.hidden, temperature)
            old = old_logp[batch.token]
            terms = self.algorithm.loss(logp, old, advantages[batch.response], weight, micro_batch.ref_logp)
            if not torch.isfinite(terms.loss):
                raise NonFinite(f"loss is {terms.loss.item()}")
            self.backend.backward(terms.loss, last=i == len(micro_batches) - 1)
            sums.loss += terms.loss.item() / self.ranks
            sums.kl += live * terms.kl.item()
            sums.clipped += live * terms.clipped.item()
            sums.entropy += live * entropy.sum().item()
            sums.tokens += live * batch.tokens
            if first:
                sums.mismatch += live * (logp.detach() - old).abs().sum().item()
                sums.mismatch_tokens += live * batch.tokens
        sums.grad_norms.append(self.backend.step(rate))

    def _metrics(
        self, experience: Experience, advantage: np.ndarray, sums: _Sums, rate: float, began: float, cpu: float
    ) -> dict[str, float | None]:
        totals = torch.tensor(
            [sums.loss, sums.kl, sums.entropy, sums.clipped, sums.tokens, sums.mismatch, sums.mismatch_tokens],
            dtype=torch.float64,
        )
        loss, kl, entropy, clipped, tokens, mismatch, mismatch_tokens = self._over_ranks(totals)
        steps = max(1, len(sums.grad_norms))
        with_signal = np.unique(experience.group[advantage != 0])
        if len(with_signal) and not any(sums.grad_norms) and not clipped:
            raise GradientMissing(
                f"{len(with_signal)} groups of responses have advantages other than 0, {tokens:.0f} tokens were "
                "trained on, none was clipped, and the gradient is 0"
            )
        return {
            "reward_mean": float(experience.reward.mean()),
            "reward_std": float(experience.reward.std()),
            "no_signal_fraction": 1 - len(with_signal) / len(np.unique(experience.group)),
            "loss": loss / steps,
            "kl": _mean(kl, tokens) if self.algorithm.kl_coefficient > 0 else None,
            "entropy": _mean(entropy, tokens),
            "clip_fraction": _mean(clipped, tokens),
            "grad_norm": float(np.mean(sums.grad_norms)) if sums.grad_norms else 0.0,
            "update_norm": self.update_norm(),
            "logprob_mismatch": _mean(mismatch, mismatch_tokens),
            "learning_rate": rate,
            "response_tokens": float(experience.lengths.mean()),
            "truncated_fraction": float(experience.truncated.mean()),
            "format_fraction": float(experience.format_ok.mean()),
            "tokens": float(experience.lengths.sum()),
            "update_seconds": time.perf_counter() - began,
            "update_cpu_seconds": time.process_time() - cpu,
        }

    @torch.no_grad()
    def update_norm(self) -> float:
        """Return the L2 norm of the change of the trained parameters since the base model."""
        base = dict(self.trunk.model.named_parameters())
        with self.backend.gathered() as named:
            return math.sqrt(sum(float((w - base[n]).float().square().sum()) for n, w in named.items()))


def _mean(total: float, tokens: float) -> float | None:
    """Return the mean over tokens; None where no token was trained on."""
    return total / tokens if tokens else None


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the dot product of two gradients, summed over their tensors."""
    return sum(float(torch.dot(x.flatten(), y.flatten())) for x, y in zip(a, b, strict=True))
