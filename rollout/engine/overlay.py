"""The weights in which a run differs from the base model, in copies of vLLM's own modules.

Every weight of a decoder sits in a module that computes each row of a batch by itself: a linear layer, a norm, an
embedding, experts and their router; attention has none. An overlay is a copy of each such module that the run changes,
filled by vLLM's own loader, which knows a family's names, what it keeps in one tensor, and the shard of this
tensor-parallel rank.

The copies live outside vLLM's module tree: nothing that vLLM does to its own weights (packing by oneDNN, sleep,
reload) touches them, and the base stays as it was loaded.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from .weight_slots import with_data

FEWEST_ROWS = 16
"""Fewest rows of a matrix product on a CPU. Below 4, other kernels sum in another order, and what a run samples would
depend, in the last bit, on which other runs' requests are in the batch."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear of x [..., rows, in] on a CPU; a row's result does not depend on the number of rows."""
    rows = x.shape[-2]
    if rows >= FEWEST_ROWS:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, FEWEST_ROWS - rows)), weight, bias)[..., :rows, :]


@dataclass
class EngineOverlay:
    """Weights of one run: a copy of each module of vLLM's that it changes, by the module's name in the model."""

    version: int
    modules: dict[str, nn.Module]
    bytes: int = 0

    def extended(self, part: "EngineOverlay") -> "EngineOverlay":
        """Return this and another part of the same run's weights."""
        return EngineOverlay(self.version, self.modules | part.modules, self.bytes + part.bytes)


class OverlayBuilder:
    """Maker of overlays over one model.

    Args:
        model: as vLLM built it, before its weights are loaded: then vLLM packs some of them away.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.dtype = next(model.parameters()).dtype
        without_memory = {id(p): _like(p, torch.device("meta")) for p in model.parameters()}
        self.modules = {
            name: copy.deepcopy(module, dict(without_memory))
            for name, module in model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        }
        """Copies of all modules with weights, which take no memory; what overlays are copied from."""
        self._places: dict[str, tuple[frozenset[str], int]] = {}
        self._stored: dict[str, list[str]] = {}

    def build(
        self,
        version: int,
        weights: Mapping[str, Tensor],
        checkpoint: Mapping[str, Tensor],
        device: torch.device,
        memory: Callable[[Iterable[str]], dict[int, nn.Parameter]] | None = None,
    ) -> EngineOverlay:
        """Build from Hugging Face names and tensors, as a trainer sends them; they are copied.

        Args:
            checkpoint: the base's weights, likewise; read where a module's weights are sent in part.
            memory: what gives parameters of modules by their names, such as `WeightSlots.take`; null makes new ones.

        Raises:
            ValueError: a name that the model has not.
        """
        changed: dict[str, int] = {}
        for name in weights:
            modules, numbers = self._place_of(name, weights)
            if not modules:
                raise ValueError(f"{name} is no weight of {type(self.model).__name__}")
            for module in modules:
                changed[module] = changed.get(module, 0) + numbers
        base = [name for module, sent in changed.items() for name in self._missing(module, sent, checkpoint)]
        with_memory = memory(changed) if memory else {
            id(p): _like(p, device) for name in changed for p in self.modules[name].parameters(recurse=False)
        }  # fmt: skip
        copies = {name: copy.deepcopy(self.modules[name], dict(with_memory)) for name in changed}
        sent = 0

        def given() -> Iterator[tuple[str, Tensor]]:
            nonlocal sent
            yield from ((name, checkpoint[name].to(self.dtype)) for name in base)
            for name in weights:  # one at a time: a mapping may make them when asked for
                tensor = weights[name].detach()
                sent += tensor.numel() * tensor.element_size()
                yield name, tensor.to(self.dtype)

        with self._in_place(copies):
            self.model.load_weights(given())
        for module in copies.values():
            _make_ready(module)
        return EngineOverlay(version, copies, sent)

    def _place_of(self, name: str, weights: Mapping[str, Tensor]) -> tuple[frozenset[str], int]:
        """Return the modules that hold a weight of Hugging Face's name, and how many numbers it has.

        They are found by having vLLM's loader load its shape. A tied embedding is in two; in none is what vLLM leaves
        aside, such as frequencies of rotary embeddings.
        """
        if name not in self._places:
            shape = torch.empty(weights[name].shape, dtype=self.dtype, device="meta")
            with self._in_place(self.modules):
                try:
                    loaded = self.model.load_weights([(name, shape)])
                except ValueError as error:
                    raise ValueError(f"{name} has no place in the engine's model: {error}") from error
                own = {id(self.model.get_parameter(parameter)) for parameter in loaded}
            modules = frozenset(
                module
                for module, copied in self.modules.items()
                if any(id(p) in own for p in copied.parameters(recurse=False))
            )
            self._places[name] = modules, shape.numel()
        return self._places[name]

    def _missing(self, module: str, sent: int, checkpoint: Mapping[str, Tensor]) -> list[str]:
        """Name the base's weights of a module, if it has more numbers than were `sent`."""
        if module not in self._stored:
            within, depth = module.rpartition(".")[0], module.count(".") + 1
            near = (name for name in checkpoint if name.startswith(within) and name.count(".") <= depth)
            self._stored[module] = [name for name in near if module in self._place_of(name, checkpoint)[0]]
        stored = self._stored[module]
        return stored if sent < sum(self._places[name][1] for name in stored) else []

    @contextmanager
    def _in_place(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Put copies in the place of the model's own modules."""
        own = {name: self.model.get_submodule(name) for name in modules}
        try:
            for name, module in modules.items():
                self._put(name, module)
            yield
        finally:
            for name, module in own.items():
                self._put(name, module)

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        self.model.get_submodule(parent)._modules[child] = module


def _like(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Return a new parameter of the same kind."""
    return with_data(parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device=device))


def _rms_norm(module: RMSNorm, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Compute what the module does, on CPUs in one pass over memory."""
    x = x if residual is None else x + residual
    normed = F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)
    return normed if residual is None else (normed, x)


def _make_ready(module: nn.Module) -> None:
    """Do what vLLM does to a module once its weights are loaded; on CPUs without packing matrices."""
    for name, parameter in list(module.named_parameters(recurse=False)):  # vLLM's own kinds cost Python at each use
        module._parameters[name] = nn.Parameter(parameter.data, requires_grad=False)
    method = getattr(module, "quant_method", None)
    on_cpu = next(module.parameters()).device.type == "cpu"
    if on_cpu and isinstance(module, LinearBase | VocabParallelEmbedding):
        module.cpu_linear = linear
    elif on_cpu and type(module) is RMSNorm:
        module.forward = partial(_rms_norm, module)
    elif isinstance(method, QuantizeMethodBase):
        method.process_weights_after_loading(module)
