"""Copies of a batch's tensors from the host to the device of the model."""

from typing import Any

import torch


def to_device(value: Any, device: torch.device) -> Any:
    """Copy a tensor, or what has such a method `to` itself, to a device.

    To a GPU from pinned memory, so that the copy is queued: one from other memory may wait for all that the GPU was
    given before (CUDA C++ Programming Guide, implicit synchronisation).
    """
    if isinstance(value, torch.Tensor) and device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
