"""Test `timeout`: it limits the time without progress, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketStream

from contract.raw_server import OK, head_of, http_client, serving
from contract.upload_items import item
from docferry.errors import RemoteError
from docferry.remotes.http import PlainBody

pytestmark = pytest.mark.anyio
SIZE = 12_000_000


@contextmanager
def slow_reader(rate: int, *, stops_after: int = SIZE) -> Iterator[str]:
    """Run a server that reads `rate` bytes a second from a small buffer, and then responds or stalls."""
    end = threading.Event()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):
                received = 0
                while received < stops_after:
                    received += len(client.recv(rate // 20))
                    if end.wait(0.05):
                        return
                if stops_after < SIZE:
                    end.wait()
                client.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            end.set()
            thread.join()


@pytest.mark.parametrize("block", [SIZE, 64 * 1024])
async def test_a_slow_upload_is_not_cut(block: int) -> None:
    """The upload takes several times the timeout, and its last part waits in the kernel's buffer."""
    with slow_reader(2_000_000) as url:
        async with http_client(timeout=0.8) as http:
            began = time.monotonic()
            with anyio.fail_after(60):
                got = await http.call("PUT", url, body=PlainBody(item("a.pdf", b"x" * SIZE, block=block)))
    assert (got.status, got.body_complete) == (200, True)
    assert time.monotonic() - began > 2.4, "the test measured nothing"


async def test_an_upload_that_stands_still_is_cut() -> None:
    with slow_reader(4_000_000, stops_after=1_000_000) as url:
        async with http_client(timeout=0.8) as http:
            with anyio.fail_after(20), pytest.raises(RemoteError) as failure:
                await http.call("PUT", url, body=PlainBody(item("a.pdf", b"x" * 30_000_000)))
    assert (failure.value.kind, failure.value.body_complete) == ("timeout", False)


@pytest.mark.parametrize("head", [b"Content-Length: 20\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("stops", [False, True])
async def test_a_slow_download_is_not_cut_until_it_stands_still(head: bytes, stops: bool) -> None:
    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\n" + head)
        for number in range(20):
            if stops and number == 10:
                await anyio.sleep_forever()
            await anyio.sleep(0.1)
            await client.send(b"1\r\nx\r\n" if b"chunked" in head else b"x")
        await client.send(b"0\r\n\r\n" if b"chunked" in head else b"")

    async with serving(speak) as server, http_client(timeout=0.7) as http:
        with anyio.fail_after(20):
            got = await http.call("GET", server.url)
    assert (got.status, got.length, got.body_error) == (200, 10 if stops else 20, "cut" if stops else None)


async def test_requests_and_responses_have_their_own_limits() -> None:
    """`write_timeout` cuts a request that nobody reads, `read_timeout` a response that does not come."""
    with slow_reader(4_000_000, stops_after=1_000_000) as url:
        async with http_client(timeout=60.0, write_timeout=0.8) as http:
            with anyio.fail_after(30), pytest.raises(RemoteError) as failure:
                await http.call("PUT", url, body=PlainBody(item("a.pdf", b"x" * 30_000_000)))
    assert (failure.value.kind, failure.value.body_complete) == ("timeout", False)

    async def silent(client: SocketStream) -> None:
        await head_of(client)
        await anyio.sleep_forever()

    async with serving(silent) as server, http_client(timeout=60.0, read_timeout=0.5) as http:
        with anyio.fail_after(30), pytest.raises(RemoteError) as failure:
            await http.call("GET", server.url)
    assert failure.value.kind == "timeout"
