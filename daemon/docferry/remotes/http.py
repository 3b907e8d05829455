"""One request and its answer: deadlines, caps, and the only place that catches httpx's errors."""

from __future__ import annotations

import os
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol

import anyio
import anyio.to_thread
import certifi
import httpx

from docferry.clock import Clock
from docferry.errors import RemoteError, SourceChanged
from docferry.remotes.answers import Answer, moment
from docferry.remotes.wire import Wire

#: No answer that is read into memory is longer, decoded.
CAP: Final = 16 * 1024 * 1024
#: A body that moves slower than this many bytes a second, on the whole, is given up.
SLOWEST: Final = 64 * 1024
CONNECT_TIMEOUT: Final = 10.0
_SPOOLED: Final = 1024 * 1024
_LARGE: Final = 128 * 1024
Sink = Callable[[bytes], Awaitable[None]]
#: Opens a sink for the body of a 2xx, given its status and headers.
Into = Callable[[int, Mapping[str, str]], AbstractAsyncContextManager[Sink]]
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class Body(Protocol):
    """A document on its way. Its last block is given out only when the document may be complete."""

    @property
    def length(self) -> int: ...

    def blocks(self) -> AsyncIterator[bytes]: ...


class Http:
    """The line to one remote. Nothing is retried, no redirect followed, no cookie kept, no environment believed."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        timeout: float = 60.0,
        connections: int = 16,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._name = name
        self._clock = clock
        self._timeout = timeout
        self._limits = {"connect": min(CONNECT_TIMEOUT, timeout), "read": timeout, "write": timeout, "pool": timeout}
        self._connections = connections
        self._proxy = proxy
        self._ca_file = ca_file
        self._pool: _Pool | None = None
        self._date = ""
        self._asks_first: bool | None = False  # before a large body; None: the remote does not know how to answer
        self.clock_offset: float | None = None
        self.last_answer: float | None = None
        self.requests = 0

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        body: Body | None = None,
        cap: int = CAP,
        into: Into | None = None,
    ) -> Answer:
        """One request; RemoteError when no status came. `content` is a few bytes about a document, `body` is one.

        A 2xx body goes `into` a sink, where one is given, and others into memory; both up to `cap` bytes."""
        watched = _Watched(body) if body is not None else None
        request = _request(method, url, {**(headers or {}), **self._first_asking(body)}, content, watched)
        size = body.length if body is not None else 0
        # For what is small the deadline of the whole is the one for its answer too.
        request.extensions["timeout"] = self._limits if size > _LARGE else {**self._limits, "read": None}
        reading = _Reading(cap, into)
        self.requests += 1
        try:
            with anyio.fail_after(self._timeout + size / SLOWEST) as scope:
                await self._exchange(request, reading, scope)
        except TimeoutError:
            if not reading.begun:
                raise self._failure(request, "timeout", "the deadline passed", watched) from None
            reading.flaw = "cut"
        except _UNSENT as error:
            raise self._failure(request, "unreachable", _why(error), None) from None
        except httpx.HTTPError as error:
            kind = "timeout" if isinstance(error, httpx.TimeoutException) else "cut"
            raise self._failure(request, kind, _why(error), watched) from None
        answer = reading.answer(handed_over=watched is not None and watched.handed_over)
        self._learn(answer, body)
        return answer

    async def _exchange(self, request: httpx.Request, reading: _Reading, scope: anyio.CancelScope) -> None:
        """The request out, the answer in; whatever happens, the response is closed and its line is free or gone."""
        pool = self._pool = self._pool or _Pool(self._transport())
        pool.busy += 1
        try:
            response = await pool.transport.handle_async_request(request)
            try:
                self._note(response.headers)
                await reading.run(response, scope)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
                raise
            await response.aclose()
        except httpx.PoolTimeout:
            if self._pool is pool:
                self._pool = None  # cancelled requests leak slots of httpcore's pool: this one has none left
            raise
        finally:
            pool.busy -= 1
            if pool is not self._pool and not pool.busy:
                with anyio.CancelScope(shield=True):
                    await pool.transport.aclose()

    async def aclose(self) -> None:
        """Close what is open; a later call opens it again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.transport.aclose()

    def _first_asking(self, body: Body | None) -> Mapping[str, str]:
        """After a large body broke off unexplained, the next asks before it comes: a server that refuses early and
        hangs up is heard then, and the document is not sent over and over."""
        asks = self._asks_first and self._proxy is None and body is not None and body.length > _LARGE
        return {"Expect": "100-continue"} if asks else {}

    def _learn(self, answer: Answer, body: Body | None) -> None:
        if answer.status == 417:
            self._asks_first = None
        elif self._asks_first and body is not None and body.length > _LARGE and answer.ok:
            self._asks_first = False

    def _transport(self) -> httpx.AsyncBaseTransport:
        if self._proxy is None:
            return Wire(lambda: _trust(self._ca_file))
        limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections)
        proxy = httpx.Proxy(self._proxy)
        return httpx.AsyncHTTPTransport(
            verify=_trust(self._ca_file), trust_env=False, limits=limits, retries=0, proxy=proxy
        )

    def _note(self, headers: httpx.Headers) -> None:
        """Keep when the remote spoke last, and how far its clock is from ours."""
        self.last_answer = now = self._clock.now()
        date = headers.get("date", "")
        if date and date != self._date:
            self._date = date
            said = moment(date)
            if said is not None:
                self.clock_offset = said + 0.5 - now  # dates are cut to the second

    def _failure(self, request: httpx.Request, kind: str, why: str, watched: _Watched | None) -> RemoteError:
        if kind == "cut" and watched is not None and watched.body.length > _LARGE and self._asks_first is False:
            self._asks_first = True
        # Only the host is named: paths say little, and a signed URL's query is a secret.
        where = f"{self._name} at {request.url.host}"
        sentence = {
            "unreachable": f"{where} cannot be reached: {why}",
            "timeout": f"{where} did not answer in time: {why}",
            "cut": f"the connection to {where} broke: {why}",
        }[kind]
        return RemoteError(sentence, kind=kind, handed_over=watched is not None and watched.handed_over)


