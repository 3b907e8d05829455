"""Test proxies: attribution of errors, credentials, and limits."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.streams.tls
import pytest
from anyio.abc import SocketStream

from contract.conftest import Certificates
from contract.raw_server import OK, head_of, http_client, serving
from contract.upload_items import item
from docferry.endpoints import parse_proxy
from docferry.errors import RemoteError
from docferry.remotes.http import PlainBody

pytestmark = pytest.mark.anyio
PASSWORD = "p#a/s@s:w%41"


def proxy_saying(response: bytes, seen: list[bytes] | None = None) -> Callable[[SocketStream], Awaitable[None]]:
    async def speak(client: SocketStream) -> None:
        head = await head_of(client)
        if seen is not None:
            seen.append(head)
        await client.send(response)

    return speak


async def failure(response: bytes, **options: Any) -> RemoteError:
    async with serving(proxy_saying(response)) as server:
        proxy = server.url.replace("http://", f"http://user:{PASSWORD}@").rstrip("/")
        async with http_client(proxy=proxy, **options) as http:
            with pytest.raises(RemoteError) as found:
                await http.call("PUT", "https://api.test/x", body=PlainBody(item("a.pdf")))
    assert PASSWORD not in str(found.value)
    return found.value


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("407 Proxy Authentication Required", "set user and password in `proxy`"),
        ("403 Forbidden", "the proxy must allow this host"),
        ("503 Service Unavailable", "cannot reach the host"),
        ("500 Oops", "ask its operator"),
    ],
)
async def test_a_proxy_that_refuses_is_named(status: str, said: str) -> None:
    error = await failure(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    assert (error.kind, error.body_complete, error.status) == ("unreachable", False, None)
    assert "the proxy 127.0.0.1:" in str(error)
    assert f"refused the connection ({status})" in str(error)
    assert said in str(error)


@pytest.mark.parametrize("response", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nno TLS at all"])
async def test_a_proxy_that_is_none_is_an_error(response: bytes) -> None:
    error = await failure(response)
    assert not error.body_complete


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_password_may_hold_any_character(escaped: bool) -> None:
    seen: list[bytes] = []
    written = "p%23a%2Fs%40s%3Aw%2541" if escaped else PASSWORD.replace("%", "%25")
    async with serving(proxy_saying(OK, seen)) as server:
        proxy = server.url.replace("http://", f"http://user:{written}@").rstrip("/")
        async with http_client(proxy=proxy) as http:
            assert (await http.call("GET", "http://api.test/x")).content == b"ok"
    credentials = base64.b64encode(f"user:{PASSWORD}".encode())
    assert b"Proxy-Authorization: Basic " + credentials in seen[0]
    assert seen[0].startswith(b"GET http://api.test/x HTTP/1.1")


@pytest.mark.parametrize(
    "text",
    [
        "proxy:3128",
        "ftp://proxy",
        "http://",
        "http://proxy:99999",
        "http://pro\u2011xy:3128",
        "http://proxy:3128/path",
        f"http://{'a' * 300}:1",
    ],
)
async def test_an_address_that_is_none_is_said_without_the_password(text: str) -> None:
    with_password = text.replace("://", "://user:canary@")
    with pytest.raises(ValueError, match=r"proxy|host and a port") as found:
        parse_proxy(with_password)
    assert "canary" not in str(found.value)
    async with http_client(proxy=with_password) as http:
        with pytest.raises(RemoteError) as failed:
            await http.call("GET", "http://api.test/")
    assert failed.value.kind in ("unreachable", "cut")
    assert "canary" not in str(failed.value)


async def test_a_success_before_the_whole_body_does_not_count() -> None:
    """Httpx sends on after a response; it counts as complete only once the last block was taken."""

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with serving(speak) as server, http_client(proxy=server.url.rstrip("/")) as http:
        with anyio.fail_after(60):
            try:
                got = await http.call("PUT", "http://api.test/", body=PlainBody(item("a.pdf", b"x" * 30_000_000)))
                complete = got.body_complete
            except RemoteError as error:
                complete = error.body_complete
    assert not complete


@pytest.mark.parametrize("block", [b"HTTP/1.1 102 Processing\r\n\r\n" * 50, b"X: y\r\n" * 100])
async def test_a_response_without_end_is_given_up(block: bytes) -> None:
    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\n" if block.startswith(b"X") else b"")
        while True:
            await client.send(block)

    async with (
        serving(speak) as server,
        http_client(proxy=server.url.rstrip("/"), timeout=0.5, connect_timeout=0.2) as http,
    ):
        with anyio.fail_after(60), pytest.raises(RemoteError) as failed:
            await http.call("GET", "http://api.test/")
    assert failed.value.kind in ("timeout", "cut")


async def test_chunks_of_one_byte_are_cut() -> None:
    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await client.send(b"1\r\nx\r\n" * 500)

    async with serving(speak) as server, http_client(proxy=server.url.rstrip("/")) as http:
        with anyio.fail_after(60):
            got = await http.call("GET", "http://api.test/")
    assert (got.status, got.body_error) == (200, "cut")
    assert got.length < 10_000


async def test_connections_are_used_again_and_cancelled_requests_leave_nothing() -> None:
    async def speak(client: SocketStream) -> None:
        while True:
            await head_of(client)
            await anyio.sleep(0.01)
            await client.send(OK)

    async with serving(speak) as server, http_client(proxy=server.url.rstrip("/")) as http:
        for _ in range(3):
            await http.call("GET", "http://api.test/")
        assert server.connections == 1
        for delay in range(8):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(http.call, "GET", "http://api.test/")
                await anyio.sleep(delay / 500)
                group.cancel_scope.cancel()
        with anyio.fail_after(60):
            await http.call("GET", "http://api.test/")
        await http.aclose()
        with anyio.fail_after(60):
            await server.all_closed()


async def test_socks_reaches_the_server() -> None:
    async def speak(client: SocketStream) -> None:
        assert await client.receive() == b"\x05\x01\x02"
        await client.send(b"\x05\x02")
        credentials = await client.receive()
        assert credentials == b"\x01\x04user\x03p@#"
        await client.send(b"\x01\x00")
        asked = await client.receive()
        assert b"api.test" in asked
        await client.send(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await head_of(client)
        await client.send(OK)

    async with serving(speak) as server:
        proxy = server.url.replace("http://", "socks5h://user:p@#@").rstrip("/")
        async with http_client(proxy=proxy) as http:
            assert (await http.call("GET", "http://api.test/")).content == b"ok"


async def test_a_certificate_behind_a_proxy_is_told_as_such(certificates: Certificates) -> None:
    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await anyio.streams.tls.TLSStream.wrap(client, server_side=True, ssl_context=certificates.server)

    async with serving(speak) as server, http_client(proxy=server.url.rstrip("/")) as http:
        with pytest.raises(RemoteError, match="unknown authority; set `ca_file`") as failed:
            await http.call("PUT", "https://localhost/", body=PlainBody(item("a.pdf")))
    assert failed.value.kind == "unreachable"
