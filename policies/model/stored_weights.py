"""A model folder's weights as tensors, read when they are asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .checkpoint import stored_tensors
from .expert_weights import parameter_names


class StoredWeights(Mapping[str, Tensor]):
    """Weights by transformers' name, in the dtype in which they are stored; read anew at each access.

    Raises:
        ValueError: (from the constructor) files that are missing, or no safetensors.
    """

    def __init__(self, folder: str):
        self.stored = stored_tensors(Path(folder))
        self.in_parts = parameter_names(self.stored)
        """Experts' weights, which files hold one by one."""
        parts = {part for experts in self.in_parts.values() for names in experts for part in names}
        self.names = [*(name for name in self.stored if name not in parts), *self.in_parts]

    def __getitem__(self, name: str) -> Tensor:
        if name in self.in_parts:
            return torch.stack([torch.cat([self._read(part) for part in parts]) for parts in self.in_parts[name]])
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        with safe_open(self.stored[name].path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
