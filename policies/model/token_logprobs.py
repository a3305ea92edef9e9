"""Log-probabilities and entropies of tokens from hidden states, without logits of the whole vocabulary in memory.

[tokens, vocabulary] in float32 is the largest tensor of an update where the vocabulary is large: 200 KB a token at
49,152 entries, and several of that size. Computed here in chunks of tokens, of which nothing is kept.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from .architecture import CHUNK_BYTES


class LogprobHead(nn.Linear):
    """An LM head, without bias, that also gives log-probabilities of tokens; set as the class of a model's own head.

    They are computed within the module's one call: DeepSpeed at ZeRO 3 gathers the weight for a module's call, over
    all ranks, and how many chunks there are differs between ranks.
    """

    def forward(
        self, hidden: Tensor, target: Tensor | None = None, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits [..., vocabulary], or with targets log-probabilities [N] and entropies [N], float32.

        Args:
            hidden: [..., hidden], after the final norm; with targets [N, hidden].
            target: int64 [N].
            temperature: of the sampling distribution; logits are divided by it.
            entropy_gradient: whether entropies have a graph; each chunk is then computed again in the backward pass.
        """
        if target is None:
            return super().forward(hidden)
        rows = max(1, CHUNK_BYTES[hidden.device.type] // (4 * self.out_features))
        if entropy_gradient:
            parts = [
                checkpoint(_with_entropy, hidden[at], self.weight, target[at], temperature, use_reentrant=False)
                for at in _slices(len(target), rows)
            ]
            return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])
        if len(target) <= rows:
            return _from_logits(super().forward(hidden), target, temperature)
        return _ChunkedLogprobs.apply(hidden, self.weight, target, temperature, rows)


def _from_logits(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return both from whole logits [N, vocabulary], of any dtype."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    logp_all = torch.log_softmax(logits, dim=-1)
    logp = logp_all.gather(-1, target[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(logp_all.exp() * logp_all).sum(-1)
    return logp, entropy


def _with_entropy(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return both with a graph, from hidden states."""
    logp_all = torch.log_softmax(linear(hidden, weight).float() / temperature, dim=-1)
    return logp_all.gather(-1, target[:, None]).squeeze(-1), -(logp_all.exp() * logp_all).sum(-1)


class _ChunkedLogprobs(Function):
    """Log-probabilities log p(t), p = softmax(h W^T / T), and entropies, by chunks of rows.

    The gradient d log p(t) / dh = (W_t - p W) / T is a vector per token, which the forward pass computes
    at once where the head is frozen: the backward pass then only scales it. Where the head trains, dW needs each
    token's gradient first, and p is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.rows = temperature, rows
        ctx.of_head = ctx.needs_input_grad[1]
        direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not ctx.of_head else None
        logp, entropy, normalizer = (
            torch.empty(len(target), dtype=torch.float32, device=hidden.device) for _ in range(3)
        )
        for at in _slices(len(target), rows):
            logits = _scaled_logits(hidden[at], weight, temperature)
            torch.logsumexp(logits, -1, out=normalizer[at])
            logp_all = logits.sub_(normalizer[at, None])
            logp[at] = logp_all.gather(-1, target[at, None]).squeeze(-1)
            p = logp_all.exp()
            entropy[at] = logp_all.mul_(p).sum(-1).neg_()
            del logits, logp_all
            if direction is not None:
                direction[at] = _toward(p, target[at], weight, temperature)
            del p  # before the next chunk's
        ctx.save_for_backward(hidden, weight, target, normalizer) if ctx.of_head else ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if not ctx.of_head:
            (direction,) = ctx.saved_tensors
            return (direction.float() * gradient[:, None]).to(direction.dtype), None, None, None, None
        hidden, weight, target, normalizer = ctx.saved_tensors
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for at in _slices(len(target), ctx.rows):
            p = _scaled_logits(hidden[at], weight, ctx.temperature).sub_(normalizer[at, None]).exp_()
            of_logits = p.mul_(-gradient[at, None] / ctx.temperature)
            of_logits.scatter_add_(-1, target[at, None], gradient[at, None] / ctx.temperature)
            of_logits = of_logits.to(weight.dtype)
            torch.mm(of_logits, weight, out=of_hidden[at])
            of_weight.addmm_(of_logits.T, hidden[at])
            del p, of_logits  # before the next chunk's
        return of_hidden, of_weight, None, None, None


def _slices(count: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, count)) for begin in range(0, count, rows)]


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Return a new float32 tensor [rows, vocabulary] that may be changed in place."""
    logits = linear(hidden, weight).float()
    return logits.div_(temperature) if temperature != 1.0 else logits


def _toward(p: Tensor, target: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Return (W_t - p W) / T for each row; `p` is overwritten."""
    of_logits = p.neg_()
    of_logits.scatter_add_(-1, target[:, None], torch.ones_like(of_logits[:, :1]))
    return (of_logits.to(weight.dtype) @ weight) / temperature
