"""Define request bodies: their length, their blocks, and their progress."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Final, Protocol

import httpx

from docferry.errors import SourceChanged
from docferry.model import Source

#: httpx limits the time to write one block, so a small block allows a slow line.
_PIECE_BYTES: Final = 16 * 1024


class Body(Protocol):
    """Provide a body of known length. The last block follows only after the document is proved."""

    @property
    def length(self) -> int:
        """Return the total length of all blocks in bytes."""

    def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks; a generator that is not read to its end is closed."""


class TrackedBody(httpx.AsyncByteStream):
    """Track the progress of a body.

    `complete`          every byte was handed to the kernel
    `maybe_complete`    the last block was yielded: the server may have the whole body
    `error`             the error of the document's source; not an error of the network
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._blocks: AsyncIterator[bytes] | None = None
        self.length = self._left = self._unsent = body.length
        self.maybe_complete = False
        self.error: BaseException | None = None

    @property
    def parts(self) -> Sequence[bytes | Source] | None:
        """Return the parts for a process that sends the body instead; None for a body without parts."""
        return getattr(self._body, "parts", None)

    @property
    def complete(self) -> bool:
        """Return whether every byte was handed to the kernel."""
        return self._unsent == 0

    def handed_over(self, block: bytes) -> None:
        """Record that the kernel took a whole block."""
        self._unsent -= len(block)
        if not self._unsent:
            self.maybe_complete = True

    def sent_elsewhere(self, *, complete: bool, maybe_complete: bool) -> None:
        """Record the progress of another process that sends the parts."""
        self._unsent = 0 if complete else self.length
        self.maybe_complete = maybe_complete

    async def next_block(self) -> bytes | None:
        """Return the next block, None after the last. The transport reports each block that the kernel took."""
        if self._blocks is None:
            self._blocks = self._body.blocks()
        try:
            block = await anext(self._blocks, None)
        except Exception as error:
            self.error = error
            raise
        if block is None:
            self._blocks = None
        else:
            self._left -= len(block)
        if self._left < 0 or (block is None and self._left):
            how = "grew" if self._left < 0 else "shrank"
            self.error = SourceChanged(f"the file {how} while it was sent; it is looked at again")
            raise self.error
        return block

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield small blocks for a transport that reports no progress.

        A yielded block counts as possibly sent, and as handed over once the next block is requested.
        """
        while (block := await self.next_block()) is not None:
            for start in range(0, len(block), _PIECE_BYTES):
                piece = block[start : start + _PIECE_BYTES]
                self.maybe_complete = not self._left and start + _PIECE_BYTES >= len(block)
                yield piece
                self.handed_over(piece)

    @property
    def is_open(self) -> bool:
        """Return whether the source must still be closed."""
        return self._blocks is not None

    async def aclose(self) -> None:
        """Close the source; no more blocks are needed."""
        blocks, self._blocks = self._blocks, None
        if isinstance(blocks, AsyncGenerator):
            await blocks.aclose()


class ClosingBlocks:
    """Close an iterator of blocks at the end of the context, if it is a generator."""

    __slots__ = ("_blocks",)

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._blocks

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(self._blocks, AsyncGenerator):
            await self._blocks.aclose()
