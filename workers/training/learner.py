"""One run's updates: DeepSpeed over the selection's parameters alone, computing through the frozen trunk."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.loss import policy_loss, token_weights
from layersweep.policies.model.tree_batch import pack
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig

from .microbatch_cache import CacheBudget, MicroBatchCache, TrainingMicroBatch


class NonFinite(RuntimeError):
    """A loss or gradient that is not a number: the run has collapsed."""


@dataclass
class _Sums:
    """What an update adds up over tokens and optimizer steps, on this rank."""

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    tokens: float = 0.0
    mismatch: float = 0.0
    mismatch_tokens: float = 0.0
    grad_norms: list[float] = field(default_factory=list)


def learning_rate(config: TrainingConfig, peak: float, step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up, then the schedule down to 0 at `steps`."""
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return peak * (1 - done)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak


def deepspeed_settings(training: TrainingConfig, section: DeepSpeedConfig, full: bool, ranks: int) -> dict:
    """DeepSpeed's own configuration. Accumulation is ours (set_gradient_accumulation_boundary), hence the ones."""
    stage = section.full_zero_stage if full else section.layer_zero_stage
    zero: dict = {"stage": stage}
    if full and section.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded too: torch's AdamW, and no compiler on every node
        "bf16": {"enabled": training.dtype == "bfloat16"},
    }


