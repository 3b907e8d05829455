"""Keep the memory of a process with threads small."""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8


def share_arena() -> None:
    """Let all threads share one arena of malloc (mallopt(3)): each of their own keeps the blocks that it once held.

    Threads read, hash and wait here, and allocate little. A libc without arenas is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
