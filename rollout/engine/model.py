"""Llama-type decoders of vLLM whose rows go through their own run's weights: mixed-layer batching.

Runs of a sweep differ from the base in few blocks. At a block that some run in the batch owns, that run's rows
are projected with its own weights, attention is computed for all rows together (it has no weights), and the
rows part again for the output projection and the MLP. Every other block runs as vLLM has it. A batch of the
base alone takes vLLM's own path.

The blocks are called one by one from Python here, so these models run eagerly: torch.compile would bake one
batch's routing in and serve base weights to every run (seen), and a CUDA graph would need fixed row counts.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from .model_state import RoutedModelState
from .overlay import EngineOverlay, LayerOverlay, linear
from .row_routing import RowGroup, RowRouting


def _take(rows: Tensor | None, x: Tensor) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _merge(groups: list[RowGroup], pieces: list[tuple[Tensor, ...]], rows: int) -> tuple[Tensor, ...]:
    """Put each group's tensors back at their rows."""
    if len(groups) == 1:
        return pieces[0]
    merged = tuple(piece.new_empty(rows, *piece.shape[1:]) for piece in pieces[0])
    for (index, _), piece in zip(groups, pieces, strict=True):
        for whole, own in zip(merged, piece, strict=True):
            whole.index_copy_(0, index, own)
    return merged


def _first_row(part: Tensor, whole: Tensor | None) -> int | None:
    """Return the number of the row of `whole` at which `part`, a view of it, begins; None where it is a copy."""
    if whole is None or part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    return (part.storage_offset() - whole.storage_offset()) // whole.stride(0)


def _project_base(layer: nn.Module, positions: Tensor, hidden: Tensor, residual: Tensor | None):
    """Compute the first half of vLLM's own block, as LayerOverlay.project does for an overlay."""
    attention = layer.self_attn
    if residual is None:
        residual, hidden = hidden, layer.input_layernorm(hidden)
    else:
        hidden, residual = layer.input_layernorm(hidden, residual)
    qkv, _ = attention.qkv_proj(hidden)
    q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    if hasattr(attention, "q_norm"):
        q, k = (norm(x.unflatten(-1, (-1, attention.head_dim))).flatten(-2)
                for x, norm in ((q, attention.q_norm), (k, attention.k_norm)))  # fmt: skip
    q, k = attention.rotary_emb(positions, q, k)
    return q, k, v, residual


def _finish_base(layer: nn.Module, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the second half of vLLM's own block, as LayerOverlay.finish does for an overlay."""
    output, _ = layer.self_attn.o_proj(attended)
    hidden, residual = layer.post_attention_layernorm(output, residual)
    return layer.mlp(hidden), residual


def _block(layer: nn.Module, groups: list[RowGroup[LayerOverlay]], positions: Tensor, hidden: Tensor, residual):
    if groups == [(None, None)]:
        return layer(positions, hidden, residual)
    rows, pieces = hidden.shape[0], []
    for index, own in groups:
        here = (_take(index, positions), _take(index, hidden), None if residual is None else _take(index, residual))
        pieces.append(own.project(*here) if own else _project_base(layer, *here))
    q, k, v, residual = _merge(groups, pieces, rows)
    attended = layer.self_attn.attn(q, k, v)
    pieces = []
    for index, own in groups:
        here = (_take(index, attended), _take(index, residual))
        pieces.append(own.finish(*here) if own else _finish_base(layer, *here))
    return _merge(groups, pieces, rows)


class RoutedMixin:
    """Mixin that adds overlays and routing to a vLLM decoder; the worker sets `routing` before each forward."""

    overlays: dict[str, EngineOverlay]
    routing: RowRouting | None
    hidden: Tensor | None
    """Output [tokens, hidden] of the last forward."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.overlays = {}
        self.routing = self.hidden = None

    @staticmethod
    def get_model_state_cls() -> type:
        """Return the class in which vLLM's V2 model runner keeps what it knows of requests."""
        return RoutedModelState

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        routing = self.routing
        if routing is None or not routing.names:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        inner, rows = self.model, positions.shape[-1]
        groups = routing.split(self.overlays, lambda overlay: overlay.embedding, rows)
        pieces = [(inner.embed_tokens(_take(at, input_ids)) if own is None else F.embedding(_take(at, input_ids), own),)
                  for at, own in groups]  # fmt: skip
        (hidden,) = _merge(groups, pieces, rows)
        residual = None
        for k, layer in enumerate(inner.layers):
            groups = routing.split(self.overlays, lambda overlay, k=k: overlay.layers.get(k), rows)
            hidden, residual = _block(layer, groups, positions, hidden, residual)
        groups = routing.split(self.overlays, lambda overlay: overlay.norm, rows)
        pieces = [(self._final_norm(_take(at, hidden), _take(at, residual), own),) for at, own in groups]
        (self.hidden,) = _merge(groups, pieces, rows)
        return self.hidden

    def _final_norm(self, hidden: Tensor, residual: Tensor, own: Tensor | None) -> Tensor:
        norm = self.model.norm
        if own is None:
            return norm(hidden, residual)[0]
        return F.rms_norm(hidden + residual, own.shape, own, norm.variance_epsilon)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        routing = self.routing
        if routing is None or not routing.names:
            return super().compute_logits(hidden_states)
        rows = hidden_states.shape[0]
        # One row a request, copied: the last scheduled token of each. Of log-probabilities of prompts: a view of
        # neighbouring tokens' rows.
        first = _first_row(hidden_states, self.hidden)
        groups = routing.split(self.overlays, lambda overlay: overlay.head, rows, first)
        compute = super().compute_logits
        pieces = []
        for at, own in groups:
            here = _take(at, hidden_states)
            pieces.append((compute(here) if own is None else linear(here, own)[:, : self.config.vocab_size],))
        return _merge(groups, [(piece.float(),) for (piece,) in pieces], rows)[0]


class RoutedLlama(RoutedMixin, LlamaForCausalLM):
    pass


class RoutedQwen2(RoutedMixin, Qwen2ForCausalLM):
    pass


class RoutedQwen3(RoutedMixin, Qwen3ForCausalLM):
    pass


ROUTED: dict[str, type[nn.Module]] = {
    "LlamaForCausalLM": RoutedLlama,
    "Qwen2ForCausalLM": RoutedQwen2,
    "Qwen3ForCausalLM": RoutedQwen3,
}
"""Routed class of each supported Hugging Face architecture."""

# In each process that imports this: with tensor parallelism vLLM's workers are spawned, and know no registration of
# ours but that of their extension's module. The class itself, not "module:Class": the latter imports vLLM once more
# in a subprocess.
for routed in ROUTED.values():
    ModelRegistry.register_model(routed.__name__, routed)
