"""Decoders of vLLM whose rows go through their own run's weights: mixed-layer batching.

Runs of a sweep differ from the base in few modules. At a module that some run in the batch has weights of its own for,
that run's rows are computed by its copy of the module and the others by vLLM's; all else (attention, rotary embeddings,
activations, residual streams) has no weights and is computed for all rows together. A batch of the base alone takes
vLLM's own path.

Modules part the rows in Python, so these models run eagerly: torch.compile would bake one batch's routing in and serve
base weights to every run (seen), and a CUDA graph would need fixed row counts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.model_executor.models.transformers import TransformersForCausalLM

from .model_state import RoutedModelState
from .overlay import EngineOverlay, OverlayBuilder
from .row_routing import RowRouting, Rows

HEAD = "lm_head"


class RoutedMixin:
    """Mixin that adds overlays and routing to a vLLM decoder; the worker sets `routing` before each forward."""

    routing: RowRouting | None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.routing = None
        self.builder = OverlayBuilder(self)
        self.overlays: dict[str, EngineOverlay] = {}
        self._owners: dict[tuple[str, ...], dict[str, dict[int, nn.Module]]] = {}
        self._rows = 0
        for name in self.builder.modules:
            module = self.get_submodule(name)
            entries = ("forward_modular", "forward_monolithic") if isinstance(module, RoutedExperts) else ("forward",)
            for entry in entries:
                setattr(module, entry, partial(self._routed, name, entry, getattr(module, entry)))

    @staticmethod
    def get_model_state_cls() -> type:
        """Return the class in which vLLM's V2 model runner keeps what it knows of requests."""
        return RoutedModelState

    def set_overlay(self, run: str, overlay: EngineOverlay | None) -> None:
        """Serve `run` from an overlay from now on; None forgets it."""
        self._owners.clear()
        if overlay is None:
            self.overlays.pop(run, None)
        else:
            self.overlays[run] = overlay

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        self._rows = positions.shape[-1]
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        # One row a request here: the last scheduled token of each.
        base, rows = self.lm_head, hidden_states.shape[0]

        def compute(head: nn.Module, hidden: Tensor) -> Tensor:
            try:
                self.lm_head = head
                return super(RoutedMixin, self).compute_logits(hidden)
            finally:
                self.lm_head = base

        if (groups := self._groups(HEAD, rows)) is None:
            return super().compute_logits(hidden_states)
        return _in_groups(groups, rows, lambda own, *args: compute(own or base, *args), (hidden_states,), {})

    def _routed(self, name: str, entry: str, base: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute a module, each row by its own run's copy; `base` is the module's own method of the name `entry`."""
        if (groups := self._groups(name, self._rows)) is None:
            return base(*args, **kwargs)

        def compute(own: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs) if own is None else getattr(own, entry)(*args, **kwargs)

        return _in_groups(groups, self._rows, compute, args, kwargs)

    def _groups(self, name: str, rows: int) -> list[tuple[Rows, nn.Module | None]] | None:
        """Group the rows of a module by the copy that computes them, None the base's; None where no run has one."""
        routing = self.routing
        if routing is None or not routing.names:
            return None
        if (owners := self._owners.get(routing.names)) is None:
            owners = self._owners[routing.names] = {}
            for i, run in enumerate(routing.names):
                for module, own in self.overlays[run].modules.items():
                    owners.setdefault(module, {})[i] = own
        if (own := owners.get(name)) is None:
            return None
        return [(at, own.get(owner)) for at, owner in routing.split(tuple(own), rows)]


def _in_groups(
    groups: list[tuple[Rows, nn.Module | None]],
    rows: int,
    compute: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Compute each group's rows with its module and return the results of all rows.

    Rows are the first dimension of all tensors, or the second after a batch dimension of 1.
    """
    if len(groups) == 1:
        return compute(groups[0][1], *args, **kwargs)
    shape = next(x.shape for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    dim = 0 if shape[0] == rows else 1
    if shape[dim] != rows:
        raise ValueError(f"{tuple(shape)} are not {rows} rows")
    pieces = [
        compute(own, *(_take(x, at, dim) for x in args), **{key: _take(x, at, dim) for key, x in kwargs.items()})
        for at, own in groups
    ]
    return _merge(pieces, groups, rows, dim)


def _take(x: Any, at: Rows, dim: int) -> Any:
    """Return some rows of an argument; what is no tensor stays."""
    if not isinstance(x, Tensor):
        return x
    return x.narrow(dim, at.start, at.stop - at.start) if isinstance(at, slice) else x.index_select(dim, at)


def _merge(pieces: list[Any], groups: list[tuple[Rows, Any]], rows: int, dim: int) -> Any:
    """Put each group's results back at their rows."""
    first = pieces[0]
    if isinstance(first, tuple):
        return tuple(_merge(list(column), groups, rows, dim) for column in zip(*pieces, strict=True))
    if first is None:
        return None
    whole = first.new_empty(*first.shape[:dim], rows, *first.shape[dim + 1 :])
    for (at, _), piece in zip(groups, pieces, strict=True):
        if isinstance(at, slice):
            whole.narrow(dim, at.start, at.stop - at.start).copy_(piece)
        else:
            whole.index_copy_(dim, at, piece)
    return whole


BASES: dict[str, type[nn.Module]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "Phi3ForCausalLM": Phi3ForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
    "Olmo2ForCausalLM": TransformersForCausalLM,
    "Olmo3ForCausalLM": TransformersForCausalLM,
    "Gemma3ForCausalLM": Gemma3ForCausalLM,
    "Qwen3MoeForCausalLM": Qwen3MoeForCausalLM,
}
"""vLLM's class of each supported Hugging Face architecture; of some it runs transformers' own over its layers."""
ROUTED = {
    name: type(f"Routed{name.removesuffix('ForCausalLM')}", (RoutedMixin, base), {}) for name, base in BASES.items()
}
"""Routed class of each."""

# In each process that imports this: with tensor parallelism vLLM's workers are spawned, and know no registration of
# ours but that of their extension's module. The class itself, not "module:Class": the latter imports vLLM once more
# in a subprocess.
for routed in ROUTED.values():
    ModelRegistry.register_model(routed.__name__, routed)
