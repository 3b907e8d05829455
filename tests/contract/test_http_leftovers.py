"""Test that bytes beyond one response never become another one: no connection with leftovers is used again."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from anyio.abc import SocketStream

from contract.raw_server import head_of, http_client, serving
from docferry.errors import RemoteError

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
#: A second response that the server sends with the first one, for the next document.
SMUGGLED = OK + b"Content-Length: 4\r\nETag: smuggled\r\n\r\nfake"
REFUSED = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
RESPONSES = {
    "after a length": OK + b"Content-Length: 2\r\n\r\nok" + SMUGGLED,
    "after chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "after trailers": CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\n\r\n" + SMUGGLED,
    "after no content": b"HTTP/1.1 204 No Content\r\n\r\n" + SMUGGLED,
    "after no content with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n" + SMUGGLED,
    "one byte": OK + b"Content-Length: 2\r\n\r\nok\n",
    "an empty line": OK + b"Content-Length: 2\r\n\r\nok\r\n\r\n" + SMUGGLED,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok" + SMUGGLED,
    "bare line feeds in chunks": CHUNKED + b"2\nok\n0\n\n" + SMUGGLED,
    "folded length": OK + b"Content-Length:\r\n 2\r\n\r\nok" + SMUGGLED,
    "folded encoding": OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "two equal lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok" + SMUGGLED,
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 80\r\n\r\nok" + SMUGGLED,
    "length and encoding": OK
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    + SMUGGLED,
    "encoding twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "encoding with a tab": OK + b"Transfer-Encoding:\tchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "encoding with a space": OK + b"Transfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "unknown encoding": OK + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
    "leading white space": b" \r\n" + SMUGGLED,
    "a leading empty line": b"\r\n" + SMUGGLED,
    "negative length": OK + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "signed length": OK + b"Content-Length: +2\r\n\r\nok" + SMUGGLED,
    "hexadecimal length": OK + b"Content-Length: 0x2\r\n\r\nok" + SMUGGLED,
    "length beyond 64 bits": OK + b"Content-Length: 18446744073709551618\r\n\r\nok" + SMUGGLED,
    "chunk beyond 64 bits": CHUNKED + b"10000000000000002\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "negative chunk": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "chunk with a prefix": CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n" + SMUGGLED,
    "chunk without an end": CHUNKED + b"2\r\nokx\r\n0\r\n\r\n" + SMUGGLED,
    "chunk with an extension": CHUNKED + b'2;a="\r\n0\r\n\r\n"\r\nok\r\n0\r\n\r\n' + SMUGGLED,
    "an old version": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok" + SMUGGLED,
    "an upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("together", [True, False], ids=["together", "later"])
@pytest.mark.parametrize("case", RESPONSES)
async def test_what_follows_a_response_answers_no_other_request(case: str, together: bool) -> None:
    raw = RESPONSES[case]
    is_first = True

    async def speak(client: SocketStream) -> None:
        nonlocal is_first
        await head_of(client)
        if not is_first:
            await client.send(REFUSED)
            return
        is_first = False
        for part in [raw] if together else [raw[:-20], raw[-20:]]:
            await client.send(part)
            await anyio.lowlevel.checkpoint()
        await head_of(client)  # a second request on this connection would find what was smuggled

    async with serving(speak) as server, http_client() as http:
        with anyio.fail_after(60):
            with contextlib.suppress(RemoteError):
                first = await http.call("GET", server.url)
                assert first.content != b"fake"
            assert (await http.call("GET", server.url)).status == 503
        assert server.connections == 2
