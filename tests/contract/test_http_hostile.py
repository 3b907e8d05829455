"""Test hostile and broken servers: each response affects only its request, at a small cost."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.streams.tls
import httptools
import httpx
import pytest
from anyio.abc import SocketStream

from contract.conftest import Certificates, Make
from contract.raw_server import OK, asked, head_of, http_client, saying, serving
from contract.upload_items import item
from docferry.errors import RemoteError, SourceChanged
from docferry.remotes.http import Destination, PlainBody, Sink
from docferry.remotes.http.response import parse_time
from docferry.remotes.http.tls import Trust
from docferry.remotes.http.transport import DirectTransport
from ready_senders import in_process

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
#: The longest time that one response may block the event loop.
MAX_LAG_S = 0.5


@asynccontextmanager
async def responsive_loop() -> AsyncIterator[None]:
    """Fail when the event loop did not get to other tasks for MAX_LAG_S."""
    lags = [0.0]

    async def beat() -> None:
        while True:
            began = time.monotonic()
            await anyio.sleep(0.01)
            lags.append(time.monotonic() - began - 0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        yield
        group.cancel_scope.cancel()
    assert max(lags) < MAX_LAG_S


def endless(start: bytes, block: bytes, *, reads_body: bool = True) -> Callable[[SocketStream], Any]:
    """Answer with `start` and then `block` without end."""

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        if not reads_body:
            await anyio.sleep(0.05)
        await client.send(start)
        while True:
            await client.send(block)

    return speak


@pytest.mark.parametrize("sends_body", [False, True])
@pytest.mark.parametrize(
    ("start", "block"),
    [
        pytest.param(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100, id="interim"),
        pytest.param(HEAD, b"X: y\r\n" * 100, id="headers"),
        pytest.param(HEAD + b"X: ", b"y" * 4096, id="one header"),
        pytest.param(b"HTTP/1.1 200 ", b"y" * 4096, id="reason"),
    ],
)
async def test_a_head_without_end_is_an_error(start: bytes, block: bytes, sends_body: bool) -> None:
    """Also while a body is sent."""
    body = PlainBody(item("a.pdf", b"x" * 30_000_000, block=1 << 20)) if sends_body else None
    with anyio.fail_after(60):
        async with responsive_loop():
            with pytest.raises(RemoteError) as failure:
                await asked(endless(start, block, reads_body=not sends_body), "PUT", body=body)
    assert failure.value.kind == "cut"


@pytest.mark.parametrize(
    ("start", "block"),
    [
        pytest.param(CHUNKED, b"1\r\nx\r\n" * 1000, id="chunks of one byte"),
        pytest.param(CHUNKED, b"2;" + b"e" * 4000 + b"\r\nxx\r\n", id="chunk extensions"),
        pytest.param(CHUNKED + b"4\r\nfour\r\n0\r\n", b"X: y\r\n" * 100, id="trailers"),
        pytest.param(CHUNKED, b"0" * 4096, id="chunk size"),
    ],
)
async def test_framing_without_end_is_cut(start: bytes, block: bytes) -> None:
    with anyio.fail_after(60):
        async with responsive_loop():
            got = await asked(endless(start, block))
    assert (got.status, got.body_error) == (200, "cut")
    assert got.length < 200_000


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n", CHUNKED])
async def test_a_deadline_fires_although_bytes_keep_coming(start: bytes) -> None:
    """Interim responses, header lines and trailers are no progress."""
    blocks = {b"": b"HTTP/1.1 102 x\r\n\r\n", HEAD: b"X: y\r\n", CHUNKED: b"0"}

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(start)
        while True:
            await anyio.sleep(0.1)
            await client.send(blocks.get(start, b""))

    async with serving(speak) as server, http_client(timeout=0.5) as http:
        with anyio.fail_after(60):
            wrong: str | None
            try:
                wrong = (await http.call("GET", server.url)).body_error
            except RemoteError as error:
                wrong = error.kind
    assert wrong == ("cut" if b"\r\n\r\n" in start else "timeout")


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked", "Transfer-Encoding and Content-Length"),
        (b"Content-Length: 2\r\nContent-Length: 3", "Content-Length"),
        (b"Content-Length: 2, 3", "Content-Length"),
        (b"Content-Length: two", "Content-Length"),
        (b"Transfer-Encoding: gzip, chunked", "Transfer-Encoding"),
        (b"Transfer-Encoding\x0b: chunked", "Transfer-Encoding"),
        (b" Content-Length: 2", "Content-Length"),
        (b"X: y\rContent-Length: 2", "Content-Length"),
    ],
)
async def test_ambiguous_framing_is_refused_and_the_header_named(lines: bytes, named: str) -> None:
    with pytest.raises(RemoteError, match=named):
        await asked(saying(HEAD + lines + b"\r\n\r\nok"))


async def test_a_server_that_speaks_tls_on_a_plain_port_is_recognised() -> None:
    with pytest.raises(RemoteError, match="use https"):
        await asked(saying(b"\x15\x03\x03\x00\x02\x02\x50"))


# the confirmed documents


@pytest.mark.parametrize("remote", ["codat", "wootiv"])
async def test_a_success_before_the_whole_body_is_a_doubt(codat: Make, wootiv: Make, remote: str) -> None:
    async def speak(client: SocketStream) -> None:
        head = await head_of(client)
        if head.startswith(b"POST /aws"):
            url = f"{server.url}object?X-Amz-Signature=x".encode()
            content = b'{"url": "%s", "fields": {}}' % url
            await client.send(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
            return
        await client.send(HEAD + b"Content-Length: 0\r\n\r\n")
        await anyio.sleep_forever()

    async with serving(speak) as server:
        env = {"codat": codat, "wootiv": wootiv}[remote](base_url=server.url)
        with anyio.fail_after(60), pytest.raises(RemoteError, match="before all of it was sent") as failure:
            await env.send("a.pdf", b"x" * 8_000_000)
    assert failure.value.body_complete, "the remote is asked, and the document is not called sent"


async def test_a_body_that_ends_with_the_connection_needs_the_end_of_tls(certificates: Certificates) -> None:
    """Without close_notify an attacker may have cut the body; with it, or without TLS, the server ended it."""
    for ends_properly in (True, False):
        ended = await _ask_over_tls(certificates, ends_properly=ends_properly, head=b"")
        assert ended == (None if ends_properly else "cut")
        assert await _ask_over_tls(certificates, ends_properly=ends_properly, head=b"Content-Length: 4\r\n") is None


async def _ask_over_tls(certificates: Certificates, *, ends_properly: bool, head: bytes) -> str | None:
    async def speak(client: SocketStream) -> None:
        tls = await anyio.streams.tls.TLSStream.wrap(client, server_side=True, ssl_context=certificates.server)
        await tls.receive()
        await tls.send(HEAD + head + b"\r\nfour")
        if ends_properly:
            await tls.unwrap()
        else:
            await client.send_eof()

    async with serving(speak) as server, http_client(ca_file=certificates.ca_file) as http:
        got = await http.call("GET", server.url.replace("http:", "https:"))
        assert got.content == b"four"
        return got.body_error


# contents


async def test_a_packed_bomb_is_cut_at_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with responsive_loop():
        got = await asked(saying(head + bomb), to=Destination(limit=3_000_000))
    assert got.body_error == "large"
    assert len(got.content) <= 3_000_000


@pytest.mark.parametrize(
    ("encoding", "raw", "unpacked"),
    [("gzip", False, True), ("gzip", True, False), ("aws-chunked", False, False), ("br", True, False)],
)
async def test_a_body_is_unpacked_unless_the_stored_bytes_are_wanted(encoding: str, raw: bool, unpacked: bool) -> None:
    packed = gzip.compress(b"the object")
    head = HEAD + f"Content-Encoding: {encoding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    got = await asked(saying(head + packed), to=Destination(raw=raw))
    assert got.content == (b"the object" if unpacked else packed)
    assert got.body_error is None


@pytest.mark.parametrize(
    "date", ["31 Dec 9999 23:59:59 GMT", "0001-01-01T00:00:00+14:00", "Fri, 31 Dec 9999 23:59:59 -9999", "1e400", "-"]
)
async def test_a_date_that_is_none_is_ignored(date: str) -> None:
    assert parse_time(date) is None
    speak = saying(HEAD + f"Date: {date}\r\nContent-Length: 0\r\n\r\n".encode())
    async with serving(speak) as server, http_client() as http:
        assert (await http.call("GET", server.url)).status == 200
        assert http.clock_offset is None


# the boundary

ERRORS = [
    ValueError("x"),
    KeyError("x"),
    OSError(5, "x"),
    RecursionError(),
    MemoryError(),
    OverflowError(),
    StopIteration(),
]


@in_process
@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["resolve", "parse"])
async def test_any_exception_stays_with_its_request(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    if where == "resolve":
        monkeypatch.setattr(socket, "getaddrinfo", fail)
    else:
        monkeypatch.setattr(httptools, "HttpResponseParser", fail)
    with pytest.raises(RemoteError) as failure:
        await asked(saying(OK), "PUT", body=PlainBody(item("a.pdf")))
    assert failure.value.body_complete is (where == "parse"), "sent is sent, whatever the response does to us"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SourceChanged("changed")])
async def test_what_the_source_or_the_sink_raise_is_no_error_of_the_network(error: Exception) -> None:
    class Failing:
        length = 10

        async def blocks(self) -> AsyncIterator[bytes]:
            yield b"x"
            raise error

    @asynccontextmanager
    async def open_sink(_status: int, _headers: Mapping[str, str]) -> AsyncIterator[Sink]:
        async def sink(_block: bytes) -> None:
            raise error

        yield sink

    async with serving(saying(OK)) as server, http_client() as http:
        with pytest.raises(type(error)):
            await http.call("PUT", server.url, body=Failing())
        with pytest.raises(type(error)):
            await http.call("GET", server.url, to=Destination(open_sink))


async def test_a_transport_can_be_used_with_httpx_alone() -> None:
    """The transport follows httpx's interface, errors included."""
    transport = DirectTransport(Trust())
    async with serving(saying(OK, ends=False)) as server, httpx.AsyncClient(transport=transport) as client:
        assert (await client.post(server.url, content=b"x")).text == "ok"
        assert server.connections == 1
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/")
