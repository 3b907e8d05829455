"""An answer while it is read: to its end, its cap or the break."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

import anyio
import httpx

from docferry.remotes.answers import Answer
from docferry.remotes.sinks import Into, Sink
from docferry.remotes.wire import Reply

#: A body that moves slower than this many bytes a second, on the whole, is given up.
SLOWEST: Final = 64 * 1024


class Reading:
    """Once the status is here, nothing that follows can undo it."""

    def __init__(self, cap: int, into: Into | None) -> None:
        self._cap = cap
        self._into = into
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._blocks: list[bytes] = []
        self._length = 0
        self.flaw: str | None = None

    @property
    def begun(self) -> bool:
        return self._status != 0

    async def run(self, reply: Reply, scope: anyio.CancelScope) -> None:
        """Each byte that comes buys time at the slowest rate allowed."""
        self._status, self._headers = reply.status, reply.headers
        if self._into is None or not 200 <= reply.status < 300:
            await self._read(reply, scope, None)
            return
        async with self._into(self._status, self._headers) as sink:
            await self._read(reply, scope, sink)

    def answer(self, *, body_complete: bool) -> Answer:
        return Answer(self._status, self._headers, b"".join(self._blocks), body_complete, self.flaw, self._length)

    async def _read(self, reply: Reply, scope: anyio.CancelScope, sink: Sink | None) -> None:
        encoding = self._headers.get("content-encoding", "identity").strip().lower()
        unpack = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            async for raw in reply.blocks():
                scope.deadline += len(raw) / SLOWEST
                block = unpack.decompress(raw, self._cap + 1 - self._length) if unpack else raw
                self._length += len(block)
                if self._length > self._cap:
                    self.flaw = "large"
                    return
                if sink is None:
                    self._blocks.append(block)
                else:
                    await sink(block)
        except (httpx.HTTPError, zlib.error):
            self.flaw = "cut"
        if unpack is not None and not unpack.eof:
            self.flaw = "cut"
