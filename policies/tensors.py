"""Named tensors as numpy arrays, which Ray ships without a copy."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def to_arrays(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies on the CPU. bfloat16, which numpy lacks, travels as its bits in int16."""
    arrays = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        tensor = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
        arrays[name] = tensor.numpy().copy()
    return arrays


def to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The inverse. The tensors may share read-only memory: copy before writing."""
    tensors = {}
    for name, array in arrays.items():
        # torch warns of read-only arrays; nobody writes to these.
        tensor = torch.frombuffer(array.data.cast("B"), dtype=_TORCH[array.dtype.name]).view(array.shape)
        tensors[name] = tensor.view(torch.bfloat16) if array.dtype == np.int16 else tensor
    return tensors


_TORCH = {"float32": torch.float32, "float16": torch.float16, "int16": torch.int16}
