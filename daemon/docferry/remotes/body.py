"""A document on its way out: what it is, and how far it got."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol, Self

from docferry.errors import SourceChanged


class Body(Protocol):
    """A document on its way. Its last block is given out only when the document may be complete."""

    @property
    def length(self) -> int: ...

    def blocks(self) -> AsyncIterator[bytes]: ...


class Outgoing:
    """A body's blocks, asked for one by one, and whether the last may have arrived."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._blocks: AsyncIterator[bytes] | None = None
        self.length = self._left = body.length
        self.body_complete = False

    def __aiter__(self) -> Self:
        self._blocks = self._body.blocks()
        self.accepted()
        return self

    async def __anext__(self) -> bytes:
        if self._blocks is None:
            raise StopAsyncIteration
        try:
            block = await anext(self._blocks)
        except StopAsyncIteration:
            self._blocks = None
            if self._left:
                raise SourceChanged("the file shrank while it was sent; it is looked at again") from None
            raise
        self._left -= len(block)
        if self._left < 0:
            raise SourceChanged("the file grew while it was sent; it is looked at again")
        return block

    def accepted(self) -> None:
        """Something of the block that was given out last has left. Nothing of it: then the document is not whole."""
        self.body_complete = not self._left

    @property
    def is_spent(self) -> bool:
        """Nothing is left to be closed."""
        return self._blocks is None

    async def aclose(self) -> None:
        """No more blocks are wanted."""
        blocks, self._blocks = self._blocks, None
        if isinstance(blocks, AsyncGenerator):
            await blocks.aclose()


class closing:
    """Blocks that are finished with, at the latest, when the context ends."""

    __slots__ = ("_blocks",)

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._blocks

    async def __aexit__(self, *_: object) -> None:
        if isinstance(self._blocks, AsyncGenerator):
            await self._blocks.aclose()
