"""One connection at the level of the socket: bytes in with back-pressure, bytes out, and every way to break it off."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable

import anyio

#: Longest request head that is read.
LONGEST_HEAD = 64 * 1024
#: So much may wait here unread before the socket is left alone.
MOST_UNREAD = 1024 * 1024
#: With it, closing a socket sends an RST.
LINGER_ZERO = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The client went away, or sent what cannot be read any further."""


class Reset(Exception):
    """This connection is to be broken off with an RST, now."""


class Wire(asyncio.Protocol):
    """A client's connection. Reading waits for bytes; `Gone` is raised when none will come."""

    def __init__(self, client: socket.socket, now: Callable[[], float]) -> None:
        self._client = client
        self._now = now
        self._blocks: deque[bytes] = deque()
        self._unread = 0
        self._most = MOST_UNREAD
        self._paused = False
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._over = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._doomed = False  # to be reset as soon as there is something to reset
        self.peer = ""
        self.first_byte: float | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's signature is wider than what it gives
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        if self._doomed:
            self.reset()

    def data_received(self, data: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = self._now()
        self._blocks.append(data)
        self._unread += len(data)
        if self._unread >= self._most and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._over.set()
        self._wake()
        return not self._is_secure

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._ended = self._lost = True
        self._over.set()
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Take the socket over, after a handshake if there is one; OSError when that fails."""
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, self._client, ssl=tls)

    # reading

    async def some(self) -> bytes:
        """The next bytes, as they came."""
        while not self._blocks:
            if self._ended:
                raise Gone
            self._resume()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks.popleft()
        self._unread -= len(block)
        return block

    async def at_most(self, limit: int) -> bytes:
        """The next bytes, no more than `limit`."""
        block = await self.some()
        if len(block) > limit:
            self.unread(block[limit:])
            block = block[:limit]
        return block

    async def until(self, mark: bytes, limit: int = LONGEST_HEAD) -> bytes:
        """All up to `mark`, which is taken off too."""
        block = await self.some()
        while (end := block.find(mark)) < 0:
            if len(block) > limit:
                raise Gone
            block += await self.some()
        self.unread(block[end + len(mark) :])
        return block[:end]

    def unread(self, block: bytes) -> None:
        """Put bytes back to be read next."""
        if block:
            self._blocks.appendleft(block)
            self._unread += len(block)

    async def over(self, seconds: float | None = None) -> None:
        """Wait until the client has gone, or for `seconds`."""
        with anyio.move_on_after(seconds):
            await self._over.wait()

    @property
    def ended(self) -> bool:
        return self._ended

    def between_requests(self) -> None:
        """What comes next is another request's first byte, unless it is here already."""
        self.first_byte = self._now() if self._blocks else None

    def narrow(self) -> None:
        """Let as little as possible wait in the kernel and here, so that slow reading is felt by the client."""
        self._most = 1
        if (sock := self._socket()) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    # writing and ending

    async def write(self, data: bytes) -> None:
        # asyncio's TLS does not say that it is closing before it is asked to.
        if self._transport is None or self._transport.is_closing() or self._lost or (self._ended and self._is_secure):
            raise Gone
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._transport.is_closing():
                raise Gone

    def close(self) -> None:
        """End in peace: what was written is still delivered."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once, whatever was still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def free(self) -> None:
        """Let nothing stay open."""
        if self._transport is None:
            self._client.close()
        elif not self._transport.is_closing():
            self._transport.abort()

    def reset(self) -> None:
        """Break off: the client sees `Connection reset by peer`."""
        self._doomed = True
        if (sock := self._socket()) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.abort()

    # helpers

    @property
    def _is_secure(self) -> bool:
        """Half-closed is fine in plain TCP, and unknown to TLS."""
        return self._transport is None or self._transport.get_extra_info("ssl_object") is not None

    def _socket(self) -> socket.socket | None:
        if self._transport is None or self._transport.is_closing():
            return None
        found: socket.socket | None = self._transport.get_extra_info("socket")
        return found

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
