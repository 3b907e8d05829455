"""A lean HTTP/1.1 line behind httpx's transport seam: one request at a time on a socket, kept for the next.

It works on the socket itself rather than on a buffered stream, as three things must be exact: when the last block of a
body is given to the kernel, whether a kept line has been closed meanwhile, and what a server said before it hung up."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio
import httpx
from anyio.lowlevel import checkpoint

from docferry.remotes import heads
from docferry.remotes.heads import Head
from docferry.remotes.reach import reach

Origin = tuple[bytes, str, int]  # scheme, host, port
#: A line that was idle for longer is not used again; a server may say less.
IDLE: Final = 10.0
_HEAD_CAP: Final = 64 * 1024
_BLOCK: Final = 256 * 1024
#: A first block up to this size travels with the request's head.
_TOGETHER: Final = 256 * 1024
#: So long a server that was asked whether it wants a body may stay silent; then it gets it.
_INVITATION: Final = 1.0
#: So often a line that takes no more is looked at for an answer that came early.
_GLANCE: Final = 0.25
_PORTS: Final = {b"http": 80, b"https": 443}


class Wire(httpx.AsyncBaseTransport):
    """Lines to any number of origins; as many as there are requests at once. A cancelled request closes its line."""

    def __init__(self, trust: Callable[[], ssl.SSLContext], *, idle: float = IDLE) -> None:
        self._trust = trust  # asked for when a first https address comes: loading certificates takes its time
        self._context: ssl.SSLContext | None = None
        self._idle = idle
        self._kept: dict[Origin, list[_Line]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, patience = request.url, request.extensions.get("timeout", {})
        if url.raw_scheme not in _PORTS:
            raise httpx.UnsupportedProtocol("only http and https are spoken")
        origin = (url.raw_scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.raw_scheme])
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("a body must be asynchronous")
        head = heads.request(request.method, url.raw_path, request.headers.raw)
        line = self._reusable(origin) or await self._connect(origin, patience.get("connect"))
        try:
            asks = "expect" in request.headers
            whole = await line.send(head, request.stream, patience.get("write"), asks=asks)
            reply = await line.head(request.method, patience.get("read"))
        except BaseException:
            line.close()
            raise
        stream = _Reply(self, origin, line, reply, patience.get("read"), reusable=whole)
        return httpx.Response(reply.status, headers=reply.fields, stream=stream)

    async def aclose(self) -> None:
        self._closed = True
        for lines in self._kept.values():
            for line in lines:
                line.close()
        self._kept.clear()

    def keep(self, origin: Origin, line: _Line, seconds: float | None) -> None:
        """The line is free for the next request, for so long as the server said or `idle`."""
        if self._closed:
            line.close()
            return
        line.until = time.monotonic() + (self._idle if seconds is None else min(seconds, self._idle))
        self._kept.setdefault(origin, []).append(line)

    def _reusable(self, origin: Origin) -> _Line | None:
        """The line used last, if it is still open; those that are past their time are closed."""
        lines = self._kept.get(origin)
        now = time.monotonic()
        while lines:
            line = lines.pop()
            if line.until > now and line.is_quiet():
                self._sweep(lines, now)
                return line
            line.close()
        return None

    @staticmethod
    def _sweep(lines: list[_Line], now: float) -> None:
        while lines and lines[0].until <= now:
            lines.pop(0).close()

    async def _connect(self, origin: Origin, seconds: float | None) -> _Line:
        scheme, host, port = origin
        try:
            with anyio.fail_after(seconds):
                opened = await reach(host, port)
                try:
                    return _Line(opened if scheme == b"http" else await self._secured(opened, host))
                except BaseException:
                    opened.close()
                    raise
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpx.ConnectError("no connection") from error

    async def _secured(self, opened: socket.socket, host: str) -> ssl.SSLSocket:
        self._context = self._context or self._trust()
        secured = self._context.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await anyio.wait_readable(secured)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(secured)
            except BaseException:
                secured.close()
                raise
            else:
                return secured


class _Line:
    """One connection. `unread` is what has come and nobody has taken yet."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self.unread = bytearray()
        self._ended = False
        self._interims = 0
        self.until = 0.0

    async def send(
        self, head: bytes, stream: httpx.AsyncByteStream, patience: float | None, *, asks: bool = False
    ) -> bool:
        """The request; each block is asked for when the one before has been taken. False: an answer came first."""
        if asks:
            if not (await self._push(head, patience) and await self._is_invited()):
                return False
            head = b""
        first = True
        async for block in stream:
            if first and len(block) <= _TOGETHER:
                block = head + block
            elif first and not await self._push(head, patience):
                return False
            elif not first:
                await checkpoint()  # a fast line never waits: others must have their turn, and the server its say
            first = False
            if not await self._push(block, patience):
                return False
        return not first or await self._push(head, patience)

    async def head(self, method: str, patience: float | None) -> Head:
        """The answer's head, once it is here; what is not final is passed over."""
        while True:
            raw = await self.through(b"\r\n\r\n", _HEAD_CAP, patience)
            head = heads.answer(raw, method)
            if head.status >= 200:
                return head

    async def through(self, mark: bytes, cap: int, patience: float | None) -> bytes:
        """Everything up to and with `mark`."""
        start = 0
        while (found := self.unread.find(mark, start)) < 0:
            if len(self.unread) > cap:
                raise httpx.RemoteProtocolError("the answer's head is too long")
            start = max(0, len(self.unread) - len(mark) + 1)
            block = await self._receive(patience)
            if not block:
                raise httpx.RemoteProtocolError("the server hung up without an answer")
            self.unread += block
        end = found + len(mark)
        taken = bytes(self.unread[:end])
        del self.unread[:end]
        return taken

    async def some(self, most: int, patience: float | None) -> bytes:
        """At least one byte and at most so many; b"" at the end of the line."""
        if self.unread:
            taken = bytes(self.unread[:most])
            del self.unread[: len(taken)]
            return taken
        return await self._receive(patience, min(most, _BLOCK))

    def is_quiet(self) -> bool:
        """Nothing has come since the last answer, not even the end."""
        return not self.unread and not self._has_come() and not self._ended

    def close(self) -> None:
        self._socket.close()

    async def _is_invited(self) -> bool:
        """Does the server want the body? False when it has said all it has to say."""
        with anyio.move_on_after(_INVITATION):
            while not self._has_answer():
                if self._interims:
                    return True
                await anyio.wait_readable(self._socket)
            return False
        return True

    async def _push(self, block: bytes, patience: float | None) -> bool:
        rest = memoryview(block)
        waited = 0.0
        while rest:
            if self._has_answer():
                return False
            try:
                sent = self._socket.send(rest)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as blocked:
                if patience is not None and waited >= patience:
                    raise httpx.WriteTimeout("the server takes no more") from None
                waited += await _glance(self._socket, blocked)
            except OSError as error:
                # The server may have said why before it hung up: what came is still here to be read.
                if self._has_answer():
                    return False
                raise httpx.WriteError("the line broke while sending") from error
            else:
                rest, waited = rest[sent:], 0.0
        return True

    async def _receive(self, patience: float | None, most: int = 64 * 1024) -> bytes:
        while True:
            try:
                return self._socket.recv(most)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait = anyio.wait_readable
            except ssl.SSLWantWriteError:
                wait = anyio.wait_writable
            except OSError as error:
                raise httpx.ReadError("the line broke while reading") from error
            try:
                with anyio.fail_after(patience):
                    await wait(self._socket)
            except TimeoutError:
                raise httpx.ReadTimeout("no answer in time") from None

    def _has_answer(self) -> bool:
        """Has the server said its last word, or gone, although the body is still on its way?"""
        if self._has_come() and (end := self.unread.find(b"\r\n\r\n")) >= 0:
            if not heads.is_interim(self.unread):
                return True
            del self.unread[: end + 4]
            self._interims += 1
        return self._ended

    def _has_come(self) -> bool:
        """Take what is there without waiting; True when something was."""
        try:
            block = self._socket.recv(64 * 1024)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            block = b""
        self.unread += block
        self._ended = not block
        return bool(block)


