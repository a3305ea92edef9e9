"""One run's updates: from a rollout batch to optimizer steps over the selection's parameters."""

import math
import time

import numpy as np
import torch

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.model.trunk import Trunk
from layersweep.rollout.types import Experience
from layersweep.workers.config import TrainingConfig

from .backend import NonFinite, TrainerBackend
from .half_gradients import agreement
from .microbatch_cache import CacheBudget, MicroBatchCache
from .rollout_batch import RolloutBatch
from .schedule import learning_rate
from .update_metrics import UpdateSums

SAMPLED_STEPS, SAMPLED_RESPONSES = 8, 32
"""Sample on which the KL to the base is measured where the loss does not need it: one in so many steps, and the last,
one in so many responses. It takes below 3 % of the updates' time, also of models that are mostly overhead."""


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
        self.policy, self.selection = backend.policy, backend.policy.selection
        self.policy.entropy_gradient = algorithm.entropy_coefficient > 0
        self.peak = training.learning_rate.of(self.selection.trains_all)
        self.device = trunk.model.get_input_embeddings().weight.device

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
        batch = RolloutBatch(experience, self.policy, self.algorithm, self.training, self.rank, self.ranks)
        self.policy.checkpointing = batch.largest_micro_batch > self.unchecked_tokens
        measured = {"gradient_agreement": self._agreement(batch)} if step == 0 else {}
        kl = self.algorithm.kl_coefficient > 0
        if not kl and (step % SAMPLED_STEPS == 0 or step == self.training.steps - 1):
            measured["kl"] = self._sampled_kl(batch, step)
        later = batch.correction != "bypass" and self.training.minibatches > 1
        budget = CacheBudget(self.training.prefix_cache_mib << 20 if later or self.training.epochs > 1 else 0)
        minibatches = [batch.micro_batches(rows, kl, budget) for rows in batch.minibatches(step)]
        if later:  # the first minibatch's own forward pass gives them too
            self._compute_old_logprobs(minibatches[1:], batch)
        sums = UpdateSums(batch)
        for epoch in range(self.training.epochs):
            for number, micro_batches in enumerate(minibatches):
                done = epoch * len(minibatches) + number
                rate = learning_rate(self.training, self.peak, step, done)
                self._optimizer_step(micro_batches, batch, sums, rate, first=done == 0)
        metrics = sums.metrics() | {"update_norm": self.update_norm(), "learning_rate": rate} | measured
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        return metrics | {"update_seconds": seconds, "update_cpu_seconds": cpu_seconds}

    def _agreement(self, batch: RolloutBatch) -> float:
        """Return the agreement of the halves' gradients; NaN for a whole model that is sharded, because then no rank
        has memory for the whole gradient."""
        return math.nan if self.selection.trains_all and self.backend.sharded else agreement(batch)

    @torch.no_grad()
    def _sampled_kl(self, batch: RolloutBatch, step: int) -> float:
        """Return the KL of the present weights to the base (k3, nats a token) on a sample of the batch's responses.

        Which ones depends on the step alone: rewards have no part in it, so it speaks of all groups.
        """
        responses = len(batch.experience.lengths)
        rows = np.random.default_rng(step).choice(responses, -(-responses // SAMPLED_RESPONSES), replace=False)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for micro_batch in batch.micro_batches(np.sort(rows), kl=True, budget=CacheBudget(0)):
            logp, _ = self.backend.forward(micro_batch.batch, micro_batch.hidden, self.training.temperature)
            if micro_batch.counts:
                q = (micro_batch.ref_logp - logp).double()  # unbounded, unlike the loss's: it is measured alone
                totals[0] += (torch.expm1(q) - q).sum()
                totals[1] += micro_batch.batch.tokens
        kl, tokens = batch.over_ranks(totals).tolist()
        return kl / tokens

    @torch.no_grad()
    def _compute_old_logprobs(self, minibatches: list[MicroBatchCache], batch: RolloutBatch) -> None:
        """Compute the old log-probabilities of some minibatches, before the first optimizer step."""
        for micro_batches in minibatches:
            for micro_batch in micro_batches:
                logp, _ = self.backend.forward(micro_batch.batch, micro_batch.hidden, self.training.temperature)
                batch.old_logp[micro_batch.batch.token] = logp

    def _optimizer_step(
        self, micro_batches: MicroBatchCache, batch: RolloutBatch, sums: UpdateSums, rate: float, first: bool
    ) -> None:
        if not len(micro_batches):
            return  # every group without signal: nothing to learn from
        losses = []
        for i, micro_batch in enumerate(micro_batches):
            token = micro_batch.batch.token
            logp, entropy = self.backend.forward(micro_batch.batch, micro_batch.hidden, self.training.temperature)
            tokens, bounded = batch.loss_tokens(micro_batch, logp, entropy)
            if batch.correction != "bypass":
                batch.old_logp[token] = tokens.old_logp
            terms = self.algorithm.loss(tokens)
            losses.append(terms.loss.detach())
            self.backend.backward(terms.loss, last=i == len(micro_batches) - 1)
            if micro_batch.counts:
                sums.add_loss(terms, entropy, bounded)
                if first:
                    sums.add_mismatch(logp.detach() - batch.engine_logp[token], batch.usable[token])
        if not all(map(math.isfinite, found := torch.stack(losses).tolist())):  # read once: a GPU is waited for
            raise NonFinite(f"losses of micro batches are {found}")
        sums.grad_norms.append(self.backend.step(rate))

    @torch.no_grad()
    def update_norm(self) -> float:
        """Return the L2 norm of the change of the served weights since the base model."""
        base = dict(self.trunk.model.named_parameters())
        adapted = self.selection.lora is not None  # adapters are whole on every rank
        served = self.policy.served(self.backend.weights()).items() if adapted else self.backend.gathered()
        squares = [(w - base[n]).float().square().sum() for n, w in served]
        return math.sqrt(torch.stack(squares).double().sum())
