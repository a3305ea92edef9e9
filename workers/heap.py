"""The C library's heap."""

import ctypes


def release_freed_memory() -> None:
    """Give what is freed back to the system (glibc; elsewhere nothing happens).

    glibc keeps it for the next allocation. An update's gradients and activations are several times what a layer's
    trainer keeps, and of all trainers on a node only a few update at a time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
