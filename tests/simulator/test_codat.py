"""Test the simulated Codat against its documentation."""

from __future__ import annotations

import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from docferry.clock import TurnableClock
from docferry.simulator import SimulatorOptions
from simulator.conftest import Start
from simulator.rawclient import CODAT, COMPANY, CONNECTION, LIST, UPLOAD, Raw, ask, form, form_headers, listed, upload

OTHER = "11111111-2222-3333-4444-555555555555"
ANSWERS_OF_EVERY_KIND = (
    ("GET", LIST, 200),
    ("GET", f"/companies/{COMPANY}/connections/{CONNECTION}", 200),
    ("GET", "/companies", 404),
    ("GET", f"/companies/{COMPANY}/nothing", 404),
    ("DELETE", LIST, 405),
    ("GET", "/companies/no-uuid/files", 404),
)


def test_an_upload_is_stored_with_its_bytes_and_listed(start: Start) -> None:
    running = start()
    reply = upload(running.url, ('Q1 "final".pdf', b"%PDF-1.4 \x00\xff\r\n--"), key="k1")
    assert (reply.status, reply.body) == (200, b"")
    (stored,) = running.simulator.stored
    assert stored.name == 'Q1 "final".pdf'
    assert stored.content == b"%PDF-1.4 \x00\xff\r\n--"
    assert (stored.company, stored.connection, stored.key, stored.via) == (COMPANY, CONNECTION, "k1", "api")
    (row,) = ask(running.url, "GET", LIST, CODAT).json
    assert row.keys() == {"fileName", "displayName", "sourceType", "uploaded"}
    assert row["fileName"] == stored.name


def test_bytes_are_not_kept_when_they_are_not_wanted(start: Start) -> None:
    running = start(content="digest")
    upload(running.url, ("a.pdf", b"abc"))
    (stored,) = running.simulator.stored
    assert stored.content is None
    assert (stored.size, stored.sha256[:8]) == (3, "ba7816bf")


@pytest.mark.parametrize(("method", "target", "status"), ANSWERS_OF_EVERY_KIND)
def test_every_answer_carries_the_rate_headers(start: Start, method: str, target: str, status: int) -> None:
    reply = ask(start().url, method, target, CODAT)
    assert reply.status == status
    assert {"x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-reset"} <= reply.headers.keys()


@pytest.mark.parametrize("authorization", [None, "Basic d3Jvbmc=", "Bearer codat-demo-key"])
def test_without_the_right_key_nothing_is_taken(start: Start, authorization: str | None) -> None:
    running = start()
    headers = form_headers() | {"Authorization": authorization or ""}
    reply = ask(running.url, "POST", UPLOAD, headers, form(("a.pdf", b"a")))
    assert reply.status == 401
    assert reply.json["correlationId"]
    assert running.simulator.stored == []


def test_a_key_may_be_the_finished_header_value(start: Start) -> None:
    running = start(SimulatorOptions(codat_key="Basic Y29kYXQtZGVtby1rZXk="))
    assert upload(running.url).status == 200


@pytest.mark.parametrize(
    ("files", "validator"),
    [
        ([("a.exe", b"a")], "FileExtension"),
        ([("noext", b"a")], "FileExtension"),
        ([("a.pdf", b"x" * (10 * 1024 * 1024 + 1))], "FileSize"),
        ([(f"{n}.pdf", b"a") for n in range(21)], "FileCount"),
        ([("", b"a")], "FileRequired"),
    ],
)
def test_a_file_against_the_rules_is_refused_and_none_of_its_batch_stored(
    start: Start, files: list[tuple[str, bytes]], validator: str
) -> None:
    running = start()
    reply = upload(running.url, *files)
    assert reply.status == 400
    assert reply.json["validation"]["errors"][0]["validatorName"] == validator
    assert running.simulator.stored == []


def test_the_largest_file_and_the_fullest_batch_are_taken(start: Start) -> None:
    running = start()
    assert upload(running.url, ("a.PDF", b"x" * (10 * 1024 * 1024))).status == 200
    assert upload(running.url, *((f"{n}.csv", b"%d" % n) for n in range(20))).status == 200
    assert [stored.content for stored in running.simulator.stored[1:]] == [b"%d" % n for n in range(20)]


def test_a_body_that_is_no_multipart_is_refused(start: Start) -> None:
    running = start()
    for headers, body in ((CODAT, b"bytes"), (form_headers(), form(("a.pdf", b"a"))[:-8])):
        assert ask(running.url, "POST", UPLOAD, headers, body).status == 400
    assert running.simulator.stored == []


def test_only_known_companies_and_connections(start: Start) -> None:
    running = start(SimulatorOptions(companies={COMPANY: {OTHER}}))
    assert upload(running.url).status == 404
    assert ask(running.url, "GET", f"/companies/{COMPANY}/connections/{CONNECTION}", CODAT).status == 404
    assert ask(running.url, "GET", f"/companies/{COMPANY}/connections/{OTHER}", CODAT).json["status"] == "Linked"
    assert ask(running.url, "GET", f"/companies/{OTHER}/files", CODAT).status == 404
    assert running.simulator.stored == []


