"""The reference of the self-check: transformers' own forward over changed weights, one block at a time.

 The base stays the checkpoint's memory-mapped file; on the device that computes there
are at any moment one block of it, one changed block, and the hidden states of all sequences.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersweep.policies.model.pretrained import load_pretrained

from .fp8_cache import NEAREST, TOWARDS_ZERO

BLOCK = "model.layers.{}."
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
ROWS = 8192
"""Number of rows of a weight that are changed, and of the LM head that are on the device, at a time."""


class ChangedWeights(Mapping[str, Tensor]):
    """The base with some weights changed, each entry by a share of its own size; computed at each access.

    An entry w at row i and column j becomes w (1 + amount s_i t_j) with random signs s and t (of experts' weights a
    third besides): a change that is as large as the weights are, whatever their scale, and that costs no random numbers
    of the weights' count. A vector of zeros (biases before training) becomes amount s_i. The mapping holds the changed
    weights alone.

    Args:
        base: the base's weights by Hugging Face name.
        amounts: the share by which each of the weights in it is changed.
        seed: of the signs.
    """

    def __init__(self, base: Mapping[str, Tensor], amounts: Mapping[str, float], seed: int):
        self.base, self.amounts, self.seed = base, amounts, seed

    def rows(self, name: str, rows: slice | Tensor) -> Tensor:
        """Return rows of any weight, changed or not."""
        weight = self.base[name].detach()
        if name not in self.amounts:
            return weight[rows]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        signs = [torch.randint(2, (size,), generator=generator).mul_(2).sub_(1) for size in weight.shape]
        if weight.dim() == 1:
            change = self.amounts[name] * signs[0][rows]
            return (weight[rows] * (1 + change) if weight.any() else change).to(weight.dtype)
        change = self.amounts[name] * signs[0][rows]
        for sign in signs[1:]:
            change = change[..., None] * sign
        return change.add_(1).mul_(weight[rows]).to(weight.dtype)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.amounts:
            raise KeyError(name)
        weight = torch.empty_like(self.base[name])
        for begin in range(0, len(weight), ROWS):
            weight[begin : begin + ROWS] = self.rows(name, slice(begin, begin + ROWS))
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.amounts)

    def __len__(self) -> int:
        return len(self.amounts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the changed tensors, without the base."""
        return dict, (dict(self),)


class ReplacedWeights(dict[str, Tensor]):
    """The base with some weights replaced, those that the mapping holds.

    Args:
        base: the base's weights by Hugging Face name.
    """

    def __init__(self, base: Mapping[str, Tensor], weights: Mapping[str, Tensor]):
        super().__init__(weights)
        self.base = base

    def rows(self, name: str, rows: slice | Tensor) -> Tensor:
        """Return rows of any weight, replaced or not."""
        return self.get(name, self.base[name]).detach()[rows]


@dataclass(frozen=True)
class ScoredResponse:
    """Response whose log-probabilities are computed under given weights."""

    weights: ChangedWeights | ReplacedWeights
    prompt: np.ndarray
    response: np.ndarray


