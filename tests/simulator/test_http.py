"""Test HTTP and multipart parsing with bodies cut anywhere, and with malformed requests."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.simulator.http import Malformed
from docferry.simulator.multipart import ContentSink, Multipart
from simulator.conftest import Start
from simulator.rawclient import BOUNDARY, CODAT, LIST, UPLOAD, Cut, Raw, form, form_headers

MARK = f"--{BOUNDARY}".encode()
#: Contents that look like boundaries, and end in the middle of one.
tricky = st.lists(
    st.sampled_from([b"\r\n", b"--", MARK, b"\r\n" + MARK[:-1], b"\r", b"\n", b"x", b"\x00\xff"]), max_size=6
).map(b"".join)


def parsed(blocks: list[bytes]) -> list[tuple[str, str | None, bytes | None]]:
    parser = Multipart(BOUNDARY.encode(), lambda _name, _filename: ContentSink(keep=1 << 20))
    for block in blocks:
        parser.feed(block)
    return [(part.name, part.filename, part.sink.content) for part in parser.finish()]


@settings(max_examples=300, deadline=None)
@given(contents=st.lists(tricky, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_a_body_is_the_same_however_it_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    contents = [each for each in contents if b"\r\n" + MARK not in b"\r\n" + each] or [b"plain"]
    body = form(*((f"{number}.pdf", content) for number, content in enumerate(contents)))
    places = [0, *sorted(cut % len(body) for cut in cuts), len(body)]
    blocks = [body[start:end] for start, end in pairwise(places)]
    expected = [("file", f"{number}.pdf", content) for number, content in enumerate(contents)]
    assert parsed(blocks) == expected
    assert parsed([body[place : place + 1] for place in range(len(body))]) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        form(("a.pdf", b"a"))[:-6],
        MARK + b"junk\r\n\r\n\r\n" + MARK + b"--",
        MARK + b"\r\nContent-Type: text/plain\r\n\r\nno name\r\n" + MARK + b"--",
        MARK + b'\r\nContent-Disposition: attachment; name="x"\r\n\r\nx\r\n' + MARK + b"--",
        MARK + b"\r\nX: " + b"x" * 70_000,
        form(*(("a.pdf", b"") for _ in range(1001))),
    ],
)
def test_what_is_no_whole_multipart_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        parsed([body])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('filename="a%22b.pdf"', 'a"b.pdf'),
        (r'filename="a\"b\\c.pdf"', 'a"b\\c.pdf'),
        ("filename=plain.pdf", "plain.pdf"),
        ("filename*=UTF-8''na%C3%AFve.pdf", "naïve.pdf"),
        ('filename="ü;=.pdf"', "ü;=.pdf"),
        ('filename=""', ""),
    ],
)
def test_file_names_are_read_however_they_are_quoted(written: str, meant: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; {written}\r\n\r\n'.encode()
    assert parsed([MARK + b"\r\n" + head + b"x\r\n" + MARK + b"--"]) == [("file", meant, b"x")]


def test_requests_follow_each_other_on_one_connection_even_unasked(start: Start) -> None:
    running = start()
    body = form(("a.pdf", b"a"))
    with Raw(running.url) as raw:
        one = raw.head("POST", UPLOAD, form_headers(), len(body)) + body
        raw.sock.sendall(one + one + raw.head("GET", LIST, CODAT, None))
        assert [raw.reply().status for _ in range(3)] == [200, 200, 200]
    assert len(running.simulator.stored) == 2


def test_an_upload_in_single_bytes(start: Start) -> None:
    running = start()
    body = form(("a.pdf", b"abc"))
    with Raw(running.url) as raw:
        for byte in raw.head("POST", UPLOAD, form_headers(), len(body)) + body:
            raw.sock.sendall(bytes([byte]))
        assert raw.reply().status == 200
    assert [stored.content for stored in running.simulator.stored] == [b"abc"]


def test_a_body_that_never_comes_whole_is_not_stored(start: Start) -> None:
    running = start()
    body = form(("a.pdf", b"a"))
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("POST", UPLOAD, form_headers(), len(body)) + body[:-1])
        raw.sock.shutdown(1)
        with pytest.raises(Cut):
            raw.reply()
    assert running.simulator.stored == []


def test_the_other_half_of_a_connection_may_be_closed_early(start: Start) -> None:
    running = start()
    with Raw(running.url) as raw:
        raw.send("POST", UPLOAD, form_headers(), form(("a.pdf", b"a")))
        raw.sock.shutdown(1)
        assert raw.reply().status == 200


def test_a_client_that_waits_for_100_is_refused_without_its_body(start: Start) -> None:
    running = start()
    with Raw(running.url) as raw:
        headers = form_headers() | {"Expect": "100-continue", "Authorization": "Basic wrong"}
        raw.sock.sendall(raw.head("POST", UPLOAD, headers, 1_000_000))
        reply = raw.reply()
        assert (reply.status, reply.headers["connection"]) == (401, "close")
    assert running.simulator.stored == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_bad_request(start: Start, request_bytes: bytes) -> None:
    running = start()
    with Raw(running.url) as raw:
        raw.sock.sendall(request_bytes)
        assert b"".join(raw.blocks()).startswith(b"HTTP/1.1 400 ")
    assert sum(running.simulator.requests.values()) == 0


def test_http_1_0_and_close_end_the_connection(start: Start) -> None:
    running = start()
    for request in (b"GET /nowhere HTTP/1.0\r\n\r\n", b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n"):
        with Raw(running.url) as raw:
            raw.sock.sendall(request)
            assert b"Connection: close\r\n" in b"".join(raw.blocks())


@pytest.mark.parametrize("chunks", [b"x\r\n", b"5\r\nab", b"2\r\nab\r\n0\r\n\r\n"])
def test_broken_chunks_store_nothing(start: Start, chunks: bytes) -> None:
    running = start()
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("POST", UPLOAD, form_headers() | {"Transfer-Encoding": "chunked"}, None) + chunks)
        raw.sock.shutdown(1)
        b"".join(raw.blocks())
    assert running.simulator.stored == []
