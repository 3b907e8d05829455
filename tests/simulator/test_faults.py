"""Test every kind of fault: the client's view, and whether the file was stored."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from docferry.clock import TurnableClock
from docferry.simulator import KINDS, Fault, Simulator, SimulatorOptions, SimulatorThread
from simulator.conftest import Start
from simulator.faulty import faulty, over_tls, then_all_is_well
from simulator.rawclient import (
    CODAT,
    COMPANY,
    LIST,
    UPLOAD,
    Cut,
    Raw,
    Reply,
    ask,
    form,
    form_headers,
    listed,
    upload,
)

BROKEN = (ConnectionResetError, BrokenPipeError)
#: Larger than all buffers on the way.
BIG = ("big.pdf", b"x" * 9_000_000)


@pytest.mark.parametrize(
    ("kind", "stored"), [("reset_before", 0), ("reset_inside", 0), ("reset_after", 0), ("lost_answer", 1)]
)
def test_resets_over_tls(start: Start, kind: str, stored: int) -> None:
    server, client = over_tls()
    running = start(faults=[Fault(kind, "codat.upload", first=1)], ssl_context=server)
    with pytest.raises((*BROKEN, ssl.SSLError, Cut)):  # Python's ssl tells an RST as an end, at times
        upload(running.url, tls=client)
    assert (running.simulator.log[0].fault, running.simulator.log[0].status) == (kind, None)
    assert len(running.simulator.stored) == stored
    assert upload(running.url, tls=client).status == 200


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "lost_answer"])
def test_a_reset_is_an_rst(start: Start, kind: str) -> None:
    running = faulty(start, kind)
    with pytest.raises(BROKEN):
        upload(running.url)
    then_all_is_well(running, stored=1 if kind == "lost_answer" else 0)


def test_reset_inside_reads_only_so_much(start: Start) -> None:
    running = faulty(start, "reset_inside", after=1000)
    body = form(BIG)
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("POST", UPLOAD, form_headers(), len(body)) + body[:2000])
        with pytest.raises(BROKEN):
            next(raw.blocks())
    then_all_is_well(running, stored=0)


def test_a_lost_answer_may_end_in_peace(start: Start) -> None:
    running = faulty(start, "lost_answer", how="close")
    with pytest.raises(Cut):
        upload(running.url)
    then_all_is_well(running, stored=1)


def test_a_lost_answer_is_given_again_to_the_same_key(start: Start) -> None:
    running = faulty(start, "lost_answer")
    with pytest.raises(BROKEN):
        upload(running.url, key="k")
    assert upload(running.url, key="k").status == 200
    assert len(running.simulator.stored) == 1


def test_a_lost_answer_may_be_stored_late(start: Start) -> None:
    clock = TurnableClock()
    running = start(faults=[Fault("lost_answer", first=1, params={"late": 45})], clock=clock)
    with pytest.raises(BROKEN):
        upload(running.url)
    assert running.simulator.stored == []
    clock.turn(45.0)
    assert len(running.simulator.stored) == 1
    running.simulator.set_faults([Fault("late", "codat.upload", params={"late": 10})])
    assert upload(running.url).status == 200
    assert len(running.simulator.stored) == 1
    clock.turn(10.0)
    assert listed(running.url) == ["a.pdf", "a.pdf"]


@pytest.mark.parametrize("tls", [False, True])
def test_refused_connections(start: Start, tls: bool) -> None:
    server, client = over_tls() if tls else (None, None)
    running = start(faults=[Fault("refuse", "codat.upload", first=1, params={"seconds": 0.5})], ssl_context=server)
    with Raw(running.url, tls=client) as other:  # open connections are reset too
        with pytest.raises((*BROKEN, ssl.SSLError, Cut)):
            upload(running.url, tls=client)
        with pytest.raises((*BROKEN, ssl.SSLError, Cut)):
            other.ask("GET", LIST, CODAT)
    with pytest.raises(ConnectionRefusedError):
        upload(running.url, tls=client)
    assert running.simulator.stored == []
    assert _as_soon_as_it_works(lambda: upload(running.url, tls=client)).status == 200
    assert len(running.simulator.stored) == 1


@pytest.mark.parametrize("moment", [0.0, 0.00002, 0.00005, 0.0002, 0.01])
def test_the_door_may_be_closed_by_hand_at_any_moment(start: Start, moment: float) -> None:
    running = start()
    with Raw(running.url) as raw:
        began = time.perf_counter()
        while time.perf_counter() < began + moment:
            pass  # waiting for the queue, the task and the transport takes far less than a sleep
        running.simulator.refuse(0.3)
        with pytest.raises(BROKEN):
            raw.reply()
    with pytest.raises(ConnectionRefusedError):
        upload(running.url)
    assert _as_soon_as_it_works(lambda: upload(running.url)).status == 200


def test_connections_accepted_and_reset(start: Start) -> None:
    running = faulty(start, "refuse", mode="reset", seconds=0.5)
    for _ in range(3):
        with pytest.raises(BROKEN):
            upload(running.url)
    assert running.simulator.requests["codat.upload"] == 1
    assert _as_soon_as_it_works(lambda: upload(running.url)).status == 200
    assert len(running.simulator.stored) == 1


@pytest.mark.parametrize("stored", [False, True])
def test_a_stall_never_answers_and_ends_with_the_client(start: Start, stored: bool) -> None:
    running = faulty(start, "stall", stored=stored)
    with Raw(running.url, timeout=0.3) as raw:
        raw.send("POST", UPLOAD, form_headers(), form(("a.pdf", b"a")))
        with pytest.raises(TimeoutError):
            raw.reply()
    then_all_is_well(running, stored=int(stored))


def test_a_stall_may_end_by_itself(start: Start) -> None:
    running = faulty(start, "stall", seconds=0.1)
    with pytest.raises(BROKEN):
        upload(running.url)
    then_all_is_well(running, stored=0)


def test_slow_reading_is_felt_by_the_client(start: Start) -> None:
    running = faulty(start, "slow_read", rate=10_000)
    with Raw(running.url, timeout=0.3) as raw, pytest.raises(TimeoutError):
        raw.send("POST", UPLOAD, form_headers(), form(BIG))
    then_all_is_well(running, stored=0)
    running = faulty(start, "slow_read", rate=100_000)
    before = time.monotonic()
    assert upload(running.url, ("a.pdf", b"x" * 40_000)).status == 200
    assert time.monotonic() - before >= 0.3
    then_all_is_well(running, stored=1)


def test_a_slow_answer_comes_byte_by_byte(start: Start) -> None:
    running = faulty(start, "slow_answer", rate=100)
    with Raw(running.url) as raw:
        raw.send("POST", UPLOAD, form_headers(), form(("a.pdf", b"a")))
        assert len(next(raw.blocks())) <= 10
    then_all_is_well(running, stored=1)
    running = faulty(start, "slow_answer", rate=2000)
    assert upload(running.url).status == 200


def test_a_truncated_answer(start: Start) -> None:
    running = faulty(start, "truncated_answer", extra=7)
    with Raw(running.url) as raw:
        raw.send("POST", UPLOAD, form_headers(), form(("a.pdf", b"a")))
        came = b"".join(raw.blocks())
    assert came.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 7\r\n" in came
    assert came.endswith(b"\r\n\r\n")
    then_all_is_well(running, stored=1)


def test_a_zip_cut_where_it_is_wanted(start: Start) -> None:
    running = start()
    running.simulator.put_company_file(COMPANY, "a.pdf", b"x" * 5000)
    whole = ask(running.url, "GET", f"{LIST}/download", CODAT)
    running.simulator.set_faults([Fault("truncated_answer", "codat.download", params={"at": 1024})])
    with Raw(running.url) as raw:
        raw.send("GET", f"{LIST}/download", CODAT)
        head, _, body = b"".join(raw.blocks()).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(whole.body)}".encode() in head
    assert body == whole.body[:1024]


def test_a_kept_connection_is_stale_as_the_next_request_comes(start: Start) -> None:
    running = faulty(start, "stale_keepalive")
    body = form(("a.pdf", b"a"))
    with Raw(running.url) as raw:
        assert raw.ask("POST", UPLOAD, form_headers(), body).status == 200  # the first on a connection is never struck
        with pytest.raises(BROKEN):
            raw.ask("POST", UPLOAD, form_headers(), body)
    then_all_is_well(running, stored=1)


def test_a_file_is_swallowed(start: Start) -> None:
    running = faulty(start, "swallow")
    assert upload(running.url).status == 200
    then_all_is_well(running, stored=0)


def _as_soon_as_it_works(doing: Callable[[], Reply]) -> Reply:
    deadline = time.monotonic() + 10
    while True:
        try:
            return doing()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # the server is away for a time of its own


#: Faults after which the file is stored, whatever response the client got.
STORING = {None, "lost_answer", "slow_read", "slow_answer", "truncated_answer", "late"}


def test_a_storm_of_everything_at_once(start: Start) -> None:
    quick = {"slow_read": {"rate": 1e6}, "slow_answer": {"rate": 1e6}, "stall": {"seconds": 0.01}}
    quick |= {"gzip_bomb": {"size": 1_000_000}, "endless_json": {"size": 1000}}
    kinds = KINDS.keys() - {"refuse"}  # it strikes connections that no rule has chosen
    faults = [Fault(kind, "codat.upload", rate=0.03, params=quick.get(kind, {})) for kind in sorted(kinds)]
    running = start(SimulatorOptions(requests_per_minute=0), faults)

    def send(sender: int) -> None:
        raw = None
        for number in range(100):
            try:
                raw = raw or Raw(running.url)
                body = form((f"{sender}-{number}.pdf", b"x" * 20_000))
                raw.ask("POST", UPLOAD, form_headers(), body)
            except (*BROKEN, Cut, KeyError):  # an endless answer has no length
                if raw is not None:
                    raw.sock.close()
                raw = None
        if raw is not None:
            raw.sock.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    running.stop()
    seen = [each for each in running.simulator.log if each.route == "codat.upload"]
    assert {each.fault for each in seen} - {None} == kinds
    assert len(running.simulator.stored) == sum(each.fault in STORING for each in seen)
    assert len({stored.name for stored in running.simulator.stored}) == len(running.simulator.stored)
    assert running.simulator.codat.limits.in_flight(COMPANY) == 0


def test_a_door_that_is_closed_again_while_it_is_closed_opens_all_the_same() -> None:
    with SimulatorThread(Simulator()) as running:
        for seconds in (0.2, 0.2, 0.05):
            running.simulator.refuse(seconds)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", running.port), timeout=1).close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the door stayed closed"
                time.sleep(0.01)  # between two knocks
            else:
                break
