"""A CUDA graph on a CPU: operations recorded once with the tensors that they read and wrote, and run again on those.

Like a CUDA graph it holds every decision that Python took and every shape, and knows tensors by their memory alone;
what was data then is read anew. What a capture refuses, it refuses: a number that is read from the device, a shape that
depends on data, a tensor that is made from numbers on the host.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class RecordedGraph(TorchDispatchMode):
    """Recording of what runs under it as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if REFUSED & set(func.tags) or func is torch.ops.aten.lift_fresh.default:
            raise RuntimeError(f"{func} cannot be captured")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Run the operations again; results go where they went."""
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or in place
                    old.copy_(new)
