"""Test the responses that the HTTP client reads: any cut, any framing, broken and oversized bodies."""

from __future__ import annotations

import pytest

from contract.raw_server import OK, asked, saying
from docferry.errors import RemoteError
from docferry.remotes.http import Destination

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nfour\r\n0A\r\nten more..\r\n0\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n4\r\nfour\r\n0\r\nTrailer: x\r\n\r\n", b"four"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nX-Empty:\r\n\r\nok", b"ok"),
        # accepted by curl and browsers
        (b"HTTP/1.1 200 OK\r\nX-Foo : bar\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\na/b: c\r\nno colon\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\n folded: x\r\nX: y\r\n\tz\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nX: nul\0\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 O\0K\r\nContent-Length: 2, 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", b""),
        (b"HTTP/1.1 304 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nX: bell\x07\r\nY: del\x7f\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4  \r\nfour\r\n0\r\n\r\n", b"four"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_an_answer_is_read_however_it_is_cut(answer: bytes, body: bytes | None, step: int) -> None:
    blocks = [answer[start : start + step] for start in range(0, len(answer), step)]
    got = await asked(saying(*blocks))
    assert got.body_error is None
    assert got.content == (b"fourten more.." if body is None else body)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
    ],
)
async def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(RemoteError) as failure:
        await asked(saying(answer))
    assert (failure.value.kind, failure.value.status) == ("cut", None)


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 100\r\n\r\ntoo short",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour and more\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-4\r\nfour\r\n0\r\n\r\n",
        b"Content-Encoding: gzip\r\n\r\nno gzip at all",
    ],
)
async def test_a_status_counts_although_its_body_is_broken(body: bytes) -> None:
    got = await asked(saying(b"HTTP/1.1 200 OK\r\n" + body))
    assert (got.status, got.body_error) == (200, "cut")


async def test_a_body_past_its_cap_is_not_read() -> None:
    got = await asked(saying(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000), to=Destination(limit=10_000))
    assert (got.status, got.body_error) == (200, "large")
    assert len(got.content) <= 10_000


async def test_a_head_request_has_no_body() -> None:
    got = await asked(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), "HEAD")
    assert (got.content, got.body_error) == (b"", None)
