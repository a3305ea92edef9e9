"""Memory that a process has freed and still holds."""

import ctypes


def release_unused(gpu: bool) -> None:
    """Return freed memory to the system (glibc; elsewhere nothing happens), and with `gpu` to others on the GPU.

    glibc and torch keep it for the next allocation. An update's gradients and activations are several times what a
    layer's trainer keeps, and of all trainers on a node or a GPU only a few update at a time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    if gpu:
        import torch

        torch.cuda.empty_cache()
