"""A model folder's weights as tensors, read when they are asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .checkpoint import stored_tensors


class StoredWeights(Mapping[str, Tensor]):
    """Weights by Hugging Face name, in the dtype in which they are stored; read anew at each access.

    Raises:
        ValueError: (from the constructor) files that are missing, or no safetensors.
    """

    def __init__(self, folder: str):
        self.stored = stored_tensors(Path(folder))

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.stored[name].path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
