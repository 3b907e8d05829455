"""Test that a request through a sender ends like one of this process, for every behaviour of the server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import anyio
import anyio.streams.tls
import pytest
import trustme
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec.structs import replace

from contract.raw_server import OK, head_of, serving
from docferry.errors import RemoteError, SourceChanged
from docferry.remotes.http import Form, PlainBody
from docferry.remotes.http.response import MAX_RECEIPT_BYTES
from docferry.senders import handle
from senders.conftest import Documents, is_alive, running_pool, sender_pids, wait_for

pytestmark = pytest.mark.anyio
SMALL, LARGE = os.urandom(200_000), os.urandom(3_000_000)


async def outcome(call: Awaitable[Any]) -> tuple[Any, ...]:
    """Return the result of a call, as the queue gets it."""
    try:
        response = await call
    except RemoteError as error:
        return error.kind, str(error), error.body_complete
    except SourceChanged as error:
        return ("changed", str(error))
    flags = response.body_complete, response.maybe_complete, response.body_error
    return response.status, dict(response.headers), response.content, *flags


async def taking_all(client: SocketStream) -> bytes:
    stream = BufferedByteReceiveStream(client)
    head = await stream.receive_until(b"\r\n\r\n", 65536)
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return head + b"\r\n\r\n" + await stream.receive_exactly(length)


async def answer(client: SocketStream) -> None:
    while True:
        await taking_all(client)
        await client.send(OK)


async def refuse_early(client: SocketStream) -> None:
    await head_of(client)
    await client.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong")
    await anyio.sleep_forever()


async def hang_up_at_once(client: SocketStream) -> None:
    await head_of(client)


async def hang_up_after(client: SocketStream) -> None:
    await taking_all(client)


async def be_silent(client: SocketStream) -> None:
    await taking_all(client)
    await anyio.sleep_forever()


async def cut_the_answer(client: SocketStream) -> None:
    await taking_all(client)
    await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nok")


async def repeat_headers(client: SocketStream) -> None:
    await taking_all(client)
    await client.send(b'HTTP/1.1 201 Created\r\nETag: "\xfc"\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 0\r\n\r\n')


async def speak_nonsense(client: SocketStream) -> None:
    await taking_all(client)
    await client.send(b"SSH-2.0-OpenSSH\r\n\r\n")


async def send_gzip(client: SocketStream) -> None:
    await taking_all(client)
    packed = bytes.fromhex("1f8b08000000000002ffcb2f5100f0d8b22a03000000")
    await client.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 22\r\n\r\n" + packed)


SERVERS = [answer, hang_up_after, cut_the_answer, repeat_headers, speak_nonsense, send_gzip]
#: How much of a body the kernel has taken by then is a matter of microseconds.
RACING = [refuse_early, hang_up_at_once]


async def test_every_end_of_a_request_is_the_same_as_in_process(documents: Documents) -> None:
    ends: list[list[Any]] = []
    for count in (0, 1):
        async with running_pool(count, timeout=30.0) as (_, http), documents.opened(SMALL, LARGE) as items:
            assert len(sender_pids()) == count
            found: list[Any] = []
            for speak in SERVERS + RACING:
                for item in items:
                    async with serving(speak) as server:
                        end = await outcome(http.call("PUT", server.url, body=PlainBody(item)))
                    found.append((speak.__name__, item.transfer.remote_name, end[:1] if speak in RACING else end))
            found.append(await outcome(http.call("PUT", "http://nowhere.invalid/x?secret=1", body=PlainBody(items[0]))))
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
                found.append((await outcome(http.call("PUT", url, body=PlainBody(items[0]))))[::2])
            ends.append(found)
    assert ends[0] == ends[1]


async def test_a_long_receipt_is_not_read_to_its_end(documents: Documents) -> None:
    """The status counts. A hostile server fills neither the daemon's memory nor that of a sender."""

    async def answer_at_length(client: SocketStream) -> None:
        await taking_all(client)
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        while True:
            await client.send(b"x" * 65_536)

    for count in (0, 1):
        async with (
            running_pool(count) as (_, http),
            documents.opened(SMALL) as (item,),
            serving(answer_at_length) as server,
        ):
            found = await http.call("PUT", server.url, body=PlainBody(item))
        assert (found.status, found.body_error, found.body_complete) == (200, "large", True)
        assert len(found.content) <= MAX_RECEIPT_BYTES < found.length


async def test_a_sender_limits_the_time_without_progress(documents: Documents) -> None:
    ends = []
    for count in (0, 1):
        async with (
            running_pool(count, timeout=2.0) as (_, http),
            documents.opened(SMALL) as (item,),
            serving(be_silent) as server,
        ):
            ends.append(await outcome(http.call("PUT", server.url, body=PlainBody(item))))
    assert ends[0] == ends[1]
    assert ends[0][0] == "timeout"


