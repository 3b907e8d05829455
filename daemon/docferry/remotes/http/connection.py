"""One connection to a server: a request out, its response in.

It works on the socket itself rather than on a buffered stream, as three things must be exact: when the last byte of
a body was handed to the kernel, whether an idle connection was closed meanwhile, and what a server said before it
hung up.
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
#: A first block up to this size travels with the request's head.
_COALESCE_BYTES: Final = 256 * 1024
#: After `Expect: 100-continue` the body is sent when the server has been silent for so long.
_CONTINUE_TIMEOUT_S: Final = 1.0
#: Pause between two checks of a blocked connection: for an early response, and for acknowledged bytes.
_POLL_S: Final = 0.25
#: A body up to this size is gone at once, or its line is so slow that nothing helps.
_SMALL_BYTES: Final = 64 * 1024
# Closing discards what the kernel has not delivered, also when the process is killed. Otherwise a request that was
# given up behind a broken network arrives minutes later, after its absence was proved and it was sent again.
DISCARD_UNSENT: Final = struct.pack("ii", 1, 0)


class Timeouts(NamedTuple):
    """Seconds without progress of the request and of the response until an exchange is given up; None: no limit."""

    write: float | None
    read: float | None


class Connection:
    """One request at a time; the caller closes it unless `can_keep_alive` is true after the last byte."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD_UNSENT)
        self._parser = ResponseParser("GET")
        self._closed_by_peer = False
        self._failure: OSError | None = None  # what reading ended with while a body was sent
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
        """Send a request and return the head of its response, which may come before the whole body was sent.

        The timeouts limit the time without progress. Progress of a request is a byte that the kernel takes or the peer
        acknowledges; progress of a response is its complete head, not a part of it, nor an interim response.
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
        """Return the next bytes of the response body, None at its end. `timeout`: seconds without such bytes."""
        deadline = None if timeout is None else anyio.current_time() + timeout
        while not (block := self._parser.read()) and not self._parser.ended:
            await self._receive_body(deadline)
        return block or None

    @property
    def can_keep_alive(self) -> bool:
        """Whether request and response are complete, and the server allows another request."""
        return self._sent_all and not self._closed_by_peer and self._parser.can_keep_alive

    def is_idle(self) -> bool:
        """Whether nothing has come since the last response, not even the end of the connection."""
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
        """Send the request; each block is read once the one before was taken. False: a response came first."""
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
                await checkpoint()  # a fast peer never blocks; other tasks and an early response must be served
                if self._has_response():
                    return False
            if not await self._push(data):
                return False
            body.handed_over(block)
        return not head or await self._push(head)

    async def _push(self, data: bytes) -> bool:
        """Hand all of `data` to the kernel. False: a response came first, or the peer hung up after one."""
        rest = memoryview(data)
        while True:
            try:
                sent = self._socket.send(rest)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait(writable=True)
            except ssl.SSLWantReadError:
                await self._wait(writable=False)
            except OSError as error:
                # The server may have said why before it hung up: its response is still here to be read.
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
        """Return whether the server wants the body; False when it has sent its final response instead."""
        with anyio.move_on_after(_CONTINUE_TIMEOUT_S):
            while not self._has_response():
                if self._parser.interim_responses:
                    return True
                await anyio.wait_readable(self._socket)
            return False
        return True

    def _has_response(self) -> bool:
        """Read without waiting; return whether the final head has come, or the end of the connection."""
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
            self._parser.feed(b"")  # raises: there is no response
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
                await checkpoint()  # a server that never ends must not keep the event loop to itself

    async def _receive_body(self, deadline: float | None) -> None:
        """Feed what came to the parser; httpx.ReadTimeout after the deadline, whatever keeps coming."""
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
        """Move the deadline; not with each block, as that costs more than the block."""
        now = time.monotonic()
        if self._timeout is not None and now - self._moved > min(1.0, self._timeout / 8):
            self._moved = now
            self._scope.deadline = anyio.current_time() + self._timeout

    async def _wait(self, *, writable: bool) -> None:
        """Wait until the socket is writable or readable, but not long. Acknowledged bytes are progress."""
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
    """Return how much the kernel holds that the peer has not acknowledged (SIOCOUTQ, tcp(7)); 0 if it cannot say."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0


def _read_error(error: OSError) -> httpx.NetworkError:
    if isinstance(error, ssl.SSLEOFError):
        return httpx.ReadError("the server closed the connection without the end of TLS: the response may be cut")
    if isinstance(error, ssl.SSLError):
        # TLS 1.3 refuses a client certificate after the handshake, and discards what was sent.
        refused = "CERTIFICATE" in str(error.reason).upper()
        return (httpx.ConnectError if refused else httpx.ReadError)(explain_tls(error))
    return httpx.ReadError("the connection broke while reading")
