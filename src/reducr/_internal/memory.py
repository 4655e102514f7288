"""What a process keeps of the memory that tensors have freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, up to 2 GB and in blocks of up to 1 GB, for what is allocated next.

    On its own it gives every block beyond 32 MB back, and the system clears the same memory anew, page by page, for the
    same activation of the next step: a quarter of a ResNet-18's step with 320 candidates on a CPU. A process then holds
    on to the most it has needed. Another C library, and one that has been told what to keep (``MALLOC_...``,
    ``GLIBC_TUNABLES``), is left as it is.
    """
    is_glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    is_told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_glibc and not is_told:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
