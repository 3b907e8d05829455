"""Exchange requests and responses over a connection, one at a time.

The class uses the socket itself instead of a buffered stream, because three facts must be exact. These are the moment
when the kernel took the last byte of a body, the close of an idle connection, and a response before a hang-up.
"""

from __future__ import annotations

import fcntl
import math
import socket
import ssl
import struct
import termios
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import anyio
import httpx
from anyio.lowlevel import checkpoint

from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response_parser import ResponseHead, ResponseParser
from docferry.remotes.http.tls import explain_tls

_RECEIVE_BYTES: Final = 64 * 1024
#: The largest first block that is sent together with the head of the request.
_COALESCE_BYTES: Final = 256 * 1024
#: The time without an answer to `Expect: 100-continue` after which the body is sent.
_CONTINUE_TIMEOUT_S: Final = 1.0
#: Pause between two checks of a blocked connection: for an early response, and for acknowledged bytes.
_POLL_S: Final = 0.25
#: Acknowledged bytes are watched only for bodies above this size: a smaller one is delivered at once.
_SMALL_BYTES: Final = 64 * 1024
# Closing discards undelivered bytes of the kernel, also after a kill. Otherwise they could arrive minutes later, after
# a lookup proved the document absent and it was sent again.
DISCARD_UNSENT: Final = struct.pack("ii", 1, 0)


class Timeouts(NamedTuple):
    """Limit the seconds without progress of the request and of the response; None: no limit."""

    write: float | None
    read: float | None


