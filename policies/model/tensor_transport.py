"""Named tensors in the forms in which they travel between processes.

Through Ray's object store as numpy arrays, which it ships without a copy; or, between processes on one GPU, as CUDA
IPC handles: then nothing travels but the handles. The memory behind a handle belongs to the process that shared it,
which must outlive its readers; readers must not write.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

TransportTensors = dict[str, np.ndarray | tuple[Any, ...]]
"""Array, or arguments of torch's rebuild_cuda_tensor, by name."""
DEVICE_INDEX = 6
"""Position of the device index among those arguments; each process numbers devices in its own way."""
WAITS = 14
"""Position of the flag that makes the reader wait for the writer's event. It need not, see `to_handles`; torch would
open the event anew for every reader, and never close it."""


def to_arrays(weights: Mapping[str, Tensor]) -> TransportTensors:
    """Convert to numpy arrays; those of CPU tensors share the tensors' memory, so send them before it changes.

    bfloat16, which numpy lacks, travels as its bits in int16.
    """
    arrays: TransportTensors = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        tensor = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
        arrays[name] = tensor.numpy()
    return arrays


def to_handles(weights: Mapping[str, Tensor]) -> TransportTensors:
    """Make CUDA IPC handles, valid in other processes on the same GPU while `weights` lives.

    Raises:
        ValueError: a tensor that is not on a GPU.
    """
    if astray := [name for name, tensor in weights.items() if not tensor.is_cuda]:
        raise ValueError(f"{astray[0]} is not on a GPU: only CUDA tensors have IPC handles")
    made = {name: reduce_tensor(tensor.detach())[1] for name, tensor in weights.items()}
    torch.cuda.synchronize()  # readers must see finished writes
    return {name: (*handle[:WAITS], False, *handle[WAITS + 1 :]) for name, handle in made.items()}


class Handles:
    """Cache of the CUDA IPC handles of weights that change in place and are sent after every change.

    A handle is made once for as long as its tensor stays where it is: each one that torch makes wraps the memory in one
    more count of readers, of which none is taken off while the memory lives.

    Args:
        make: makes the handles of tensors, once their writes are finished.
    """

    def __init__(self, make: Callable[[Mapping[str, Tensor]], TransportTensors] = to_handles):
        self.make = make
        self.served: dict[str, Tensor] = {}
        """Tensors whose handles exist; kept alive, so that their memory is not reused."""
        self.handles: TransportTensors = {}

    def of(self, weights: Mapping[str, Tensor]) -> TransportTensors:
        """Return handles of these weights as they are now, and forget those of other weights."""
        elsewhere = {
            name: weight
            for name, weight in weights.items()
            if name not in self.served or self.served[name].data_ptr() != weight.data_ptr()
        }
        made = self.make(elsewhere)  # of none, it waits for the writes all the same
        self.handles = {name: made.get(name) or self.handles[name] for name in weights}
        self.served = dict(weights)
        return self.handles


def to_tensors(packed: TransportTensors, device: torch.device | None = None) -> dict[str, Tensor]:
    """Convert arrays or handles back. The tensors may share read-only memory or another process's: copy before writing.

    Args:
        device: of the handles, as this process numbers it.
    """
    tensors = {}
    for name, item in packed.items():
        if isinstance(item, tuple):
            before, after = item[:DEVICE_INDEX], item[DEVICE_INDEX + 1 :]
            tensors[name] = rebuild_cuda_tensor(*before, (device and device.index) or 0, *after)
            continue
        # torch.from_numpy warns of read-only arrays; these are never written to.
        tensor = torch.frombuffer(item.data.cast("B"), dtype=_TORCH[item.dtype.name]).view(item.shape)
        tensors[name] = tensor.view(torch.bfloat16) if item.dtype == np.int16 else tensor
    return tensors


def device_name() -> str:
    """Return the UUID of the GPU that this process computes on, the same in every process; `cpu` without one."""
    return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else "cpu"


_TORCH = {"float32": torch.float32, "float16": torch.float16, "int16": torch.int16}
