"""Test the HTTP client against servers that send exact bytes."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from contract.conftest import Certificates
from contract.raw_server import OK, head_of, http_client, saying, serving
from contract.upload_items import item
from docferry.errors import RemoteError
from docferry.remotes.http import PlainBody
from docferry.remotes.http.connection import Connection, Timeouts
from docferry.remotes.http.request_body import TrackedBody
from docferry.simulator import SimulatorOptions
from ready_senders import in_process
from unreachable_hosts import slow_lookup_host

pytestmark = pytest.mark.anyio


# answers of every shape


# lines that are kept


async def test_a_line_is_used_again() -> None:
    async with serving(saying(OK, ends=False)) as server, http_client() as http:
        for _ in range(5):
            await http.call("GET", server.url)
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nand something that nobody asked for",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_line_that_may_not_be_used_again_is_not(answer: bytes) -> None:
    async with serving(saying(answer, ends=False)) as server, http_client() as http:
        for _ in range(3):
            assert (await http.call("GET", server.url)).status == 200
        assert server.connections == 3


async def test_a_line_that_the_server_closed_costs_no_attempt() -> None:
    gone = anyio.Event()

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(OK)
        await client.aclose()
        gone.set()

    async with serving(speak) as server, http_client() as http:
        for _ in range(20):
            gone = anyio.Event()
            sent = PlainBody(item("a.pdf", b"x" * 10))
            assert (await http.call("GET", server.url, body=sent if server.connections > 10 else None)).status == 200
            await gone.wait()
        assert server.connections == 20


async def test_a_line_on_which_the_server_spoke_unasked_is_not_used() -> None:
    spoken = anyio.Event()

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(OK)
        await client.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        spoken.set()
        await client.receive()

    async with serving(speak) as server, http_client() as http:
        for _ in range(3):
            spoken = anyio.Event()
            assert (await http.call("GET", server.url)).status == 200
            await spoken.wait()


# bodies on their way


async def test_the_last_block_is_asked_for_only_when_the_one_before_was_taken() -> None:
    """A server that stops reading certainly lacks the rest of the body."""
    with socket.create_server(("127.0.0.1", 0)) as door:  # nobody accepts: the buffers get full
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with http_client(timeout=0.5) as http:
            sent = PlainBody(item("a.pdf", b"x" * 30_000_000, block=1 << 20))
            with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
                await http.call("PUT", f"http://127.0.0.1:{door.getsockname()[1]}/", body=sent)
    assert (failure.value.kind, failure.value.body_complete) == ("timeout", False)


async def test_an_answer_that_comes_early_ends_the_sending() -> None:
    async def speak(client: SocketStream) -> None:
        await head_of(client)
        await client.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await anyio.sleep_forever()  # it reads nothing more, and does not hang up either

    async with serving(speak) as server, http_client(timeout=120.0) as http:
        sent = PlainBody(item("a.pdf", b"x" * 30_000_000, block=1 << 20))
        with anyio.fail_after(60):
            got = await http.call("PUT", server.url, body=sent)
        assert (got.status, got.body_complete) == (413, False)


@pytest.mark.parametrize("takes", [True, False])
async def test_a_body_is_complete_when_the_kernel_took_all_of_it(takes: bool) -> None:
    """With one block, the last one: nothing can have arrived if the connection broke before it."""
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        there.send(OK)
        if not takes:
            there.close()
        sent = TrackedBody(PlainBody(item("a.pdf", b"x" * 10)))
        head = await Connection(here).exchange("PUT", b"PUT / HTTP/1.1\r\n\r\n", sent, Timeouts(1.0, 1.0))
        assert head.status == 200, "what was said before the end is read"
        assert (sent.complete, sent.maybe_complete) == (takes, takes)


async def test_an_interim_answer_does_not_end_the_sending() -> None:
    async def speak(client: SocketStream) -> None:
        stream = BufferedByteReceiveStream(client)
        await stream.receive_until(b"\r\n\r\n", 65536)
        await client.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await stream.receive_exactly(5_000_000)
        await client.send(OK)

    async with serving(speak) as server, http_client() as http:
        got = await http.call("PUT", server.url, body=PlainBody(item("a.pdf", b"x" * 5_000_000)))
        assert (got.status, got.body_complete) == (200, True)


async def test_a_server_that_never_heard_of_asking_first_still_gets_the_body() -> None:
    requests: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        stream = BufferedByteReceiveStream(client)
        requests.append(await stream.receive_until(b"\r\n\r\n", 65536))
        if len(requests) == 1:
            return  # hangs up inside the first body
        await stream.receive_exactly(5_000_000)
        await client.send(OK)

    async with serving(speak) as server, http_client(timeout=120.0) as http:
        with pytest.raises(RemoteError):
            await http.call("PUT", server.url, body=PlainBody(item("a.pdf", b"x" * 5_000_000)))
        got = await http.call("PUT", server.url, body=PlainBody(item("a.pdf", b"x" * 5_000_000)))
        assert got.status == 200
        assert [b"100-continue" in request for request in requests] == [False, True]


async def test_a_request_is_written_as_it_should_be() -> None:
    seen: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        stream = BufferedByteReceiveStream(client)
        seen.append(await stream.receive_until(b"\r\n\r\n", 65536))
        seen.append(await stream.receive_exactly(10))
        await client.send(OK)

    async with serving(speak) as server, http_client() as http:
        await http.call(
            "PUT", f"{server.url}a%20b?x=%2F", headers={"X-Own": "1"}, body=PlainBody(item("a", b"0123456789"))
        )
        first, *fields = seen[0].decode().split("\r\n")
        assert first == "PUT /a%20b?x=%2F HTTP/1.1"
        assert {"Content-Length: 10", "X-Own: 1", "Accept-Encoding: identity"} < set(fields)
        assert fields[0] == f"Host: {server.url[7:-1]}"
        assert seen[1] == b"0123456789"


@pytest.mark.parametrize("etag", ['"caf\u00e9"', '"\u20ac"'])
async def test_a_header_that_is_not_ascii_goes_back_as_it_came(etag: str) -> None:
    seen: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        for _ in range(2):
            seen.append(await head_of(client))
            await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: " + etag.encode() + b"\r\n\r\n")

    async with serving(speak) as server, http_client() as http:
        got = (await http.call("GET", server.url)).headers["etag"]
        assert got == etag
        await http.call("GET", server.url, headers={"If-None-Match": got})
    assert b"If-None-Match: " + etag.encode() in seen[1]


async def test_a_line_break_in_a_header_is_refused() -> None:
    async with serving(saying(OK)) as server, http_client() as http:
        with pytest.raises(RemoteError):
            await http.call("GET", server.url, headers={"X": "a\r\nY: b"})
        assert server.connections == 0


# the way to a server


async def test_an_unknown_host_cannot_be_reached() -> None:
    async with http_client() as http:
        with pytest.raises(RemoteError) as failure:
            await http.call("PUT", "http://nowhere.invalid/", body=PlainBody(item("a.pdf")))
    assert (failure.value.kind, failure.value.body_complete) == ("unreachable", False)
    assert "nowhere.invalid" in str(failure.value)


@in_process
def test_a_resolver_that_hangs_keeps_no_program_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopped() -> None:
        async with http_client() as http:
            with anyio.move_on_after(0.2):
                await http.call("PUT", f"http://{host}/", body=PlainBody(item("a.pdf")))

    with slow_lookup_host(monkeypatch) as host:
        began = time.monotonic()
        anyio.run(stopped)
        assert time.monotonic() - began < 5, "the loop waited for the resolver"


@in_process
async def test_a_name_that_cannot_be_looked_up_for_want_of_threads_is_not_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with http_client() as http:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RemoteError, match="no thread") as failure:
            await http.call("PUT", "http://nowhere.invalid/", body=PlainBody(item("a.pdf")))
    assert (failure.value.kind, failure.value.body_complete) == ("unreachable", False)


async def test_an_untrusted_certificate_is_named_with_its_cure(simulated: Any, certificates: Certificates) -> None:
    sim = simulated(tls=certificates.server)
    async with http_client() as http:
        with pytest.raises(RemoteError, match="ca_file") as failure:
            await http.call("PUT", sim.url, body=PlainBody(item("a.pdf")))
    assert (failure.value.kind, failure.value.body_complete) == ("unreachable", False)


async def test_a_certificate_for_another_name_is_refused(simulated: Any, certificates: Certificates) -> None:
    sim = simulated(tls=certificates.server)
    async with http_client(ca_file=certificates.ca_file) as http:
        assert (await http.call("GET", sim.url.replace("127.0.0.1", "localhost"))).status == 401
        with pytest.raises(RemoteError) as failure:
            await http.call("GET", sim.url.replace("127.0.0.1", "127.0.0.2"))
    assert failure.value.kind == "unreachable"


async def test_a_handshake_that_hangs_is_cut() -> None:
    async def speak(_client: SocketStream) -> None:
        await anyio.sleep_forever()

    async with serving(speak) as server, http_client(timeout=0.3) as http:
        with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
            await http.call("PUT", server.url.replace("http:", "https:"), body=PlainBody(item("a.pdf")))
        assert failure.value.kind in ("unreachable", "timeout")
        assert not failure.value.body_complete


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://[", "http://127.0.0.1:99999/", "nothing"])
async def test_an_address_that_is_none_is_said(url: str) -> None:
    async with http_client() as http:
        with pytest.raises(RemoteError):
            await http.call("GET", url)


async def test_nothing_stays_open() -> None:
    async with serving(saying(OK, ends=False)) as server:
        async with http_client() as http:
            for cancelled in (False, True):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(http.call, "GET", server.url)
                    await anyio.lowlevel.checkpoint()
                    if cancelled:
                        group.cancel_scope.cancel()
        with anyio.fail_after(60):
            await server.all_closed()


# by a proxy, on httpx's own transport


async def test_a_proxy_that_is_set_is_used(codat: Any, certificates: Certificates, simulated: Any) -> None:
    sim = simulated(SimulatorOptions(requests_per_minute=0), tls=certificates.server)

    async def speak(client: SocketStream) -> None:
        head = await head_of(client)
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as there:
            await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with anyio.create_task_group() as group:
                group.start_soon(_pump, client, there, group.cancel_scope)
                group.start_soon(_pump, there, client, group.cancel_scope)

    async with serving(speak) as proxy:
        env = codat(sim, proxy=proxy.url, ca_file=certificates.ca_file)
        await env.send("a.pdf", b"x" * 500_000)
        async with anyio.create_task_group() as group:  # a storm, as httpcore's pool leaks slots to it
            for number in range(40):
                group.start_soon(env.send, f"{number}.pdf")
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        with anyio.fail_after(60):
            await env.send("b.pdf")
        await env.remote.aclose()
        assert env.names[0] == "a.pdf"
        assert env.names[-1] == "b.pdf"
        assert proxy.connections >= 1


async def test_a_proxy_that_is_away_is_surely_not_stored(codat: Any) -> None:
    env = codat(proxy="http://127.0.0.1:1")
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("unreachable", False)


async def _pump(here: SocketStream, there: SocketStream, scope: anyio.CancelScope) -> None:
    try:
        async for block in here:
            await there.send(block)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()


async def test_a_request_that_is_given_up_is_not_delivered_later() -> None:
    """Without a reset, the kernel would deliver it minutes later, when the network works again."""
    ends: list[type[Exception]] = []

    async def speak(client: SocketStream) -> None:
        await client.receive()
        try:
            await client.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            ends.append(type(error))

    async with serving(speak) as server, http_client(timeout=0.3) as http:
        with pytest.raises(RemoteError):
            await http.call("GET", server.url)
        with anyio.fail_after(20):
            while not ends:  # noqa: ASYNC110 - the server's end of the connection
                await anyio.sleep(0.01)
    assert ends == [anyio.BrokenResourceError]
