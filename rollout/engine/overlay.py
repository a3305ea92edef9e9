"""The weights in which a run differs from the base model, in the form that the engine computes with.

Overlays live outside vLLM's module tree: nothing that vLLM does to its own weights (packing by oneDNN, sleep,
reload) touches them, and the base stays as it was loaded. Each tensor-parallel rank keeps its own shard.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)

FEWEST_ROWS = 16
"""Fewest rows of a matrix product on a CPU. Below 4, other kernels sum in another order, and what a run samples would
depend, in the last bit, on which other runs' requests are in the batch."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BLOCK_WEIGHTS = {f"self_attn.{name}_proj.weight" for name in "qkvo"} | {
    f"self_attn.{name}_proj.bias" for name in "qkv"
}
_BLOCK_WEIGHTS |= {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
_BLOCK_WEIGHTS |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
_BLOCK_WEIGHTS |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
_OUTER = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear of x [rows, in]; on a CPU a row's result does not depend on the number of rows."""
    rows = x.shape[0]
    if x.is_cuda or rows >= FEWEST_ROWS:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, FEWEST_ROWS - rows)), weight, bias)[:rows]


def _shard(weight: Tensor, dim: int, rank: int, parts: int) -> Tensor:
    return weight.chunk(parts, dim)[rank] if parts > 1 else weight


@dataclass
class LayerOverlay:
    """Weights of one decoder block (Llama, Qwen2, Qwen3): RMSNorm, fused QKV, optional bias and QK-norm, SwiGLU.

    `weights` holds float tensors by short name: `qkv` [q + 2 kv, hidden], `qkv_bias`, `q_norm`, `k_norm`
    [head_dim], `o` [hidden, q], `gate_up` [2 intermediate, hidden], `down` [hidden, intermediate],
    `input_norm`, `post_norm` [hidden]; sizes are those of this rank's shard.
    """

    eps: float
    weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, layer: nn.Module, hf: Mapping[str, Tensor], like: Tensor) -> "LayerOverlay":
        """Build from one block's Hugging Face tensors (names relative to the block), on `like`'s device and dtype."""
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        kv_ranks = min(ranks, layer.self_attn.total_num_kv_heads)
        kv_rank = rank * kv_ranks // ranks  # fewer KV heads than ranks: neighbours share one

        def qkv(suffix: str) -> Tensor:
            q = _shard(hf[f"self_attn.q_proj.{suffix}"], 0, rank, ranks)
            k, v = (_shard(hf[f"self_attn.{name}_proj.{suffix}"], 0, kv_rank, kv_ranks) for name in "kv")
            return torch.cat([q, k, v])

        if unknown := set(hf) - _BLOCK_WEIGHTS:
            raise ValueError(f"a block has no place here for {sorted(unknown)}")
        weights = {
            "input_norm": hf["input_layernorm.weight"],
            "post_norm": hf["post_attention_layernorm.weight"],
            "qkv": qkv("weight"),
            "o": _shard(hf["self_attn.o_proj.weight"], 1, rank, ranks),
            "gate_up": torch.cat([_shard(hf[f"mlp.{n}_proj.weight"], 0, rank, ranks) for n in ("gate", "up")]),
            "down": _shard(hf["mlp.down_proj.weight"], 1, rank, ranks),
        }
        if "self_attn.q_proj.bias" in hf:
            weights["qkv_bias"] = qkv("bias")
        if "self_attn.q_norm.weight" in hf:
            weights["q_norm"], weights["k_norm"] = hf["self_attn.q_norm.weight"], hf["self_attn.k_norm.weight"]
        # A copy, because the source may be read-only memory that others share.
        weights = {name: w.detach().to(like, copy=True).contiguous() for name, w in weights.items()}
        return cls(layer.input_layernorm.variance_epsilon, weights)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[name], self.eps)

    def project(self, attention: nn.Module, positions: Tensor, hidden: Tensor, residual: Tensor | None):
        """Compute all before attention: q, k, v [rows, heads * head_dim] and the residual stream."""
        residual = hidden if residual is None else hidden + residual
        qkv = linear(self._norm(residual, "input_norm"), self.weights["qkv"], self.weights.get("qkv_bias"))
        q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
        if "q_norm" in self.weights:
            q, k = (self._norm(x.unflatten(-1, (-1, attention.head_dim)), n).flatten(-2)
                    for x, n in ((q, "q_norm"), (k, "k_norm")))  # fmt: skip
        q, k = attention.rotary_emb(positions, q.contiguous(), k.contiguous())
        return q, k, v, residual

    def finish(self, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Compute all after attention: the block's output (not yet added) and the residual stream."""
        residual = residual + self._reduce(linear(attended, self.weights["o"]))
        gate, up = linear(self._norm(residual, "post_norm"), self.weights["gate_up"]).chunk(2, dim=-1)
        return self._reduce(linear(F.silu(gate) * up, self.weights["down"])), residual

    @staticmethod
    def _reduce(partial: Tensor) -> Tensor:
        return tensor_model_parallel_all_reduce(partial) if get_tensor_model_parallel_world_size() > 1 else partial


@dataclass
class EngineOverlay:
    """Weights of one run: its blocks, and for a full run the embedding, the final norm and the LM head too."""

    version: int
    layers: dict[int, LayerOverlay]
    embedding: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None
    bytes: int = 0

    @classmethod
    def build(cls, model: nn.Module, version: int, weights: Mapping[str, Tensor]) -> "EngineOverlay":
        """Build from Hugging Face names and tensors, as a trainer sends them.

        Raises:
            ValueError: a name that no Llama-type decoder has, a block sent in part, or (with tensor
                parallelism) an embedding, which would have to be split by vocabulary.
        """
        blocks: dict[int, dict[str, str]] = {}
        rest = set(weights)
        for name in weights:
            if match := _LAYER.fullmatch(name):
                blocks.setdefault(int(match[1]), {})[match[2]] = name
                rest.remove(name)
        like, sent = model.model.norm.weight, 0

        def copied(name: str) -> Tensor:
            nonlocal sent
            tensor = weights[name].detach()
            sent += tensor.numel() * tensor.element_size()
            return tensor.to(like, copy=True)

        outer = {field: copied(name) for field, name in _OUTER.items() if name in rest}
        if unknown := rest - set(_OUTER.values()):
            raise ValueError(f"not weights of a Llama-type decoder: {sorted(unknown)}")
        if outer and get_tensor_model_parallel_world_size() > 1:
            raise ValueError("a full run's embedding in the shared engine needs tensor parallelism 1")
        if "embedding" in outer and model.config.tie_word_embeddings:
            outer["head"] = outer["embedding"]
        layers = {}
        for k, names in blocks.items():  # one block's tensors at a time: a mapping may make them when asked for
            hf = {short: weights[name] for short, name in names.items()}
            try:
                layers[k] = LayerOverlay.build(model.model.layers[k], hf, like)
            except KeyError as missing:
                raise ValueError(f"a block must be sent whole: {missing} is missing") from missing
            sent += sum(tensor.numel() * tensor.element_size() for tensor in hf.values())
        return cls(version, layers, **outer, bytes=sent)

    def add(self, part: "EngineOverlay") -> None:
        """Take over another part of the same run's weights."""
        self.layers |= part.layers
        self.bytes += part.bytes
        for name in _OUTER:
            if (weight := getattr(part, name)) is not None:
                setattr(self, name, weight)
