"""Limit the memory of a process with threads, and keep the memory of its blocks."""

from __future__ import annotations

import ctypes
from typing import Final

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

#: Freed memory at the end of the heap that is kept: a block that returns to the kernel is cleared again for each use.
_KEPT_BYTES: Final = 8 * 1024 * 1024
#: Blocks of documents are smaller, and so come from the heap.
_MAPPED_BYTES: Final = 2 * 1024 * 1024


def configure_malloc() -> None:
    """Make all threads share one arena of malloc (mallopt(3)), and keep freed blocks for the next documents.

    Otherwise each thread's arena keeps freed blocks; threads read, hash and wait here, and allocate little. A libc
    without these parameters is left unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
