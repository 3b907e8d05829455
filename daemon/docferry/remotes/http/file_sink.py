"""Write a response body to a file, outside the event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal

import anyio
import anyio.to_thread

from docferry.remotes.http.response import Sink

_BUFFER_BYTES: Final = 1024 * 1024


@asynccontextmanager
async def file_sink(to: Path, mode: Literal["wb", "ab"] = "wb") -> AsyncIterator[Sink]:
    """Open a sink for a file of mode 0600; a thread writes the bytes in large blocks."""
    blocks: list[bytes] = []
    size = 0
    file = await anyio.to_thread.run_sync(_open, to, mode)

    async def sink(block: bytes) -> None:
        nonlocal size
        blocks.append(block)
        size += len(block)
        if size >= _BUFFER_BYTES:
            gathered, size = b"".join(blocks), 0
            blocks.clear()
            await anyio.to_thread.run_sync(file.write, gathered)

    try:
        yield sink
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_finish, file, b"".join(blocks))


def _open(to: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    return open(to, mode, opener=lambda path, flags: os.open(path, flags, 0o600))


def _finish(file: BinaryIO, rest: bytes) -> None:
    with file:
        file.write(rest)
