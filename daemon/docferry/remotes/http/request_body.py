"""Request bodies: their length, their blocks, and how far they got."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Final, Protocol

import httpx

from docferry.errors import SourceChanged
from docferry.model import Source

#: httpx limits the time to write one block, so that a small block lets a slow line move.
_PIECE_BYTES: Final = 16 * 1024


class Body(Protocol):
    """A body of known length. Its last block is yielded only once the document was proved to be whole."""

    @property
    def length(self) -> int:
        """Bytes of all blocks together."""

    def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks; a generator is closed if it is not read to its end."""


class TrackedBody(httpx.AsyncByteStream):
    """A body that records what was taken of it.

    `complete`          every byte was handed to the kernel
    `maybe_complete`    the last byte was given out: the server may have the whole body
    `error`             what the document's source raised; it is no error of the network
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._blocks: AsyncIterator[bytes] | None = None
        self.length = self._left = self._unsent = body.length
        self.maybe_complete = False
        self.error: BaseException | None = None

    @property
    def parts(self) -> Sequence[bytes | Source] | None:
        """The parts of the body, for a process that sends it instead; None when it has none."""
        return getattr(self._body, "parts", None)

    @property
    def complete(self) -> bool:
        """Whether every byte was handed to the kernel."""
        return self._unsent == 0

    def handed_over(self, block: bytes) -> None:
        """Record that the kernel took a whole block."""
        self._unsent -= len(block)
        if not self._unsent:
            self.maybe_complete = True

    def sent_elsewhere(self, *, complete: bool, maybe_complete: bool) -> None:
        """Record how far another process got with the parts."""
        self._unsent = 0 if complete else self.length
        self.maybe_complete = maybe_complete

    async def next_block(self) -> bytes | None:
        """Return the next block, None after the last. The transport reports what it hands over."""
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
        """Yield small blocks to a transport that does not report what it hands over.

        A block counts as handed over when the next one is asked for, and as possibly sent when it is yielded.
        """
        while (block := await self.next_block()) is not None:
            for start in range(0, len(block), _PIECE_BYTES):
                piece = block[start : start + _PIECE_BYTES]
                self.maybe_complete = not self._left and start + _PIECE_BYTES >= len(block)
                yield piece
                self.handed_over(piece)

    @property
    def is_open(self) -> bool:
        """Whether the source must still be closed."""
        return self._blocks is not None

    async def aclose(self) -> None:
        """Close the source; no more blocks are wanted."""
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
