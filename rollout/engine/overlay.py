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
_QKV = [f"self_attn.{name}_proj" for name in "qkv"]
_FUSED = {
    "qkv": [f"{name}.weight" for name in _QKV],
    "qkv_bias": [f"{name}.bias" for name in _QKV],
    "gate_up": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
}
"""Weights that vLLM keeps in one: by short name, those of Hugging Face."""
_SINGLE = {
    "o": "self_attn.o_proj.weight",
    "down": "mlp.down_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
}
_BLOCK_WEIGHTS = {*_SINGLE.values(), *(name for names in _FUSED.values() for name in names)}
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
    `input_norm`, `post_norm` [hidden]; sizes are those of this rank's shard. What is missing is computed by the base's
    own module.
    """

    base: nn.Module
    """Block of vLLM's own."""
    weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def build(
        cls, base: nn.Module, prefix: str, hf: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor], like: Tensor
    ) -> "LayerOverlay":
        """Build from Hugging Face tensors of one block, on `like`'s device and dtype.

        Args:
            prefix: of the block's names.
            hf: all of the block's tensors, or some, by names relative to the block.
            checkpoint: the base's, by whole names. Weights that are fused with one of `hf` come from here: vLLM packs
                its own away.
        """
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        kv_ranks = min(ranks, base.self_attn.total_num_kv_heads)
        kv_rank = rank * kv_ranks // ranks  # fewer KV heads than ranks: neighbours share one
        if unknown := set(hf) - _BLOCK_WEIGHTS:
            raise ValueError(f"a block has no place here for {sorted(unknown)}")
        own = {short for short, names in _FUSED.items() if not hf.keys().isdisjoint(names)}
        if own & {"qkv", "qkv_bias"}:  # one module of vLLM's
            bias = f"{_QKV[0]}.bias"
            own |= {"qkv", "qkv_bias"} if bias in hf or prefix + bias in checkpoint else {"qkv"}

        def rows(name: str) -> Tensor:
            weight = (hf[name] if name in hf else checkpoint[prefix + name]).detach().to(like)
            of_kv = name.startswith(("self_attn.k_", "self_attn.v_"))
            return _shard(weight, 0, kv_rank, kv_ranks) if of_kv else _shard(weight, 0, rank, ranks)

        # Copies, because the source may be read-only memory that others share.
        weights = {short: torch.cat([rows(name) for name in _FUSED[short]]) for short in own}
        for short, name in _SINGLE.items():
            if name in hf:
                weight = _shard(hf[name], 1, rank, ranks) if short in ("o", "down") else hf[name]
                weights[short] = weight.detach().to(like, copy=True).contiguous()
        return cls(base, weights)

    def _norm(self, x: Tensor, name: str, base: nn.Module) -> Tensor:
        if name not in self.weights:
            return base(x)
        return F.rms_norm(x, x.shape[-1:], self.weights[name], base.variance_epsilon)

    def _linear(self, x: Tensor, name: str, base: nn.Module) -> Tensor:
        if name not in self.weights:
            return base(x)[0]
        y = linear(x, self.weights[name], self.weights.get(f"{name}_bias"))
        if name in ("o", "down") and get_tensor_model_parallel_world_size() > 1:
            return tensor_model_parallel_all_reduce(y)
        return y

    def project(self, positions: Tensor, hidden: Tensor, residual: Tensor | None):
        """Compute all before attention: q, k, v [rows, heads * head_dim] and the residual stream."""
        attention = self.base.self_attn
        residual = hidden if residual is None else hidden + residual
        x = self._norm(residual, "input_norm", self.base.input_layernorm)
        q, k, v = self._linear(x, "qkv", attention.qkv_proj).split(
            [attention.q_size, attention.kv_size, attention.kv_size], dim=-1
        )
        if hasattr(attention, "q_norm"):
            norms = ((q, "q_norm", attention.q_norm), (k, "k_norm", attention.k_norm))
            q, k = (self._norm(x.unflatten(-1, (-1, attention.head_dim)), *norm).flatten(-2) for x, *norm in norms)
        q, k = attention.rotary_emb(positions, q.contiguous(), k.contiguous())
        return q, k, v, residual

    def finish(self, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Compute all after attention: the block's output (not yet added) and the residual stream."""
        mlp = self.base.mlp
        residual = residual + self._linear(attended, "o", self.base.self_attn.o_proj)
        x = self._norm(residual, "post_norm", self.base.post_attention_layernorm)
        gate, up = self._linear(x, "gate_up", mlp.gate_up_proj).chunk(2, dim=-1)
        return self._linear(F.silu(gate) * up, "down", mlp.down_proj), residual


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
    def build(
        cls, model: nn.Module, version: int, weights: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]
    ) -> "EngineOverlay":
        """Build from Hugging Face names and tensors, as a trainer sends them.

        Args:
            checkpoint: the base's weights, likewise; read where a block is sent in part.

        Raises:
            ValueError: a name that no Llama-type decoder has, or (with tensor parallelism) an embedding, which would
                have to be split by vocabulary.
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
            layers[k] = LayerOverlay.build(model.model.layers[k], f"model.layers.{k}.", hf, checkpoint, like)
            sent += sum(tensor.numel() * tensor.element_size() for tensor in hf.values())
        return cls(version, layers, **outer, bytes=sent)

    def add(self, part: "EngineOverlay") -> None:
        """Take over another part of the same run's weights."""
        self.layers |= part.layers
        self.bytes += part.bytes
        for name in _OUTER:
            if (weight := getattr(part, name)) is not None:
                setattr(self, name, weight)