@asynccontextmanager
async def closing(blocks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Blocks that are finished with, at the latest, when the context ends."""
    try:
        yield blocks
    finally:
        if isinstance(blocks, AsyncGenerator):
            await blocks.aclose()


@dataclass(slots=True)
class _Pool:
    transport: httpx.AsyncBaseTransport
    busy: int = 0


@dataclass(slots=True)
class _Watched(httpx.AsyncByteStream):
    """A body on its way out, that knows whether its last block was asked for."""

    body: Body
    handed_over: bool = field(default=False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        given, length = 0, self.body.length
        self.handed_over = not length
        async with closing(self.body.blocks()) as blocks:
            async for block in blocks:
                given += len(block)
                if given > length:
                    raise SourceChanged("the file grew while it was sent; it is looked at again")
                # From here on it may arrive: the block before was accepted, and this is all that was missing.
                self.handed_over = given == length
                yield block
        if given != length:
            raise SourceChanged("the file shrank while it was sent; it is looked at again")


class _Reading:
    """An answer while it is read. Once its status is here, nothing that follows can undo it."""

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

    async def run(self, response: httpx.Response, scope: anyio.CancelScope) -> None:
        """Read to the end, the cap or the break; each byte that comes buys time at the slowest rate allowed."""
        self._status = response.status_code
        self._headers = {name.lower(): value for name, value in response.headers.items()}
        if self._into is None or not response.is_success:
            await self._read(response, scope, self._keep)
            return
        async with self._into(self._status, self._headers) as sink:
            await self._read(response, scope, sink)

    async def _read(self, response: httpx.Response, scope: anyio.CancelScope, sink: Sink) -> None:
        encoding = self._headers.get("content-encoding", "identity").strip().lower()
        unpack = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            async for raw in _stream(response):
                scope.deadline += len(raw) / SLOWEST
                block = unpack.decompress(raw, self._cap + 1 - self._length) if unpack else raw
                self._length += len(block)
                if self._length > self._cap:
                    self.flaw = "large"
                    return
                await sink(block)
        except (httpx.HTTPError, zlib.error):
            self.flaw = "cut"
        if unpack is not None and not unpack.eof:
            self.flaw = "cut"

    async def _keep(self, block: bytes) -> None:
        self._blocks.append(block)

    def answer(self, *, handed_over: bool) -> Answer:
        return Answer(self._status, self._headers, b"".join(self._blocks), handed_over, self.flaw, self._length)


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    if isinstance(response.stream, httpx.AsyncByteStream):
        return response.stream
    raise TypeError("the transport is not asynchronous")


def _request(
    method: str, url: str, headers: Mapping[str, str] | None, content: bytes | None, watched: _Watched | None
) -> httpx.Request:
    parsed = _parsed(url) if "?" in url else _remembered(url)
    lines = {"Host": parsed.netloc.decode("ascii"), "Accept": "*/*", "Accept-Encoding": "identity"}
    lines["User-Agent"] = "docferry"
    if watched is not None:
        lines["Content-Length"] = str(watched.body.length)
    elif content is not None or method in ("POST", "PUT"):
        lines["Content-Length"] = str(len(content or b""))
    lines.update(headers or {})
    stream = watched if watched is not None else httpx.ByteStream(content or b"")
    return httpx.Request(method, parsed, headers=lines, stream=stream)


def _why(error: httpx.HTTPError) -> str:
    """The reason in a few words, without addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); is `ca_file` missing?"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(error)[:200] or type(error).__name__


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file) if ca_file else certifi.where())


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise RemoteError("the remote gave an address that is none; ask its operator", kind="not_ours") from None


#: Parsing an address costs as much as sending a small document. Signed ones have a query and are not remembered.
_remembered = lru_cache(maxsize=512)(_parsed)


@asynccontextmanager
async def written(to: Path, mode: Literal["wb", "ab"] = "wb") -> AsyncIterator[Sink]:
    """A sink into a file that nobody else may read; written in large blocks, off the event loop."""
    blocks: list[bytes] = []
    size = 0
    file = await anyio.to_thread.run_sync(_opened, to, mode)

    async def sink(block: bytes) -> None:
        nonlocal size
        blocks.append(block)
        size += len(block)
        if size >= _SPOOLED:
            gathered, size = b"".join(blocks), 0
            blocks.clear()
            await anyio.to_thread.run_sync(file.write, gathered)

    try:
        yield sink
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_finished, file, b"".join(blocks))


def _opened(to: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    return open(to, mode, opener=lambda path, flags: os.open(path, flags, 0o600))


def _finished(file: BinaryIO, rest: bytes) -> None:
    with file:
        file.write(rest)
