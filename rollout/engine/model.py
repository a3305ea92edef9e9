"""Decoders of vLLM whose rows go through their own run's weights: mixed-layer batching.

Runs of a sweep differ from the base in few modules. At a module that some run in the batch has weights of its own for,
that run's rows are computed by its copy of the module and the others by vLLM's; all else (attention, rotary embeddings,
activations, residual streams) has no weights and is computed for all rows together. A batch of the base alone takes
vLLM's own path.

Modules part the rows in Python, so these models run eagerly: torch.compile would bake one batch's routing in and serve
base weights to every run (seen), and a CUDA graph would need fixed row counts. Under a CUDA graph modules compute from
static slots instead (`use_slots`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
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
from .row_routing import RowGroups, RowRouting
from .slot_modules import install
from .weight_slots import HEAD, WeightSlots


class RoutedMixin:
    """Mixin that adds overlays and routing to a vLLM decoder; the worker sets `routing` before each forward."""

    routing: RowRouting | None
    hidden: Tensor | None
    """Output [tokens, hidden] of the last forward."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.routing = self.hidden = None
        self.builder = OverlayBuilder(self)
        self.overlays: dict[str, EngineOverlay] = {}
        self.slots: WeightSlots | None = None
        self._owners: dict[tuple[str, ...], dict[str, dict[int, nn.Module]]] = {}
        self._rows = 0
        for name in self.builder.modules:
            module = self.get_submodule(name)
            entries = ("forward_modular", "forward_monolithic") if isinstance(module, RoutedExperts) else ("forward",)
            for entry in entries:
                setattr(module, entry, partial(self._routed, name, entry, getattr(module, entry)))

    def _decorate_for_torch_compile(self) -> None:
        """Leave transformers' own classes as they are, where vLLM runs them: the self-check runs them by themselves."""

    @staticmethod
    def get_model_state_cls() -> type:
        """Return the class in which vLLM's V2 model runner keeps what it knows of requests."""
        return RoutedModelState

    def use_slots(self, max_rows: int, device: torch.device) -> None:
        """Keep overlays in static slots from now on, for batches of so many rows; before the first overlay."""
        self.slots = WeightSlots(self, self.builder.modules, max_rows, device)
        install(self, self.slots)

    def set_overlay(self, run: str, overlay: EngineOverlay | None) -> None:
        """Serve `run` from an overlay from now on; None forgets it."""
        self._owners.clear()
        if overlay is None:
            self.overlays.pop(run, None)
            if self.slots:
                self.slots.free(run)
        else:
            self.overlays[run] = overlay
            if self.slots:
                self.slots.adopt(run, overlay.modules)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        self._rows = positions.shape[-1]
        self.hidden = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        return self.hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        base, rows = self.lm_head, hidden_states.shape[0]

        def compute(head: nn.Module, hidden: Tensor) -> Tensor:
            try:
                self.lm_head = head
                return super(RoutedMixin, self).compute_logits(hidden)
            finally:
                self.lm_head = base

        # One row a request, copied: the last scheduled token of each. Of log-probabilities of prompts: a view of
        # neighbouring tokens' rows.
        if (routed := self._groups(HEAD, rows, first_row(hidden_states, self.hidden))) is None:
            return super().compute_logits(hidden_states)
        groups, owners = routed
        heads = [own or base for own in owners]
        return _in_groups(groups, rows, [partial(compute, head) for head in heads], (hidden_states,), {})

    def _routed(self, name: str, entry: str, base: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute a module, each row by its own run's copy; `base` is the module's own method of the name `entry`."""
        if (routed := self._groups(name, self._rows)) is None:
            return base(*args, **kwargs)
        groups, owners = routed
        computes = [base if own is None else getattr(own, entry) for own in owners]
        return _in_groups(groups, self._rows, computes, args, kwargs)

    def _groups(
        self, name: str, rows: int, first: int | None = None
    ) -> tuple[RowGroups, list[nn.Module | None]] | None:
        """Group the rows of a module by the copy that computes each group, None the base's own; None where no run in
        the batch has a copy."""
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
        groups = routing.split(tuple(own), rows, first)
        return groups, [own.get(owner) for owner in groups.owners]


def first_row(part: Tensor, whole: Tensor | None) -> int | None:
    """Return the number of the row of `whole` at which `part`, a view of it, begins; None where it is a copy."""
    if whole is None or part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    return (part.storage_offset() - whole.storage_offset()) // whole.stride(0)


def _in_groups(
    groups: RowGroups,
    rows: int,
    computes: list[Callable[..., Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Compute each group's rows in its own way and return the results of all rows.

    Rows are the first dimension of all tensors, or the second after a batch dimension of 1.
    """
    if len(computes) == 1:
        return computes[0](*args, **kwargs)
    shape = next(x.shape for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    dim = 0 if shape[0] == rows else 1
    if shape[dim] != rows:
        raise ValueError(f"{tuple(shape)} are not {rows} rows")
    of_args = [_part(x, groups, dim) for x in args]
    of_kwargs = {key: _part(x, groups, dim) for key, x in kwargs.items()}
    pieces = [
        compute(*(parts[i] for parts in of_args), **{key: parts[i] for key, parts in of_kwargs.items()})
        for i, compute in enumerate(computes)
    ]
    return _join(pieces, groups, dim)


def _part(x: Any, groups: RowGroups, dim: int) -> Sequence[Any]:
    """Return each group's rows of an argument; what is no tensor is the same for all."""
    return groups.parted(x, dim) if isinstance(x, Tensor) else [x] * len(groups.lengths)


def _join(pieces: Sequence[Any], groups: RowGroups, dim: int) -> Any:
    """Put the groups' results together: a tensor, None, or a tuple of them."""
    first = pieces[0]
    if isinstance(first, tuple):
        return tuple(_join(column, groups, dim) for column in zip(*pieces, strict=True))
    return None if first is None else groups.joined(pieces, dim)


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
