"""Limit the memory of a process with threads."""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8


def share_arena() -> None:
    """Make all threads share one arena of malloc (mallopt(3)): otherwise each thread's arena keeps freed blocks.

    Threads read, hash and wait here, and allocate little. A libc without arenas is left unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