class Learner:
    """Trains one selection.

    Args:
        trunk: the frozen base, shared with everybody on the node.
        selection: what trains.
        algorithm: advantages and loss settings.
        training, section: of the spec.
        rank, ranks: this process's place in the run's data-parallel group; torch.distributed is initialised.
    """

    def __init__(
        self,
        trunk: Trunk,
        selection: Selection,
        algorithm: PolicyGradient,
        training: TrainingConfig,
        section: DeepSpeedConfig,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.trunk, self.selection, self.algorithm, self.training = trunk, selection, algorithm, training
        self.rank, self.ranks = rank, ranks
        full = selection.whole
        self.peak = training.learning_rate.of(full)
        policy = Policy(trunk, selection)
        self.parameters = sum(p.numel() for p in policy.parameters())
        self.device = next(policy.parameters()).device
        optimizer = torch.optim.AdamW(
            _parameter_groups(policy), lr=self.peak, betas=training.betas, weight_decay=training.weight_decay
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            config=deepspeed_settings(training, section, full, ranks),
            dist_init_required=False,
        )
        self.policy: Policy = self.engine.module

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """One rollout batch: `epochs` passes of `minibatches` optimizer steps each.

        Groups whose rewards are all equal have no advantage: without a KL term their gradient is zero, so they
        are left out of the computation (not of the averages) and counted.

        Returns:
            The metrics of steps.parquet that the trainer knows.

        Raises:
            NonFinite: before the weights are touched (at ZeRO 0; above it, before they leave the trainer).
        """
        began, cpu = time.perf_counter(), time.process_time()
        rate = learning_rate(self.training, self.peak, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        algorithm, limit = self.algorithm, self.training.max_response_tokens
        reward = algorithm.shaped(experience.reward, experience.lengths, limit)
        advantage = algorithm.advantages(
            reward, experience.group, experience.trajectory, experience.step, experience.anchor
        )
        advantages = torch.from_numpy(advantage).to(self.device)
        old_logp = torch.from_numpy(experience.logprobs).to(self.device)
        agreement = {"gradient_agreement": self._agreement(experience, advantage, old_logp)} if step == 0 else {}
        kl = self.algorithm.kl_coefficient > 0
        room = CacheBudget(self.training.prefix_cache_mib << 20 if self.training.epochs > 1 else 0)
        minibatches = [
            self._pieces(experience, rows, advantage, kl, room) for rows in self._minibatches(experience, step)
        ]
        sums = _Sums()
        for epoch in range(self.training.epochs):
            for number, pieces in enumerate(minibatches):
                self._optimizer_step(pieces, old_logp, advantages, sums, first=epoch == 0 and number == 0)
        return self._metrics(experience, advantage, sums, rate, began, cpu) | agreement

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters under their Hugging Face names: their own memory, which the next update changes.

        At ZeRO 3, where no rank has them whole, gathered copies: call it on every rank.
        """
        partitioned = self.engine.zero_optimization_stage() == 3
        with self.gathered() as named:
            return {name: weight.detach().clone() if partitioned else weight.detach() for name, weight in named.items()}

    @contextlib.contextmanager
    def gathered(self, writer: int | None = None) -> Iterator[dict[str, torch.nn.Parameter]]:
        """The trained parameters themselves, whole on every rank for the time of a `with` block.

        Args:
            writer: the rank whose changes within the block everybody gets; None where none changes them.
        """
        named = self.policy.named_weights()
        partitioned = self.engine.zero_optimization_stage() == 3
        with deepspeed.zero.GatheredParameters(list(named.values()), modifier_rank=writer, enabled=partitioned):
            yield named
            if writer is not None and self.ranks > 1 and not partitioned:
                for weight in named.values():
                    dist.broadcast(weight.data.view(torch.uint8), writer)

    def _minibatches(self, experience: Experience, step: int) -> list[np.ndarray]:
        """Rows of each minibatch: whole groups, dealt out in an order that depends on the step alone."""
        groups = np.unique(experience.group)
        order = np.random.default_rng(step).permutation(groups)
        parts = np.array_split(order, self.training.minibatches)
        return [np.flatnonzero(np.isin(experience.group, part)) for part in parts]

    def _agreement(self, experience: Experience, advantage: np.ndarray, old_logp: Tensor) -> float:
        """Cosine between the policy loss's gradients of the even and of the odd prompts, at the present weights.

        Takes as much memory as AdamW's moments, which are not there yet at the first step. NaN where a half has no
        signal, and for a whole model under ZeRO, which has no room for its whole gradient on each rank.
        """
        if self.selection.whole and self.engine.zero_optimization_stage() > 0:
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
        """Of the policy loss of some rows over all ranks, float32, a tensor per parameter; the KL term has none at the
        base. torch.autograd.grad on the bare policy leaves the gradients that DeepSpeed keeps as they are."""
        parameters, advantages = list(self.policy.parameters()), torch.from_numpy(advantage).to(self.device)
        total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for piece in self._pieces(experience, rows, advantage, kl=False, room=CacheBudget(0)):
            logp, _ = self.policy(piece.batch, piece.hidden, self.training.temperature)
            old = old_logp[piece.batch.token]
            loss = policy_loss(self.algorithm, logp, old, advantages[piece.batch.response], piece.weight).loss
            for so_far, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                so_far += gradient
        if self.ranks > 1:
            for gradient in total:
                dist.all_reduce(gradient)
        return total

    def _pieces(
        self, experience: Experience, rows: np.ndarray, advantage: np.ndarray, kl: bool, room: CacheBudget
    ) -> MicroBatchCache:
        """This rank's micro batches of one minibatch, weighted over the whole minibatch; with `kl`, of groups without
        signal too, and the reference's log-probabilities."""
        lengths = torch.from_numpy(experience.lengths[rows])
        weights = torch.zeros(len(experience.lengths))
        weights[rows] = token_weights(lengths, self.algorithm.aggregation, self.training.max_response_tokens)
        weights = weights.to(self.device)
        used = rows if kl else rows[advantage[rows] != 0]
        batches = pack(
            experience.prompts, experience.tokens, experience.lengths, used, self.training.micro_batch_tokens
        )

        def piece(number: int, scale: float, ref_logp: Tensor | None) -> TrainingMicroBatch:
            batch = batches[number].to(self.device)
            hidden = None if self.selection.whole else self.trunk.prefix(batch, self.policy.start)
            if kl and ref_logp is None:
                below = hidden if hidden is not None else self.trunk.prefix(batch, 0)
                ref_logp = self.trunk.reference(batch, below, self.policy.start, self.training.temperature)
            return TrainingMicroBatch(batch, hidden, weights[batch.response] * (scale * self.ranks), ref_logp)

        mine = range(self.rank, len(batches), self.ranks)
        # Every rank must make the same number of backward passes: collectives wait for each other.
        short = -(-len(batches) // self.ranks) - len(mine)
        return MicroBatchCache(
            [partial(piece, i, 1.0) for i in mine] + [partial(piece, i, 0.0) for i in range(short)], room
        )

    def _optimizer_step(
        self, pieces: MicroBatchCache, old_logp: Tensor, advantages: Tensor, sums: _Sums, first: bool
    ) -> None:
        if not pieces:
            return  # every group without signal: nothing to learn from
        temperature = self.training.temperature
        for i, piece in enumerate(pieces):
            batch, live = piece.batch, float(piece.weight.any())
            self.engine.set_gradient_accumulation_boundary(i == len(pieces) - 1)
            logp, entropy = self.engine(batch, piece.hidden, temperature)
            old = old_logp[batch.token]
            terms = policy_loss(self.algorithm, logp, old, advantages[batch.response], piece.weight, piece.ref_logp)
            if not torch.isfinite(terms.loss):
                raise NonFinite(f"loss is {terms.loss.item()}")
            self.engine.backward(terms.loss)
            sums.loss += terms.loss.item() / self.ranks
            sums.kl += live * terms.kl.item()
            sums.clipped += live * terms.clipped.item()
            sums.entropy += live * entropy.sum().item()
            sums.tokens += live * batch.tokens
            if first:
                sums.mismatch += live * (logp.detach() - old).abs().sum().item()
                sums.mismatch_tokens += live * batch.tokens
        norm = None
        if self.engine.zero_optimization_stage() == 0 and self.training.dtype == "float32":
            norm = _finite(torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters()]))
        self.engine.step()
        sums.grad_norms.append(norm if norm is not None else _finite(self.engine.get_global_grad_norm()))

    def _metrics(
        self, experience: Experience, advantage: np.ndarray, sums: _Sums, rate: float, began: float, cpu: float
    ) -> dict[str, float]:
        totals = torch.tensor(
            [sums.loss, sums.kl, sums.entropy, sums.clipped, sums.tokens, sums.mismatch, sums.mismatch_tokens],
            dtype=torch.float64,
        )
        if self.ranks > 1:
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        loss, kl, entropy, clipped, tokens, mismatch, mismatch_tokens = totals.tolist()
        steps = max(1, len(sums.grad_norms))
        with_signal = np.unique(experience.group[advantage != 0])
        return {
            "reward_mean": float(experience.reward.mean()),
            "reward_std": float(experience.reward.std()),
            "no_signal_fraction": 1 - len(with_signal) / len(np.unique(experience.group)),
            "loss": loss / steps,
            "kl": kl / max(1.0, tokens),
            "entropy": entropy / max(1.0, tokens),
            "clip_fraction": clipped / max(1.0, tokens),
            "grad_norm": float(np.mean(sums.grad_norms)) if sums.grad_norms else 0.0,
            "update_norm": self.update_norm(),
            "logprob_mismatch": mismatch / max(1.0, mismatch_tokens),
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
        """L2 norm of the change of the trained parameters since the base model."""
        base = dict(self.trunk.model.named_parameters())
        with self.gathered() as named:
            return math.sqrt(sum(float((w - base[n]).float().square().sum()) for n, w in named.items()))


def _parameter_groups(policy: Policy) -> list[dict]:
    """One group at the learning rate; with `boost` the chosen layers in a second one at twice that."""
    chosen = policy.selection.names if policy.selection.kind == "boost" else lambda _: False
    groups: dict[bool, list] = {False: [], True: []}
    for name, weight in policy.named_weights().items():
        groups[chosen(name)].append(weight)
    return [{"params": weights, "factor": 1 + boosted} for boosted, weights in groups.items() if weights]


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """Of two gradients, summed over their tensors."""
    return sum(float(torch.dot(x.flatten(), y.flatten())) for x, y in zip(a, b, strict=True))


def _finite(norm: Tensor | float) -> float:
    if not math.isfinite(norm):
        raise NonFinite(f"gradient norm is {float(norm)}")
    return float(norm)
