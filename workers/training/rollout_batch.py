"""One rollout batch as the loss of a selection takes it: advantages, micro batches, what is known of each token."""

import math
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.loss import LossTokens, token_weights
from layersweep.policies.algorithms.rollout_correction import importance_weights, resolve
from layersweep.policies.model.device_copy import to_device
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy
from layersweep.rollout.types import Experience
from layersweep.workers.config import TrainingConfig

from .microbatch_cache import CacheBudget, MicroBatchCache, TrainingMicroBatch


class RolloutBatch:
    """A rollout batch with its advantages, ready for one selection's loss.

    Args:
        experience: as the rollout worker gives it.
        policy: of the selection, over the trunk.
        algorithm: advantages and loss.
        training: of the spec, with `micro_batch_tokens` chosen.
        rank, ranks: this process's place in the run's data-parallel group; torch.distributed is initialised.

    Raises:
        ValueError: a token that the model has no embedding for: on a GPU it would end the process, without a word of
            which.
    """

    def __init__(
        self, experience: Experience, policy: Policy, algorithm: PolicyGradient, training: TrainingConfig,
        rank: int = 0, ranks: int = 1,
    ):  # fmt: skip
        self.experience, self.policy, self.algorithm, self.training = experience, policy, algorithm, training
        self.rank, self.ranks = rank, ranks
        embedding = policy.trunk.model.get_input_embeddings().weight
        highest = max(int(tokens.max(initial=0)) for tokens in (experience.tokens, *experience.prompts))
        if highest >= len(embedding):
            raise ValueError(
                f"token {highest} is outside the model's embedding of {len(embedding)} rows: the tokenizer is of "
                "another model, or has tokens added to it"
            )
        self.device = embedding.device
        reward = algorithm.shaped(experience.reward, experience.lengths, training.max_response_tokens)
        advantage = algorithm.advantages(
            reward, experience.group, experience.trajectory, experience.step, experience.anchor
        )
        self.advantage = algorithm.normalised(advantage, experience.lengths)
        """float32 [rows]."""
        self.advantages = to_device(torch.from_numpy(self.advantage), self.device)
        self.correction = resolve(algorithm.rollout_correction, training.dtype)
        self.engine_logp = to_device(torch.from_numpy(experience.logprobs), self.device)
        """Log-probabilities by the sampling engine, float32 [tokens]; not finite where it gave none."""
        self.usable = self.engine_logp.isfinite()
        """Whether it gave one, bool [tokens]."""
        bypass = self.correction == "bypass"
        self.old_logp = self.engine_logp if bypass else torch.full_like(self.engine_logp, math.nan)
        """Log-probabilities that the ratio is taken against, [tokens]: the engine's, or the trainer's, which are NaN
        until they are computed."""

    @property
    def groups_with_signal(self) -> int:
        """Number of groups with an advantage other than 0."""
        return len(np.unique(self.experience.group[self.advantage != 0]))

    @property
    def largest_micro_batch(self) -> int:
        """Tokens of a micro batch at most: a single response with its prompt is never divided."""
        rows = np.array([len(prompt) for prompt in self.experience.prompts]) + self.experience.lengths
        return max(min(self.training.micro_batch_tokens, int(rows.sum())), int(rows.max()))

    def minibatches(self, step: int) -> list[np.ndarray]:
        """Return the rows of each minibatch: whole groups, dealt out in an order that depends on the step alone."""
        order = np.random.default_rng(step).permutation(np.unique(self.experience.group))
        return [self._rows_of(groups) for groups in np.array_split(order, self.training.minibatches)]

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the even and of the odd prompts."""
        groups = np.unique(self.experience.group)
        return self._rows_of(groups[::2]), self._rows_of(groups[1::2])

    def _rows_of(self, groups: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(self.experience.group, groups))

    def micro_batches(self, rows: np.ndarray, kl: bool, budget: CacheBudget) -> MicroBatchCache:
        """Return this rank's micro batches of one minibatch, weighted over the whole minibatch.

        Args:
            rows: of the minibatch.
            kl: whether the loss has a KL term: then groups without signal belong to it too, and each micro batch
                brings the reference's log-probabilities.
            budget: for what epochs share.
        """
        experience, training = self.experience, self.training
        lengths = torch.from_numpy(experience.lengths[rows])
        weights = torch.zeros(len(experience.lengths))
        weights[rows] = token_weights(lengths, self.algorithm.aggregation, training.max_response_tokens)
        weights = to_device(weights, self.device)
        every = kl or self.algorithm.entropy_coefficient > 0
        used = rows if every else rows[self.advantage[rows] != 0]
        batches = pack(
            experience.prompts, experience.tokens, experience.lengths, used, training.micro_batch_tokens,
            self.policy.trunk.varlen,
        )  # fmt: skip

        def make(number: int, scale: float, ref_logp: Tensor | None) -> TrainingMicroBatch:
            packed, trunk = batches[number], self.policy.trunk
            batch = packed.to(self.device)
            start = self.policy.start
            hidden = None if start is None else trunk.prefix(batch, start)
            if kl and ref_logp is None:
                below = hidden if hidden is not None else trunk.prefix(batch, 0)
                ref_logp = trunk.reference(batch, below, start or 0, training.temperature)
            weight = weights[batch.response] * (scale * self.ranks) * self.usable[batch.token]
            counts = scale > 0 and bool(np.isfinite(experience.logprobs[packed.token.numpy()]).any())
            return TrainingMicroBatch(batch, hidden, weight, ref_logp, counts)

        mine = range(self.rank, len(batches), self.ranks)
        # Every rank must make the same number of backward passes: collectives wait for each other.
        short = -(-len(batches) // self.ranks) - len(mine)
        return MicroBatchCache(
            [partial(make, i, 1.0) for i in mine] + [partial(make, i, 0.0) for i in range(short)], budget
        )

    def loss_tokens(self, micro_batch: TrainingMicroBatch, logp: Tensor, entropy: Tensor) -> tuple[LossTokens, Tensor]:
        """Return what the loss knows of a micro batch's tokens, and which of their importance weights were bounded.

        Old log-probabilities that are not known yet are those of this moment: no step was made since the rollout.
        """
        batch = micro_batch.batch
        known = self.old_logp[batch.token]
        old = torch.where(known.isfinite(), known, logp.detach())
        importance, bounded = None, torch.zeros_like(old, dtype=torch.bool)
        if self.correction != "bypass":
            engine = torch.where(self.usable[batch.token], self.engine_logp[batch.token], old)
            importance, bounded = importance_weights(
                self.correction, old, engine, batch.response, self.algorithm.importance_cap
            )
        tokens = LossTokens(
            logp, old, self.advantages[batch.response], micro_batch.weight, batch.response, importance,
            micro_batch.ref_logp, entropy,
        )  # fmt: skip
        return tokens, bounded

    def over_ranks(self, totals: Tensor) -> Tensor:
        """Sum each of `totals` over the ranks."""
        if self.ranks > 1:
            dist.all_reduce(totals)
        return totals