class Connection:
    """Exchange one request at a time; the caller closes the connection unless `can_keep_alive` is true at the end."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD_UNSENT)
        self._parser = ResponseParser("GET")
        self._closed_by_peer = False
        self._failure: OSError | None = None  # the error of reading during the send
        self._scope = anyio.CancelScope()
        self._timeout: float | None = None
        self._moved = 0.0  # monotonic seconds
        self._unacknowledged = 0
        self._sent_all = False
        self.expires = 0.0  # monotonic seconds; for the transport

    async def exchange(
        self,
        method: str,
        request_head: bytes,
        body: bytes | TrackedBody,
        timeouts: Timeouts,
        *,
        expect_continue: bool = False,
    ) -> ResponseHead:
        """Send a request and return the head of its response, which may arrive before the whole body was sent.

        The timeouts limit the time without progress. Progress of a request is a byte that the kernel takes or the peer
        acknowledges. Progress of a response is its complete head; a part of the head or an interim response does not
        count.
        """
        self._parser = ResponseParser(method)
        self._timeout = timeouts.write
        self._moved = time.monotonic()
        self._sent_all = False
        with anyio.CancelScope(deadline=_deadline(timeouts.write)) as self._scope:
            self._sent_all = await self._send(request_head, body, expect_continue=expect_continue)
            if timeouts.read != timeouts.write:
                self._timeout, self._scope.deadline = timeouts.read, _deadline(timeouts.read)
            watch = isinstance(body, TrackedBody) and body.length > _SMALL_BYTES
            if watch:
                self._progress()
            while self._parser.head is None:
                await self._receive_head(watch=watch)
            return self._parser.head
        if self._sent_all:
            raise httpx.ReadTimeout("no response in time")
        raise httpx.WriteTimeout("the server took nothing more of the request in time")

    async def read_body(self, timeout: float | None) -> bytes | None:
        """Return the next bytes of the response body, None at its end. `timeout`: seconds without a byte."""
        deadline = None if timeout is None else anyio.current_time() + timeout
        while not (block := self._parser.read()) and not self._parser.ended:
            await self._receive_body(deadline)
        return block or None

    @property
    def can_keep_alive(self) -> bool:
        """Return whether request and response are complete and the server allows another request."""
        return self._sent_all and not self._closed_by_peer and self._parser.can_keep_alive

    def is_idle(self) -> bool:
        """Return whether no byte and no end of the connection arrived since the last response."""
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # sending

    async def _send(self, head: bytes, body: bytes | TrackedBody, *, expect_continue: bool) -> bool:
        """Send the request; read each block after the kernel took the previous one.

        Return False for an early response.
        """
        if isinstance(body, bytes):
            return await self._push(head + body)
        if expect_continue:
            if not await self._push(head) or not await self._wait_for_continue():
                return False
            head = b""
        while (block := await body.next_block()) is not None:
            data = block
            if head:
                if len(block) <= _COALESCE_BYTES:
                    data = head + block
                elif not await self._push(head):
                    return False
                head = b""
            else:
                self._progress()
                await checkpoint()  # a fast peer never blocks: let other tasks run, and check for an early response
                if self._has_response():
                    return False
            if not await self._push(data):
                return False
            body.handed_over(block)
        return not head or await self._push(head)

    async def _push(self, data: bytes) -> bool:
        """Pass all of `data` to the kernel.

        Return False after an early response, or after a hang-up that follows one.
        """
        rest = memoryview(data)
        while True:
            try:
                sent = self._socket.send(rest)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait(writable=True)
            except ssl.SSLWantReadError:
                await self._wait(writable=False)
            except OSError as error:
                # The server may have responded before it hung up: the response can still be read.
                if self._has_response():
                    return False
                raise httpx.WriteError("the connection broke while sending") from error
            else:
                if sent == len(rest):
                    return True
                rest = rest[sent:]
                self._progress()
            if self._has_response():
                return False

    async def _wait_for_continue(self) -> bool:
        """Return whether the server wants the body; False if its final response came instead."""
        with anyio.move_on_after(_CONTINUE_TIMEOUT_S):
            while not self._has_response():
                if self._parser.interim_responses:
                    return True
                await anyio.wait_readable(self._socket)
            return False
        return True

    def _has_response(self) -> bool:
        """Read without waiting; return whether the final head or the end of the connection has arrived."""
        while self._parser.head is None and not self._closed_by_peer:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                self._failure = error
                data = b""
            self._closed_by_peer = not data
            if data:
                self._parser.feed(data)
        return True

    # receiving

    async def _receive_head(self, *, watch: bool) -> None:
        if self._failure is not None:
            raise _read_error(self._failure)
        if self._closed_by_peer:
            self._parser.feed(b"")  # raises, because there is no response
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            await (self._wait(writable=False) if watch else anyio.wait_readable(self._socket))
        except ssl.SSLWantWriteError:
            await anyio.wait_writable(self._socket)
        except OSError as error:
            raise _read_error(error) from error
        else:
            self._closed_by_peer = not data
            self._parser.feed(data)
            if self._parser.head is None:
                await checkpoint()  # an endless body must not block the event loop

    async def _receive_body(self, deadline: float | None) -> None:
        """Pass received bytes to the parser. Raises httpx.ReadTimeout after the deadline, even while bytes arrive."""
        waited: Callable[[socket.socket], Awaitable[None]] = anyio.wait_readable
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            waited = anyio.wait_writable
        except OSError as error:
            self._closed_by_peer = True
            if isinstance(error, ssl.SSLEOFError) and self._parser.has_known_end:
                self._parser.feed(b"")
                return
            raise _read_error(error) from error
        else:
            self._closed_by_peer = not data
            self._parser.feed(data)
            await checkpoint()
            if deadline is None or anyio.current_time() < deadline:
                return
        try:
            with anyio.fail_after(None if deadline is None else max(0.0, deadline - anyio.current_time())):
                await waited(self._socket)
        except TimeoutError:
            raise httpx.ReadTimeout("the response made no progress in time") from None

    # deadlines

    def _progress(self) -> None:
        """Extend the deadline; not for each block, because that costs more than the block."""
        now = time.monotonic()
        if self._timeout is not None and now - self._moved > min(1.0, self._timeout / 8):
            self._moved = now
            self._scope.deadline = anyio.current_time() + self._timeout

    async def _wait(self, *, writable: bool) -> None:
        """Wait briefly until the socket is writable or readable. Newly acknowledged bytes count as progress."""
        with anyio.move_on_after(_POLL_S):
            await (anyio.wait_writable(self._socket) if writable else anyio.wait_readable(self._socket))
            return
        unacknowledged = _unacknowledged_bytes(self._socket)
        if unacknowledged < self._unacknowledged:
            self._progress()
        self._unacknowledged = unacknowledged


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else anyio.current_time() + timeout


def _unacknowledged_bytes(connected: socket.socket) -> int:
    """Return the bytes in the kernel without acknowledgement (SIOCOUTQ, tcp(7)); 0 if unknown."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0


def _read_error(error: OSError) -> httpx.NetworkError:
    if isinstance(error, ssl.SSLEOFError):
        return httpx.ReadError("the server closed the connection without the end of TLS: the response may be cut")
    if isinstance(error, ssl.SSLError):
        # TLS 1.3 refuses a client certificate after the handshake, and discards the sent bytes.
        refused = "CERTIFICATE" in str(error.reason).upper()
        return (httpx.ConnectError if refused else httpx.ReadError)(explain_tls(error))
    return httpx.ReadError("the connection broke while reading")