async def test_a_form_of_several_documents_arrives_byte_for_byte(documents: Documents) -> None:
    bodies: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        bodies.append((await taking_all(client)).partition(b"\r\n\r\n")[2])
        await client.send(OK)

    contents = (SMALL, LARGE, b"", os.urandom(600_000))
    for count in (0, 1):
        async with running_pool(count) as (_, http), documents.opened(*contents) as items, serving(speak) as server:
            items = [replace(each, transfer=replace(each.transfer, uid="1")) for each in items]
            form = Form(items, [("path", "a/b")])
            url = server.url + "?X-Amz-Signature=a%2Fb%20c+d&e=%C3%A9"
            assert (await http.call("POST", url, headers={"Content-Type": form.content_type}, body=form)).body_complete
    assert bodies[0] == bodies[1]
    assert all(content in bodies[0] for content in contents)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_sender_speaks_tls_by_the_configured_files(documents: Documents, tmp_path: Path, trusted: bool) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    (authority if trusted else other).cert_pem.write_to_path(str(ca_file))

    async def speak(client: SocketStream) -> None:
        with contextlib.suppress(ssl.SSLError, anyio.BrokenResourceError):
            tls = await anyio.streams.tls.TLSStream.wrap(client, server_side=True, ssl_context=context)
            received = b""
            while LARGE[-100:] not in received[-200:]:
                received += await tls.receive()
            await tls.send(OK)

    ends = []
    for count in (0, 1):
        async with (
            running_pool(count, ca_file=ca_file) as (_, http),
            documents.opened(LARGE) as (item,),
            serving(speak) as server,
        ):
            url = server.url.replace("http:", "https:")
            ends.append(await outcome(http.call("PUT", url, body=PlainBody(item))))
    assert ends[0] == ends[1]
    assert ends[0][0] == (200 if trusted else "unreachable")


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("change", ["rewrite", "touch"])
async def test_a_document_that_changes_never_becomes_a_whole_body(
    documents: Documents, content: bytes, change: str
) -> None:
    heads: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        heads.append(await head_of(client))
        await anyio.sleep_forever()  # whether or not a part of the body comes

    async with running_pool(1) as (_, http), documents.opened(content) as (item,), serving(speak) as server:
        path = documents.root / "0.pdf"
        if change == "rewrite":
            path.write_bytes(b"other" + content[5:])
        else:
            os.utime(path, ns=(0, 0))
        end = await outcome(http.call("PUT", server.url, body=PlainBody(item)))
    assert end[0] == "changed"
    assert "0.pdf" in end[1]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_cancelled_request_says_whether_it_had_begun(documents: Documents, begun: bool) -> None:
    received = anyio.Event()

    async def speak(client: SocketStream) -> None:
        await taking_all(client)
        received.set()
        await anyio.sleep_forever()

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        where = full.getsockname()
        crowd = [_connecting(where) for _ in range(3)]  # no further connection is accepted
        async with running_pool(1) as (pool, http), documents.opened(SMALL) as (item,), serving(speak) as server:
            url = server.url if begun else f"http://127.0.0.1:{where[1]}/"
            async with anyio.create_task_group() as group:
                group.start_soon(outcome, http.call("PUT", url, body=PlainBody(item)))
                if begun:
                    await received.wait()
                else:
                    await wait_for(lambda: pool.in_flight, "the request")
                group.cancel_scope.cancel()
            assert item.source.is_wanted is begun  # type: ignore[attr-defined]  # a FileSource
            assert not pool.in_flight
        for each in crowd:
            each.close()


def _connecting(where: Any) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex(where)
    return made


async def test_a_request_of_a_killed_sender_is_doubtful_once_it_has_begun(documents: Documents) -> None:
    received = anyio.Event()

    async def speak(client: SocketStream) -> None:
        await head_of(client)
        received.set()
        await anyio.sleep_forever()

    async with running_pool(1) as (_, http), documents.opened(LARGE) as (item,), serving(speak) as server:
        ends: list[tuple[Any, ...]] = []

        async def send() -> None:
            ends.append(await outcome(http.call("PUT", server.url, body=PlainBody(item))))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await received.wait()
            os.kill(sender_pids()[0], signal.SIGKILL)
    (kind, text, body_complete) = ends[0]
    assert (kind, body_complete) == ("cut", True)
    assert "process that sent" in text


async def test_a_request_that_a_killed_sender_had_not_begun_is_sent_by_another_way(documents: Documents) -> None:
    async with running_pool(1) as (pool, http), documents.opened(SMALL) as (item,), serving(answer) as server:
        (pid,) = sender_pids()
        os.kill(pid, signal.SIGSTOP)
        ends: list[tuple[Any, ...]] = []

        async def send() -> None:
            ends.append(await outcome(http.call("PUT", server.url, body=PlainBody(item))))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await wait_for(lambda: pool.in_flight, "the request")
            os.kill(pid, signal.SIGKILL)
        assert ends[0][0] == 200
        assert server.connections == 1


async def test_a_request_whose_head_was_sent_is_not_repeated_past_the_limits(documents: Documents) -> None:
    """The server has counted it, although no byte of the body was sent: the queue repeats it, within the limits."""
    heads: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        heads.append(await head_of(client))
        if len(heads) == 2:
            os.kill(sender_pids()[0], signal.SIGKILL)
            await anyio.sleep_forever()

    async with running_pool(1) as (_, http), documents.opened(LARGE) as (item,), serving(speak) as server:
        ends = [await outcome(http.call("PUT", server.url, body=PlainBody(item))) for _ in range(2)]
    assert b"100-continue" in heads[1]  # after the first connection broke
    assert [end[0] for end in ends] == ["cut", "cut"]
    assert len(heads) == 2


async def test_a_sender_that_breaks_the_protocol_is_replaced(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon kills the sender and continues; the request is doubtful."""
    monkeypatch.setattr(handle, "PROGRAM", "senders.broken_sender")
    async with running_pool(1) as (pool, http), documents.opened(SMALL) as (item,), serving(answer) as server:
        (pid,) = sender_pids("senders.broken_sender")
        end = await outcome(http.call("PUT", server.url, body=PlainBody(item)))
        assert end[0] == "cut"
        await wait_for(lambda: not is_alive(pid), "the end of the broken sender")
        assert (await outcome(http.call("PUT", server.url, body=PlainBody(item))))[0] == 200
        assert not pool.is_running
