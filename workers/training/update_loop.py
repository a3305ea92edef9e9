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
from layersweep.policies.algorithms.loss import KL_LIMIT, LOG_RATIO_LIMIT, LossTokens, token_weights
from layersweep.policies.algorithms.rollout_correction import importance_weights, resolve
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Trunk
from layersweep.rollout.types import Experience
from layersweep.workers.config import TrainingConfig

from .backend import NonFinite, TrainerBackend
from .microbatch_cache import CacheBudget, MicroBatchCache, TrainingMicroBatch
from .schedule import learning_rate

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
    corrected: float = 0.0
    tokens: float = 0.0
    mismatch: float = 0.0
    mismatch_tokens: float = 0.0
    rollout_kl: float = 0.0
    grad_norms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _RolloutBatch:
    """Tensors that the loss needs of one rollout batch, on the trainer's device."""

    advantages: Tensor
    """[rows]."""
    engine_logp: Tensor
    """Log-probabilities by the sampling engine, float32 [tokens]; not finite where it gave none."""
    usable: Tensor
    """Whether it gave one, bool [tokens]."""
    old_logp: Tensor
    """Those that the ratio is taken against, [tokens]: the engine's, or the trainer's, NaN until they are computed."""


class UpdateLoop:
    """Trains one selection.

    Args:
        trunk: the frozen base model, which the trainers of a node share.
        backend: the trained parameters, their gradients and optimizer state.
        algorithm: advantages and loss.
        training: of the spec, with `micro_batch_tokens` chosen.
        rank, ranks: this process's place in the run's data-parallel group; torch.distributed is initialised.
        unchecked_tokens: of the largest micro batch that is computed without activation checkpointing.
    """

    def __init__(
        self,
        trunk: Trunk,
        backend: TrainerBackend,
        algorithm: PolicyGradient,
        training: TrainingConfig,
        rank: int = 0,
        ranks: int = 1,
        unchecked_tokens: float = math.inf,
    ):
        self.trunk, self.backend, self.algorithm, self.training = trunk, backend, algorithm, training
        self.rank, self.ranks, self.unchecked_tokens = rank, ranks, unchecked_tokens
        self.correction = resolve(algorithm.rollout_correction, training.dtype)
        self.policy, self.selection = backend.policy, backend.policy.selection
        self.policy.entropy_gradient = algorithm.entropy_coefficient > 0
        self.peak = training.learning_rate.of(self.selection.trains_all)
        embedding = trunk.model.get_input_embeddings().weight
        self.device, self.vocabulary = embedding.device, len(embedding)

    def update(self, experience: Experience, step: int) -> dict[str, float | None]:
        """Train on one rollout batch: `epochs` passes of `minibatches` optimizer steps each.

        Groups whose rewards are all equal have no advantage: without KL term and entropy bonus their gradient is zero,
        so they are left out of the computation (not of the averages) and counted. A minibatch of such groups alone
        takes no optimizer step at all, where AdamW would move by its momentum; `optimizer_steps` counts those taken.
        Tokens that the engine gave no finite log-probability for are left out likewise.

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
        self.policy.checkpointing = self._largest_micro_batch(experience) > self.unchecked_tokens
        advantage = self._advantages(experience)
        batch = self._rollout_batch(experience, advantage)
        agreement = {"gradient_agreement": self._agreement(experience, advantage, batch)} if step == 0 else {}
        kl = self.algorithm.kl_coefficient > 0
        sampled = {}
        if not kl and (step % SAMPLED_STEPS == 0 or step == self.training.steps - 1):
            sampled = {"kl": self._sampled_kl(experience, advantage, step)}
        later = self.correction != "bypass" and self.training.minibatches > 1
        budget = CacheBudget(self.training.prefix_cache_mib << 20 if later or self.training.epochs > 1 else 0)
        minibatches = [
            self._micro_batches(experience, rows, advantage, kl, budget) for rows in self._minibatches(experience, step)
        ]
        if later:  # the first minibatch's own forward pass gives them too
            self._compute_old_logprobs(minibatches[1:], batch)
        sums = _Sums()
        for epoch in range(self.training.epochs):
            for number, micro_batches in enumerate(minibatches):
                done = epoch * len(minibatches) + number
                rate = learning_rate(self.training, self.peak, step, done)
                self._optimizer_step(micro_batches, batch, sums, rate, first=done == 0)
        return self._metrics(experience, advantage, sums, rate, began, cpu) | agreement | sampled

    def half_gradients(self, experience: Experience) -> tuple[list[Tensor], list[Tensor]]:
        """Return the loss's gradients of the even and of the odd prompts at the present weights, float32, a tensor per
        parameter; 0 where a half has no signal."""
        self._check_tokens(experience)
        advantage = self._advantages(experience)
        return self._halves(experience, advantage, self._rollout_batch(experience, advantage))

    def _advantages(self, experience: Experience) -> np.ndarray:
        algorithm = self.algorithm
        reward = algorithm.shaped(experience.reward, experience.lengths, self.training.max_response_tokens)
        advantage = algorithm.advantages(
            reward, experience.group, experience.trajectory, experience.step, experience.anchor
        )
        return algorithm.normalised(advantage, experience.lengths)

    def _largest_micro_batch(self, experience: Experience) -> int:
        """Return its tokens at most: a single response with its prompt is never divided."""
        rows = np.array([len(prompt) for prompt in experience.prompts]) + experience.lengths
        return max(min(self.training.micro_batch_tokens, int(rows.sum())), int(rows.max()))

    def _rollout_batch(self, experience: Experience, advantage: np.ndarray) -> _RolloutBatch:
        engine_logp = torch.from_numpy(experience.logprobs).to(self.device)
        return _RolloutBatch(
            torch.from_numpy(advantage).to(self.device),
            engine_logp,
            engine_logp.isfinite(),
            engine_logp if self.correction == "bypass" else torch.full_like(engine_logp, math.nan),
        )

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

    def _agreement(self, experience: Experience, advantage: np.ndarray, batch: _RolloutBatch) -> float:
        """Return the cosine between the loss's gradients of the even and of the odd prompts, at the present weights.

        It takes as much memory as AdamW's moments, which are not there yet at the first step. NaN where a half has no
        signal, and for a whole model that is sharded, because then no rank has memory for the whole gradient.
        """
        if self.selection.trains_all and self.backend.sharded:
            return math.nan
        even, odd = self._halves(experience, advantage, batch)
        dot, norm_even, norm_odd = _dot(even, odd), math.sqrt(_dot(even, even)), math.sqrt(_dot(odd, odd))
        return dot / (norm_even * norm_odd) if norm_even and norm_odd else math.nan

    def _halves(
        self, experience: Experience, advantage: np.ndarray, batch: _RolloutBatch
    ) -> tuple[list[Tensor], list[Tensor]]:
        groups = np.unique(experience.group)
        rows = (np.flatnonzero(np.isin(experience.group, half)) for half in (groups[::2], groups[1::2]))
        even, odd = (self._gradient(experience, half, advantage, batch) for half in rows)
        return even, odd

    def _gradient(
        self, experience: Experience, rows: np.ndarray, advantage: np.ndarray, rollout: _RolloutBatch
    ) -> list[Tensor]:
        """Return the loss's gradient over some rows and all ranks, float32, a tensor per parameter.

        The KL term has no gradient at the base. torch.autograd.grad on the bare policy leaves the gradients that the
        backend keeps as they are.
        """
        parameters = list(self.policy.parameters())
        total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for micro_batch in self._micro_batches(experience, rows, advantage, kl=False, budget=CacheBudget(0)):
            logp, entropy = self.policy(micro_batch.batch, micro_batch.hidden, self.training.temperature)
            loss = self.algorithm.loss(self._loss_tokens(micro_batch, logp, entropy, rollout)[0]).loss
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
        usable = torch.from_numpy(np.isfinite(experience.logprobs)).to(self.device)
        every = kl or self.algorithm.entropy_coefficient > 0
        used = rows if every else rows[advantage[rows] != 0]
        batches = pack(
            experience.prompts, experience.tokens, experience.lengths, used, self.training.micro_batch_tokens
        )

        def make(number: int, scale: float, ref_logp: Tensor | None) -> TrainingMicroBatch:
            batch = batches[number].to(self.device)
            start = self.policy.start
            hidden = None if start is None else self.trunk.prefix(batch, start)
            if kl and ref_logp is None:
                below = hidden if hidden is not None else self.trunk.prefix(batch, 0)
                ref_logp = self.trunk.reference(batch, below, start or 0, self.training.temperature)
            weight = weights[batch.response] * (scale * self.ranks) * usable[batch.token]
            return TrainingMicroBatch(batch, hidden, weight, ref_logp)

        mine = range(self.rank, len(batches), self.ranks)
        # Every rank must make the same number of backward passes: collectives wait for each other.
        short = -(-len(batches) // self.ranks) - len(mine)
        return MicroBatchCache(
            [partial(make, i, 1.0) for i in mine] + [partial(make, i, 0.0) for i in range(short)], budget
        )

    @torch.no_grad()
    def _compute_old_logprobs(self, minibatches: list[MicroBatchCache], rollout: _RolloutBatch) -> None:
        """Compute the old log-probabilities of some minibatches, before the first optimizer step."""
        for micro_batches in minibatches:
            for micro_batch in micro_batches:
                batch = micro_batch.batch
                logp, _ = self.backend.forward(batch, micro_batch.hidden, self.training.temperature)
                rollout.old_logp[batch.token] = logp

    def _loss_tokens(
        self, micro_batch: TrainingMicroBatch, logp: Tensor, entropy: Tensor, rollout: _RolloutBatch
    ) -> tuple[LossTokens, Tensor]:
        """Return what the loss knows of a micro batch's tokens, and which of their importance weights were bounded.

        Old log-probabilities that are not known yet are those of this moment: no step was made since the rollout.
        """
        batch, advantages = micro_batch.batch, rollout.advantages
        known = rollout.old_logp[batch.token]
        old = torch.where(known.isfinite(), known, logp.detach())
        importance, bounded = None, torch.zeros_like(old, dtype=torch.bool)
        if self.correction != "bypass":
            engine = torch.where(rollout.usable[batch.token], rollout.engine_logp[batch.token], old)
            importance, bounded = importance_weights(
                self.correction, old, engine, batch.response, self.algorithm.importance_cap
            )
        tokens = LossTokens(
            logp, old, advantages[batch.response], micro_batch.weight, batch.response, importance,
            micro_batch.ref_logp, entropy,
        )  # fmt: skip
        return tokens, bounded

    def _optimizer_step(
        self, micro_batches: MicroBatchCache, rollout: _RolloutBatch, sums: _Sums, rate: float, first: bool
    ) -> None:
        if not len(micro_batches):
            return  # every group without signal: nothing to learn from
        temperature = self.training.temperature
        for i, micro_batch in enumerate(micro_batches):
            batch, weight = micro_batch.batch, micro_batch.weight
            live = float(weight.any())
            logp, entropy = self.backend.forward(batch, micro_batch.hidden, temperature)
            tokens, bounded = self._loss_tokens(micro_batch, logp, entropy, rollout)
            if self.correction != "bypass":
                rollout.old_logp[batch.token] = tokens.old_logp
            terms = self.algorithm.loss(tokens)
            if not torch.isfinite(terms.loss):
                raise NonFinite(f"loss is {terms.loss.item()}")
            self.backend.backward(terms.loss, last=i == len(micro_batches) - 1)
            sums.loss += terms.loss.item() / self.ranks
            sums.kl += live * terms.kl.item()
            sums.clipped += live * terms.clipped.item()
            sums.corrected += live * bounded.sum().item()
            sums.entropy += live * entropy.sum().item()
            sums.tokens += live * batch.tokens
            if first:
                given = rollout.usable[batch.token]
                difference = (logp.detach() - rollout.engine_logp[batch.token])[given]
                sums.mismatch += live * difference.abs().sum().item()
                sums.mismatch_tokens += live * difference.numel()
                bounded_difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
                k3 = torch.expm1(bounded_difference) - bounded_difference
                sums.rollout_kl += live * k3.clamp(max=KL_LIMIT).sum().item()
        sums.grad_norms.append(self.backend.step(rate))

    def _metrics(
        self, experience: Experience, advantage: np.ndarray, sums: _Sums, rate: float, began: float, cpu: float
    ) -> dict[str, float | None]:
        totals = torch.tensor(
            [
                sums.loss, sums.kl, sums.entropy, sums.clipped, sums.corrected, sums.tokens, sums.mismatch,
                sums.mismatch_tokens, sums.rollout_kl,
            ],
            dtype=torch.float64,
        )  # fmt: skip
        loss, kl, entropy, clipped, corrected, tokens, mismatch, mismatch_tokens, rollout_kl = self._over_ranks(totals)
        steps = max(1, len(sums.grad_norms))
        with_signal = np.unique(experience.group[advantage != 0])
        unusable = int((~np.isfinite(experience.logprobs)).sum())
        if len(with_signal) and not any(sums.grad_norms) and not clipped + corrected + unusable:
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
            "corrected_fraction": _mean(corrected, tokens),
            "unusable_tokens": float(unusable),
            "optimizer_steps": float(len(sums.grad_norms)),
            "grad_norm": float(np.mean(sums.grad_norms)) if sums.grad_norms else 0.0,
            "update_norm": self.update_norm(),
            "logprob_mismatch": _mean(mismatch, mismatch_tokens),
            "rollout_kl": _mean(rollout_kl, mismatch_tokens),
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
        """Return the L2 norm of the change of the served weights since the base model."""
        base = dict(self.trunk.model.named_parameters())
        adapted = self.selection.lora is not None  # adapters are whole on every rank
        served = self.policy.served(self.backend.weights()).items() if adapted else self.backend.gathered()
        return math.sqrt(sum(float((w - base[n]).float().square().sum()) for n, w in served))


def _mean(total: float, tokens: float) -> float | None:
    """Return the mean over tokens; None where no token was trained on."""
    return total / tokens if tokens else None


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the dot product of two gradients, summed over their tensors."""
    return sum(float(torch.dot(x.flatten(), y.flatten())) for x, y in zip(a, b, strict=True))