def test_a_connection_that_is_not_linked_takes_nothing(start: Start) -> None:
    running = start(SimulatorOptions(connection_status={CONNECTION: "Deauthorized"}))
    assert upload(running.url).status == 400
    reply = ask(running.url, "GET", f"/companies/{COMPANY}/connections/{CONNECTION}", CODAT)
    assert (reply.json["id"], reply.json["status"]) == (CONNECTION, "Deauthorized")
    assert running.simulator.stored == []


def test_the_list_lags(start: Start) -> None:
    clock = TurnableClock()
    running = start(SimulatorOptions(list_lag=30.0), clock=clock)
    upload(running.url)
    assert len(running.simulator.stored) == 1
    clock.turn(29.9)
    assert listed(running.url) == []
    clock.turn(0.1)
    assert listed(running.url) == ["a.pdf"]


def test_a_file_may_be_stored_late_and_listed_later_still(start: Start) -> None:
    clock = TurnableClock()
    running = start(SimulatorOptions(list_lag=20.0, store_lag=45.0), clock=clock)
    assert upload(running.url).status == 200
    assert running.simulator.stored == []
    clock.turn(45.0)
    assert [stored.at for stored in running.simulator.stored] == [clock.now()]
    assert listed(running.url) == []
    clock.turn(20.0)
    assert listed(running.url) == ["a.pdf"]


def test_only_the_first_of_a_batch_is_kept_if_so_switched(start: Start) -> None:
    running = start(SimulatorOptions(keeps_only_first_of_batch=True))
    assert upload(running.url, ("a.pdf", b"a"), ("b.pdf", b"b")).status == 200
    assert [stored.name for stored in running.simulator.stored] == ["a.pdf"]


@pytest.mark.parametrize(
    ("how", "sent", "kept"),
    [
        (None, 'a"e\u0301.pdf', 'a"e\u0301.pdf'),
        ("quote", 'a"b.pdf', "a%22b.pdf"),
        ("nfc", "cafe\u0301.pdf", "caf\u00e9.pdf"),
        ("cut", "n" * 100 + ".pdf", "n" * 60 + ".pdf"),
    ],
)
def test_names_may_be_changed(start: Start, how: str | None, sent: str, kept: str) -> None:
    running = start(SimulatorOptions(rename=how))  # type: ignore[arg-type]  # the parameter list is not typed that finely
    upload(running.url, (sent, b"a"))
    assert listed(running.url) == [kept]


def test_files_may_be_swallowed(start: Start) -> None:
    running = start(SimulatorOptions(swallow=("virus*",)))
    assert upload(running.url, ("virus-1.pdf", b"v"), ("good.pdf", b"g")).status == 200
    assert [stored.name for stored in running.simulator.stored] == ["good.pdf"]


def test_the_zip_of_a_day_has_a_folder_for_each_integration(start: Start) -> None:
    running = start()
    put = running.simulator.put_company_file
    put(COMPANY, "bank.pdf", b"1", uploaded=datetime(2022, 10, 23, 23, 30, tzinfo=UTC), integration="Bank")
    put(COMPANY, "bank.pdf", b"2", uploaded="2022-10-23T01:00:00", integration="Bank")
    put(COMPANY, "late.pdf", b"3", uploaded="2022-10-23T23:30:00-05:00", integration="Books")
    upload(running.url, ("api.pdf", b"4"))

    def members(query: str) -> list[tuple[str, bytes]]:
        reply = ask(running.url, "GET", f"/companies/{COMPANY}/files/download{query}", CODAT)
        assert reply.headers["content-type"] == "application/octet-stream"
        with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
            return [(member.filename, archive.read(member)) for member in archive.infolist()]

    assert members("?date=2022-10-23") == [("Bank/bank.pdf", b"1"), ("Bank/bank.pdf", b"2")]
    assert members("?date=2022-10-24T08:00:00Z") == [("Books/late.pdf", b"3")]
    assert members("?date=2000-01-01") == []
    assert [content for _, content in members("")] == [b"1", b"2", b"3", b"4"]
    rows = ask(running.url, "GET", LIST, CODAT).json
    assert rows[2]["uploaded"] == "2022-10-23T23:30:00-05:00"
    refused = ask(running.url, "GET", f"/companies/{COMPANY}/files/download?date=someday", CODAT)
    assert refused.status == 400