class _Reply(httpx.AsyncByteStream):
    """An answer's body. The line is kept when all of it was read, and closed otherwise."""

    def __init__(
        self, wire: Wire, origin: Origin, line: _Line, head: Head, patience: float | None, *, reusable: bool
    ) -> None:
        self._wire = wire
        self._origin = origin
        self._line = line
        self._head = head
        self._patience = patience
        self._reusable = reusable and head.keeps
        self._done = False
        if head.length == 0:
            self._finish()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._done:
            return
        blocks = self._chunks() if self._head.chunked else self._counted()
        async for block in blocks:
            yield block
        self._finish()

    async def aclose(self) -> None:
        if not self._done:
            self._done = True
            self._line.close()

    def _finish(self) -> None:
        self._done = True
        if self._reusable and not self._line.unread:
            self._wire.keep(self._origin, self._line, self._head.kept_for)
        else:
            self._line.close()

    async def _counted(self) -> AsyncIterator[bytes]:
        left = self._head.length
        while left is None or left > 0:
            block = await self._line.some(_BLOCK if left is None else min(left, _BLOCK), self._patience)
            if not block:
                if left is None:
                    return
                raise httpx.RemoteProtocolError("the answer ended early")
            if left is not None:
                left -= len(block)
            yield block

    async def _chunks(self) -> AsyncIterator[bytes]:
        while left := heads.chunk_size(await self._line.through(b"\r\n", 4096, self._patience)):
            while left:
                block = await self._line.some(left, self._patience)
                if not block:
                    raise httpx.RemoteProtocolError("the answer ended early")
                left -= len(block)
                yield block
            if await self._line.through(b"\r\n", 2, self._patience) != b"\r\n":
                raise httpx.RemoteProtocolError("a chunk of the answer has a wrong length")
        while await self._line.through(b"\r\n", _HEAD_CAP, self._patience) != b"\r\n":
            pass  # trailers say nothing that matters here


async def _glance(line: socket.socket, blocked: OSError) -> float:
    """Wait a little until the line takes more; the seconds it did not."""
    wait: Callable[[socket.socket], Awaitable[None]] = anyio.wait_writable
    if isinstance(blocked, ssl.SSLWantReadError):
        wait = anyio.wait_readable
    with anyio.move_on_after(_GLANCE):
        await wait(line)
        return 0.0
    return _GLANCE
