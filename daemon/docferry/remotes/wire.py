"""Lean HTTP/1.1: one request at a time on a line, and the line kept for the next."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import anyio
import httpx

from docferry.remotes import heads
from docferry.remotes.address import Address, Origin
from docferry.remotes.body import Outgoing
from docferry.remotes.heads import Head
from docferry.remotes.line import Line
from docferry.remotes.reach import reach

#: A line that was idle for longer is not used again; a server may say less.
IDLE: Final = 10.0
_HEAD_CAP: Final = 64 * 1024


class Patience(NamedTuple):
    """Seconds until a phase of a request is given up; None: its deadline is the one of the whole."""

    connect: float | None
    read: float | None
    write: float | None


@dataclass(slots=True)
class Request:
    """What is asked. `fields` is all that is said, `Host` and `Content-Length` too."""

    method: str
    address: Address
    fields: Mapping[str, str]
    body: bytes | Outgoing
    patience: Patience


class Reply(Protocol):
    """The answer as it comes. Whoever has it closes it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""

    def blocks(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """Takes requests to servers, raising httpx's errors."""

    async def exchange(self, request: Request) -> Reply: ...

    async def aclose(self) -> None: ...


class Wire:
    """Lines to any number of origins; as many as there are requests at once. A cancelled request closes its line."""

    def __init__(self, trust: Callable[[], ssl.SSLContext], *, idle: float = IDLE) -> None:
        self._trust = trust  # asked for when a first https address comes: loading certificates takes its time
        self._context: ssl.SSLContext | None = None
        self._idle = idle
        self._kept: dict[Origin, list[Line]] = {}
        self._closed = False

    async def exchange(self, request: Request) -> Reply:
        origin, patience = request.address.origin, request.patience
        head = heads.request(request.method, request.address.target, request.fields)
        line = self._reusable(origin) or await self._connect(origin, patience.connect)
        try:
            whole = await line.send(head, request.body, patience.write, asks="Expect" in request.fields)
            said = await line.head(request.method, patience.read)
        except BaseException:
            line.close()
            raise
        return _Reply(self, origin, line, said, patience.read, reusable=whole)

    async def aclose(self) -> None:
        self._closed = True
        for lines in self._kept.values():
            for line in lines:
                line.close()
        self._kept.clear()

    def keep(self, origin: Origin, line: Line, seconds: float | None) -> None:
        """The line is free for the next request, for so long as the server said or `idle`."""
        if self._closed:
            line.close()
            return
        line.until = time.monotonic() + (self._idle if seconds is None else min(seconds, self._idle))
        self._kept.setdefault(origin, []).append(line)

    def _reusable(self, origin: Origin) -> Line | None:
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
    def _sweep(lines: list[Line], now: float) -> None:
        while lines and lines[0].until <= now:
            lines.pop(0).close()

    async def _connect(self, origin: Origin, seconds: float | None) -> Line:
        try:
            with anyio.fail_after(seconds):
                opened = await reach(origin.host, origin.port)
                try:
                    return Line(opened if origin.scheme == "http" else await self._secured(opened, origin.host))
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


class _Reply:
    """An answer on its line, which is kept when all of it was read, and closed otherwise."""

    def __init__(
        self, wire: Wire, origin: Origin, line: Line, head: Head, patience: float | None, *, reusable: bool
    ) -> None:
        self.status, self.headers = head.status, head.fields
        self._wire = wire
        self._origin = origin
        self._line = line
        self._head = head
        self._patience = patience
        self._reusable = reusable and head.keeps
        self._done = False
        if head.length == 0:
            self._finish()

    async def blocks(self) -> AsyncIterator[bytes]:
        if self._done:
            return
        async for block in self._chunks() if self._head.chunked else self._counted():
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
            block = await self._line.some(left, self._patience)
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