def test_a_day_ends_where_its_own_zone_says(start: Start) -> None:
    running = start()
    at = datetime(2022, 10, 23, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert running.simulator.put_company_file(COMPANY, "a.pdf", b"1", uploaded=at).at == at.timestamp()
    assert ask(running.url, "GET", LIST, CODAT).json[0]["uploaded"] == "2022-10-22T23:00:00.000Z"


def test_the_daily_quota_ends_and_comes_back(start: Start) -> None:
    clock = TurnableClock()
    running = start(SimulatorOptions(daily_quota=2), clock=clock)
    assert [upload(running.url).headers["x-rate-limit-remaining"] for _ in range(2)] == ["1", "0"]
    reply = upload(running.url)
    assert reply.status == 429
    assert len(running.simulator.stored) == 2
    clock.turn(float(reply.headers["retry-after"]))
    assert upload(running.url).status == 200
    assert datetime.fromisoformat(reply.headers["x-rate-limit-reset"]).timestamp() <= clock.now()


def test_requests_a_minute_are_limited(start: Start) -> None:
    clock = TurnableClock()
    running = start(SimulatorOptions(requests_per_minute=2), clock=clock)
    assert [upload(running.url).status for _ in range(3)] == [200, 200, 429]
    clock.turn(60.0)
    assert upload(running.url).status == 200
    assert len(running.simulator.stored) == 3


def test_requests_at_once_are_limited_by_company_and_counted_until_their_answer(start: Start) -> None:
    running = start(SimulatorOptions(concurrent_per_company=2))
    body = form(("a.pdf", b"a"))
    with Raw(running.url) as one, Raw(running.url) as two:
        for raw in (one, two):  # heads only: both have begun
            raw.sock.sendall(raw.head("POST", UPLOAD, form_headers() | {"Expect": "100-continue"}, len(body)))
            assert raw.reply().status == 100
        assert upload(running.url).status == 429
        elsewhere = UPLOAD.replace(COMPANY, OTHER)
        assert ask(running.url, "POST", elsewhere, form_headers(), body).status == 200
        for raw in (one, two):
            raw.sock.sendall(body)
            assert raw.reply().status == 200
    assert upload(running.url).status == 200
    assert running.simulator.peak_concurrency[COMPANY] == 2


def test_a_company_is_left_when_its_client_goes_away(start: Start) -> None:
    running = start(SimulatorOptions(concurrent_per_company=1))
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("POST", UPLOAD, form_headers() | {"Expect": "100-continue"}, 100))
        raw.reply()
        assert upload(running.url).status == 429
    for _ in range(1000):
        if upload(running.url).status == 200:
            break
    assert len(running.simulator.stored) == 1


def test_the_same_key_gets_the_first_answer_again(start: Start) -> None:
    clock = TurnableClock()
    running = start(clock=clock)
    assert [upload(running.url, key="k").status for _ in range(2)] == [200, 200]
    assert len(running.simulator.stored) == 1
    clock.turn(90 * 60.0)
    assert upload(running.url, key="k").status == 200
    assert len(running.simulator.stored) == 2


def test_the_same_key_with_another_body_is_refused(start: Start) -> None:
    running = start()
    upload(running.url, ("a.pdf", b"a"), key="k")
    assert upload(running.url, ("a.pdf", b"b"), key="k").status == 422
    assert upload(running.url, ("b.pdf", b"a"), key="k").status == 422
    assert len(running.simulator.stored) == 1


def test_a_refusal_is_repeated_too(start: Start) -> None:
    running = start(SimulatorOptions(connection_status={CONNECTION: "PendingAuth"}))
    assert upload(running.url, key="k").status == 400
    running.simulator.options.connection_status.clear()
    assert upload(running.url, key="k").status == 400
    assert upload(running.url, key="new").status == 200


def test_the_same_key_at_the_same_time_is_a_conflict(start: Start) -> None:
    running = start()
    body = form(("a.pdf", b"a"))
    with Raw(running.url) as first:
        first.sock.sendall(first.head("POST", UPLOAD, form_headers("k") | {"Expect": "100-continue"}, len(body)))
        assert first.reply().status == 100
        assert upload(running.url, ("a.pdf", b"a"), key="k").status == 409
        first.sock.sendall(body)
        assert first.reply().status == 200
    assert upload(running.url, ("a.pdf", b"a"), key="k").status == 200
    assert len(running.simulator.stored) == 1


def test_keys_mean_nothing_when_switched_off(start: Start) -> None:
    running = start(SimulatorOptions(idempotency=False))
    assert [upload(running.url, key="k").status for _ in range(2)] == [200, 200]
    assert len(running.simulator.stored) == 2


def test_answers_take_as_long_as_the_latency_and_overlap(start: Start) -> None:
    running = start(SimulatorOptions(latency=0.2))
    begun = threading.Barrier(8)

    def one(_: int) -> int:
        begun.wait()
        return upload(running.url).status

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [200] * 8
    spans = [seen.at - seen.at_first_byte for seen in running.simulator.log]
    assert min(spans) >= 0.19
    assert running.simulator.peak_concurrency[COMPANY] >= 2


def test_the_date_header_runs_ahead_by_the_skew(start: Start) -> None:
    running = start(SimulatorOptions(date_skew=86400.0), clock=TurnableClock(wall=1_700_000_000.0))
    assert ask(running.url, "GET", LIST, CODAT).headers["date"] == "Wed, 15 Nov 2023 22:13:20 GMT"
    upload(running.url)
    assert ask(running.url, "GET", LIST, CODAT).json[0]["uploaded"].startswith("2023-11-15T22:13:20")