class PlainForward:
    """The base model as transformers has it.

    Args:
        folder: of the checkpoint.
        dtype: of the engine's weights, a torch dtype's name. The checkpoint is mapped where it is stored in it.
        kv_cache_dtype: of the engine, as in the spec.
    """

    def __init__(self, folder: str, dtype: str, trust_remote_code: bool = False, kv_cache_dtype: str = "auto"):
        self.model = load_pretrained(folder, dtype, trust_remote_code).eval()
        self.model.requires_grad_(False)
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        """Weights by Hugging Face name; a tied LM head appears once, as the embedding."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.attention = self.model.config._attn_implementation
        """Transformers' own attention."""
        nearest = NEAREST if self.device.type == "cuda" else TOWARDS_ZERO
        self.cache_attention = nearest if kv_cache_dtype == "fp8" else self.attention
        """Attention over keys and values as the engine's KV cache keeps them."""

    @torch.no_grad()
    def logprobs(
        self, responses: Sequence[ScoredResponse], dtype: torch.dtype, attention: str | None = None
    ) -> list[Tensor]:
        """Return the log-probabilities [tokens] of each response, computed in `dtype` from the loaded weights.

        Args:
            attention: one of transformers' implementations; null is `cache_attention`.
        """
        self.model.set_attn_implementation(attention or self.cache_attention)
        sequences = [torch.from_numpy(np.concatenate([r.prompt, r.response])).long() for r in responses]
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # at the end, which no token attends to
        rows = torch.cat([r.weights.rows(EMBEDDING, row) for row, r in zip(ids, responses, strict=True)])
        hidden = self._decoder(self._embedded(rows.to(self.device, dtype)).unflatten(0, ids.shape), responses)
        found: dict[int, Tensor] = {}
        for weights, rows in _by_weights(responses, (NORM, EMBEDDING, HEAD)):
            lengths = [len(responses[row].response) for row in rows]
            predicting = torch.cat(
                [
                    hidden[row, len(responses[row].prompt) - 1 :][:length]
                    for row, length in zip(rows, lengths, strict=True)
                ]
            )
            tokens = torch.cat([torch.from_numpy(responses[row].response).long() for row in rows])
            found |= zip(rows, self._token_logprobs(weights, predicting, tokens).split(lengths), strict=True)
        return [found[row] for row in range(len(responses))]

    def _embedded(self, rows: Tensor) -> Tensor:
        """Return the embeddings [tokens, hidden] of tokens whose rows of the weight are these; some families scale."""
        module = self.model.model.embed_tokens
        state = {"weight": rows} | {name: buffer.to(self.device) for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, state, (torch.arange(len(rows), device=self.device),))

    def _decoder(self, embedded: Tensor, responses: Sequence[ScoredResponse]) -> Tensor:
        """Compute hidden states [B, T, hidden] before the final norm, with transformers' own masks and positions."""
        decoder = self.model.model
        layers, norm, rotary = decoder.layers, decoder.norm, decoder.rotary_emb
        try:
            decoder.layers = nn.ModuleList(_Streamed(block, k, responses) for k, block in enumerate(layers))
            decoder.norm, decoder.rotary_emb = nn.Identity(), rotary.to(self.device)
            return decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        finally:
            decoder.layers, decoder.norm, decoder.rotary_emb = layers, norm, rotary.to("cpu")

    def _token_logprobs(self, weights: ChangedWeights, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return log-probabilities [tokens], float32, from the hidden states [tokens, hidden] that predict them."""
        norm = {"weight": weights.rows(NORM, slice(None)).to(hidden)}
        hidden = torch.func.functional_call(self.model.model.norm, norm, (hidden,))
        head = HEAD if HEAD in self.weights else EMBEDDING
        parts = (weights.rows(head, slice(begin, begin + ROWS)) for begin in range(0, len(self.weights[head]), ROWS))
        logits = torch.cat([F.linear(hidden, part.to(hidden)).float() for part in parts], -1)
        return logits.log_softmax(-1)[range(len(logits)), tokens].cpu()


def _by_weights(
    responses: Sequence[ScoredResponse], names: Iterable[str]
) -> Iterator[tuple[ChangedWeights, list[int]]]:
    """Group responses whose weights of these names are the same: those without a change in them, and each other run."""
    names = list(names)
    groups: dict[int, list[int]] = {}
    for row, response in enumerate(responses):
        changed = not response.weights.keys().isdisjoint(names)
        groups.setdefault(id(response.weights) if changed else 0, []).append(row)
    for rows in groups.values():
        yield responses[rows[0]].weights, rows


class _Streamed(nn.Module):
    """Wrapper of one of transformers' blocks, whose weights are on the device during the call alone.

    Rows of responses without a change in the block go through the base's weights, each other run's through its own.
    """

    def __init__(self, block: nn.Module, k: int, responses: Sequence[ScoredResponse]):
        super().__init__()
        self.block = block
        self.names = {name: BLOCK.format(k) + name for name, _ in block.named_parameters()}
        self.responses = responses

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        result = torch.empty_like(hidden)
        for weights, rows in _by_weights(self.responses, self.names.values()):
            state = {short: weights.rows(name, slice(None)).to(hidden) for short, name in self.names.items()}
            mask = attention_mask
            if mask is not None and mask.shape[0] > 1:
                mask = mask[rows]
            result[rows] = torch.func.functional_call(
                self.block, state, (hidden[rows],), kwargs | {"attention_mask": mask}
            )
        return result
