"""Manage one TCP or TLS connection of a client: reads with back-pressure, writes, and every way to end it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from typing import cast

import anyio

from docferry.clock import Clock

#: Longest request head, bytes.
MAX_HEAD = 64 * 1024
#: Bytes to buffer before reading from the socket pauses.
MAX_BUFFERED = 1024 * 1024
#: The value of SO_LINGER with which closing sends an RST.
LINGER_ZERO = struct.pack("ii", 1, 0)


class Disconnected(Exception):
    """Report that the client is gone, or sent an unreadable head."""


class Reset(Exception):
    """Request to end the connection with an RST."""


class Connection(asyncio.Protocol):
    """Read from and write to a client's connection. Reads wait for bytes; Disconnected is raised if none can come."""

    def __init__(self, client: socket.socket, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._blocks: deque[bytes] = deque()
        self._unread = 0
        self._max_buffered = MAX_BUFFERED
        self._paused = False
        self._eof = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._reset_pending = False  # reset once the transport exists
        self.peer = ""
        self.first_byte: float | None = None

    # callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport has the same methods, no base class
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        if self._reset_pending:
            self.reset()

    def data_received(self, data: bytes) -> None:
        """Buffer bytes, and stop reading at the limit (called by asyncio)."""
        if self.first_byte is None:
            self.first_byte = self._clock.now()
        self._blocks.append(data)
        self._unread += len(data)
        if self._unread >= self._max_buffered and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Record the end of the client's data (called by asyncio). Plain TCP stays half-open."""
        self._eof = True
        self._closed.set()
        self._wake()
        return not self._is_secure

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Wake all waiting tasks (called by asyncio)."""
        self._eof = self._lost = True
        self._closed.set()
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        """Suspend writes (called by asyncio)."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Resume writes (called by asyncio)."""
        self._writable.set()

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Take over the socket, with a TLS handshake if `tls` is given. Raises OSError if it fails."""
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, self._client, ssl=tls)

    # reading

    async def read(self) -> bytes:
        """Return the next bytes, in the blocks received."""
        while not self._blocks:
            if self._eof:
                raise Disconnected
            self._resume()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks.popleft()
        self._unread -= len(block)
        return block

    async def read_at_most(self, limit: int) -> bytes:
        """Return the next bytes, at most `limit`."""
        block = await self.read()
        if len(block) > limit:
            self.unread(block[limit:])
            block = block[:limit]
        return block

    async def read_until(self, mark: bytes, limit: int = MAX_HEAD) -> bytes:
        """Return the bytes before `mark`, and consume `mark`."""
        block = await self.read()
        while (end := block.find(mark)) < 0:
            if len(block) > limit:
                raise Disconnected
            block += await self.read()
        self.unread(block[end + len(mark) :])
        return block[:end]

    def unread(self, block: bytes) -> None:
        """Put bytes back to the front of the buffer."""
        if block:
            self._blocks.appendleft(block)
            self._unread += len(block)

    async def wait_closed(self, seconds: float | None = None) -> None:
        """Wait until the client has closed its side, or for `seconds`."""
        with anyio.move_on_after(seconds):
            await self._closed.wait()

    @property
    def is_closed(self) -> bool:
        """Return whether the client has closed its side."""
        return self._eof

    def between_requests(self) -> None:
        """Reset the time of the first byte for the next request."""
        self.first_byte = self._clock.now() if self._blocks else None

    def shrink_buffers(self) -> None:
        """Make all buffers small, so that slow reading blocks the client."""
        self._max_buffered = 1
        if (sock := self._socket()) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    # writing and ending

    async def write(self, data: bytes) -> None:
        # asyncio's TLS transport reports is_closing() only after close().
        """Write bytes, and wait while the buffer is full. Raises Disconnected."""
        if self._transport is None or self._transport.is_closing() or self._lost or (self._eof and self._is_secure):
            raise Disconnected
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._transport.is_closing():
                raise Disconnected

    def close(self) -> None:
        """Close after the written bytes are delivered."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once and discard unwritten bytes."""
        if self._transport is not None:
            self._transport.abort()

    def dispose(self) -> None:
        """Free the socket in every state."""
        if self._transport is None:
            self._client.close()
        elif not self._transport.is_closing():
            self._transport.abort()

    def reset(self) -> None:
        """Close with an RST: the client gets `Connection reset by peer`."""
        self._reset_pending = True
        if (sock := self._socket()) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.abort()

    # helpers

    @property
    def _is_secure(self) -> bool:
        """Return whether the connection uses TLS, which has no half-closed state."""
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
