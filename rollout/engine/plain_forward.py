"""The reference of the self-check: transformers' own forward over changed weights, one block at a time.

 The base stays the checkpoint's memory-mapped file; on the device that computes there
are at any moment one block of it, one changed block, and the hidden states of all sequences.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersweep.policies.model.pretrained import load_pretrained

BLOCK = "model.layers.{}."
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
VOCABULARY_CHUNK = 16384
"""Number of rows of the LM head that are on the device at a time."""


class ChangedWeights(Mapping[str, Tensor]):
    """Some of the base's weights, each entry moved by a share of its own size; computed at each access.

    An entry w at row i and column j becomes w (1 + amount s_i t_j) with random signs s and t: a change that is as
    large as the weights are, whatever their scale, and that costs no random numbers of the weights' count. A tensor
    of zeros (biases before training) becomes amount s_i.

    Args:
        base: the base's weights by Hugging Face name.
        amounts: the share by which each of the weights in it is moved.
        seed: of the signs.
    """

    def __init__(self, base: Mapping[str, Tensor], amounts: Mapping[str, float], seed: int):
        self.base, self.amounts, self.seed = base, amounts, seed

    def __getitem__(self, name: str) -> Tensor:
        amount, weight = self.amounts[name], self.base[name].detach()
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        change = torch.full((), amount)
        for dim, size in enumerate(weight.shape):
            signs = torch.randint(2, (size,), generator=generator).mul_(2).sub_(1)
            change = change * signs.view([-1 if d == dim else 1 for d in range(weight.dim())])
        return (weight * (1 + change) if weight.any() else change).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.amounts)

    def __len__(self) -> int:
        return len(self.amounts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the tensors, without the base."""
        return dict, (dict(self),)


@dataclass(frozen=True)
class ScoredResponse:
    """Response whose log-probabilities are computed under given weights."""

    weights: Mapping[str, Tensor]
    """Weights that differ from the base, by Hugging Face name."""
    prompt: np.ndarray
    response: np.ndarray


class PlainForward:
    """The base model as transformers has it.

    Args:
        folder: of the checkpoint.
        dtype: of the engine's weights, a torch dtype's name. The checkpoint is mapped where it is stored in it.
    """

    def __init__(self, folder: str, dtype: str, trust_remote_code: bool = False):
        self.model = load_pretrained(folder, dtype, trust_remote_code).eval()
        self.model.requires_grad_(False)
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        """Weights by Hugging Face name; a tied LM head appears once, as the embedding."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def logprobs(self, responses: Sequence[ScoredResponse], dtype: torch.dtype) -> list[Tensor]:
        """Return the log-probabilities [tokens] of each response, computed in `dtype` from the loaded weights."""
        rows = [torch.from_numpy(np.concatenate([r.prompt, r.response])).long() for r in responses]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # at the end, where no token of a row looks
        embedded = torch.stack(
            [
                F.embedding(row, r.weights.get(EMBEDDING, self.weights[EMBEDDING]))
                for row, r in zip(ids, responses, strict=True)
            ]
        ).to(self.device, dtype)
        hidden = self._decoder(embedded, responses)
        return [
            self._token_logprobs(states[len(r.prompt) - 1 :][: len(r.response)], r)
            for states, r in zip(hidden, responses, strict=True)
        ]

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

    def _token_logprobs(self, hidden: Tensor, response: ScoredResponse) -> Tensor:
        """Return one response's [tokens], float32, from the hidden states [tokens, hidden] that predict it."""
        embedding = response.weights.get(EMBEDDING, self.weights[EMBEDDING])
        head = response.weights.get(HEAD, self.weights.get(HEAD, embedding))
        norm = response.weights.get(NORM, self.weights[NORM]).to(hidden)
        hidden = torch.func.functional_call(self.model.model.norm, {"weight": norm}, (hidden,))
        logits = torch.cat([F.linear(hidden, part.to(hidden)).float() for part in head.split(VOCABULARY_CHUNK)], -1)
        return logits.log_softmax(-1)[range(len(logits)), torch.from_numpy(response.response).long()].cpu()


class _Streamed(nn.Module):
    """Wrapper of one of transformers' blocks, whose weights are on the device during the call alone.

    All rows go through the base's weights, then those of responses with a block of their own through that.
    """

    def __init__(self, block: nn.Module, k: int, responses: Sequence[ScoredResponse]):
        super().__init__()
        self.block = block
        self.prefix, self.responses = BLOCK.format(k), responses

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        owners: dict[int, list[int]] = {}
        for row, response in enumerate(self.responses):
            owns = any(name.startswith(self.prefix) for name in response.weights)
            owners.setdefault(id(response.weights) if owns else 0, []).append(row)
        result = torch.empty_like(hidden)
        for owner, rows in owners.items():
            weights = self.responses[rows[0]].weights if owner else {}
            state = {
                name: weights.get(self.prefix + name, weight).to(hidden)
                for name, weight in self.block.named_parameters()
            }
            mask = attention_mask
            if mask is not None and mask.shape[0] > 1:
                mask = mask[rows]
            result[rows] = torch.func.functional_call(
                self.block, state, (hidden[rows],), kwargs | {"attention_mask": mask}
            )
        return result
