"""Where the body of an answer goes when it is too large for memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal

import anyio
import anyio.to_thread

_SPOOLED: Final = 1024 * 1024
Sink = Callable[[bytes], Awaitable[None]]
#: Opens a sink for the body of a 2xx, given its status and headers.
Into = Callable[[int, Mapping[str, str]], AbstractAsyncContextManager[Sink]]


@asynccontextmanager
async def written(to: Path, mode: Literal["wb", "ab"] = "wb") -> AsyncIterator[Sink]:
    """A sink into a file that nobody else may read; written in large blocks, off the event loop."""
    blocks: list[bytes] = []
    size = 0
    file = await anyio.to_thread.run_sync(_opened, to, mode)

    async def sink(block: bytes) -> None:
        nonlocal size
        blocks.append(block)
        size += len(block)
        if size >= _SPOOLED:
            gathered, size = b"".join(blocks), 0
            blocks.clear()
            await anyio.to_thread.run_sync(file.write, gathered)

    try:
        yield sink
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_finished, file, b"".join(blocks))


def _opened(to: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    return open(to, mode, opener=lambda path, flags: os.open(path, flags, 0o600))


def _finished(file: BinaryIO, rest: bytes) -> None:
    with file:
        file.write(rest)
