"""reprolib: attacks, defenses, metrics and the ledger behind the book *Leaky Gradients*."""

import ctypes
import sys


def _keep_freed_memory() -> None:
    """Let malloc keep what it has freed, where the C library is glibc; elsewhere do nothing.

    A batched attack allocates and frees the same tensors of some megabytes at each iteration. By default glibc gives
    such blocks back to the kernel and fetches them again page by page: with 16 trials on an MLP, two thirds of the
    processor time (`benchmarks/memory.py`). Blocks above 128 MiB are still given back, and what is free above 1 GiB:
    aligned blocks leave gaps, and without these bounds the gaps of the largest tensors would be kept as well.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(mmap, 128 << 20)
        mallopt(trim, 1 << 30)


_keep_freed_memory()
