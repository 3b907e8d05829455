"""Test the faults that change a response: status, pause, early, endless, redirected and stale ones."""

from __future__ import annotations

import gzip
import json
import ssl
from email.utils import parsedate_to_datetime

import pytest

from docferry.simulator import Fault
from simulator.conftest import Start
from simulator.faulty import faulty, over_tls, then_all_is_well
from simulator.rawclient import (
    CODAT,
    LIST,
    UPLOAD,
    Cut,
    Raw,
    Reply,
    ask,
    form,
    form_headers,
    upload,
)

BROKEN = (ConnectionResetError, BrokenPipeError)


#: Larger than all buffers on the way.
BIG = ("big.pdf", b"x" * 9_000_000)


@pytest.mark.parametrize(("kind", "status"), [("html_200", 200), ("html_502", 502)])
@pytest.mark.parametrize("stored", [False, True])
def test_a_proxy_speaks_html(start: Start, kind: str, status: int, stored: bool) -> None:
    running = faulty(start, kind, stored=stored)
    reply = upload(running.url)
    assert reply.status == status
    assert reply.headers["content-type"].startswith("text/html")
    then_all_is_well(running, stored=int(stored))


@pytest.mark.parametrize("status", [500, 503, 401, 402, 403, 404, 400, 409])
@pytest.mark.parametrize("stored", [False, True])
def test_a_status_of_the_service(start: Start, status: int, stored: bool) -> None:
    running = faulty(start, "status", status=status, stored=stored, headers={"x-should-retry": "false"})
    reply = upload(running.url, key="k")
    assert reply.status == status
    assert reply.json["statusCode"] == status
    assert reply.json["correlationId"]
    assert reply.headers["x-should-retry"] == "false"
    assert len(running.simulator.stored) == stored
    # The response is stored for its key; only a new key can succeed.
    assert upload(running.url, key="k").status == status
    assert len(running.simulator.stored) == stored
    then_all_is_well(running, stored=int(stored))


@pytest.mark.parametrize("wish", ["seconds", "date", "past", "garbage", "huge", 17])
def test_too_many_requests_with_every_retry_after(start: Start, wish: str | int) -> None:
    running = faulty(start, "too_many", retry_after=wish, seconds=5)
    reply = upload(running.url, key="k")
    assert reply.status == 429
    _check_retry_after(wish, reply)
    assert running.simulator.stored == []
    assert upload(running.url, key="k").status == 200  # a 429 is not kept for its key
    assert len(running.simulator.stored) == 1


def _check_retry_after(wish: str | int, reply: Reply) -> None:
    value = reply.headers["retry-after"]
    if wish in ("date", "past"):
        ahead = (parsedate_to_datetime(value) - parsedate_to_datetime(reply.headers["date"])).total_seconds()
        assert 4 <= ahead <= 6 if wish == "date" else ahead < -3000
    else:
        assert value == {"seconds": "5", "garbage": "soon, perhaps", "huge": "1000000000", 17: "17"}[wish]


@pytest.mark.parametrize(("kind", "status"), [("early_413", b"413"), ("early_401", b"401")])
def test_an_early_answer_comes_before_the_body_and_then_a_reset(start: Start, kind: str, status: bytes) -> None:
    running = faulty(start, kind)
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("POST", UPLOAD, form_headers(), 9_000_000))
        came = next(blocks := raw.blocks())
        with pytest.raises(BROKEN):
            next(blocks)
    assert came.startswith(b"HTTP/1.1 " + status)
    then_all_is_well(running, stored=0)
    running = faulty(start, kind)
    with pytest.raises(BROKEN), Raw(running.url) as raw:  # and a client that goes on sending is cut off
        raw.send("POST", UPLOAD, form_headers(), form(BIG))
    then_all_is_well(running, stored=0)


def test_an_early_answer_over_tls_is_cut_off_too(start: Start) -> None:
    server, client = over_tls()
    running = start(faults=[Fault("early_413", "codat.upload", first=1)], ssl_context=server)
    with pytest.raises((*BROKEN, ssl.SSLError, Cut)), Raw(running.url, tls=client) as raw:
        raw.send("POST", UPLOAD, form_headers(), form(BIG))
    assert [seen.status for seen in running.simulator.log] == [413]
    assert running.simulator.stored == []


@pytest.mark.parametrize(("kind", "status"), [("early_413", b"413"), ("early_401", b"401")])
def test_an_early_answer_is_heard_over_tls(start: Start, kind: str, status: bytes) -> None:
    """The response follows unacknowledged session tickets; the reset must not overtake it."""
    server, client = over_tls()
    running = start(faults=[Fault(kind, "codat.upload")], ssl_context=server)
    for _ in range(20):
        with Raw(running.url, tls=client) as raw:
            raw.sock.sendall(raw.head("POST", UPLOAD, form_headers(), 9_000_000))
            assert next(raw.blocks()).startswith(b"HTTP/1.1 " + status)


def test_a_gzip_bomb(start: Start) -> None:
    running = faulty(start, "gzip_bomb", "codat.list", size=50_000_000)
    reply = ask(running.url, "GET", LIST, CODAT)
    assert reply.headers["content-encoding"] == "gzip"
    assert len(reply.body) < 100_000
    assert len(whole := gzip.decompress(reply.body)) > 49_000_000
    assert json.loads(whole) == []


def test_an_endless_json(start: Start) -> None:
    running = faulty(start, "endless_json", "codat.list")
    came = 0
    with Raw(running.url) as raw:
        raw.send("GET", LIST, CODAT)
        for block in raw.blocks():
            came += len(block)
            if came > 20_000_000:
                break
    assert came > 20_000_000
    then_all_is_well(running, stored=0)
    running.simulator.set_faults([Fault("endless_json", "codat.list", params={"size": 10})])
    with Raw(running.url) as raw:
        raw.send("GET", LIST, CODAT)
        assert sum(map(len, raw.blocks())) > 1000


def test_what_is_endless_ends_with_its_client_over_tls(start: Start) -> None:
    server, client = over_tls()
    running = start(faults=[Fault("endless_json", "codat.list", first=1)], ssl_context=server)
    with Raw(running.url, tls=client) as raw:
        raw.send("GET", LIST, CODAT)
        assert next(raw.blocks())
    assert upload(running.url, tls=client).status == 200  # nobody is served while a stream is written to nobody


def test_a_redirect(start: Start) -> None:
    running = faulty(start, "redirect", location="http://elsewhere.invalid/")
    reply = upload(running.url)
    assert (reply.status, reply.headers["location"]) == (307, "http://elsewhere.invalid/")
    then_all_is_well(running, stored=0)
