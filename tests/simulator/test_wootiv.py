"""Test Wootiv's own paths, and the URLs and forms that it signs."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from docferry.clock import TurnableClock
from docferry.simulator import Fault, SimulatorOptions, SimulatorThread
from simulator.conftest import Start
from simulator.rawclient import BOUNDARY, WOOTIV, Raw, Reply, ask, form

FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def sign(running: SimulatorThread, name: str = "in/a b.pdf") -> Any:
    reply = ask(running.url, "POST", "/aws/get-signed-put-url", WOOTIV, json.dumps({"filename": name}).encode())
    assert reply.status == 200
    return reply.json


def send(running: SimulatorThread, url: str, body: bytes = b"bytes", headers: dict[str, str] | None = None) -> Reply:
    return ask(running.url, "PUT", url.removeprefix(running.url), headers or {}, body)


def test_a_signed_put(start: Start) -> None:
    running = start()
    made = sign(running)
    assert "X-Amz-Signature=" in made["url"]
    assert made["fields"]["Policy"] == ""
    assert send(running, made["url"]).status == 200
    assert [each.key for each in running.simulator.objects.values()] == ["in/a b.pdf"]


def test_a_signed_post_whose_fields_must_all_be_passed_on(start: Start) -> None:
    running = start(SimulatorOptions(signed="post", sign_content_type=True))
    made = sign(running)
    assert "?" not in made["url"]
    target = urlsplit(made["url"]).path
    lacking = {name: value for name, value in made["fields"].items() if name != "x-amz-meta-origin"}
    assert ask(running.url, "POST", target, FORM, form(("x.pdf", b"bytes"), fields=lacking)).status == 403
    assert ask(running.url, "POST", target, FORM, form(("x.pdf", b"bytes"), fields=made["fields"])).status == 204
    assert [each.key for each in running.simulator.objects.values()] == ["in/a b.pdf"]


def test_a_content_type_may_be_signed(start: Start) -> None:
    running = start(SimulatorOptions(sign_content_type=True))
    made = sign(running)
    assert send(running, made["url"]).status == 403
    assert send(running, made["url"], headers={"Content-Type": made["fields"]["Content-Type"]}).status == 200


def test_a_signed_url_lives_as_long_as_switched(start: Start) -> None:
    clock = TurnableClock()
    running = start(SimulatorOptions(url_lifetime=2.0), clock=clock)
    made = sign(running)
    clock.turn(3.0)
    assert b"Request has expired" in send(running, made["url"]).body
    assert running.simulator.stored == []
    assert send(running, sign(running)["url"]).status == 200


def test_without_the_key_nothing_is_told(start: Start) -> None:
    running = start()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        reply = ask(running.url, "POST", "/aws/get-signed-put-url", headers, b'{"filename": "a"}')
        assert reply.status == 401


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b"{}", b'{"filename": ""}', b'{"filename": 7}'])
def test_a_wish_that_cannot_be_read_is_unprocessable(start: Start, body: bytes) -> None:
    assert ask(start().url, "POST", "/aws/get-signed-put-url", WOOTIV, body).status == 422


def test_direct_uploads(start: Start) -> None:
    running = start()
    reply = ask(
        running.url, "POST", "/aws/buckets/upload", WOOTIV | FORM, form(("a.pdf", b"1"), fields={"path": "in/"})
    )
    made = reply.json
    assert (made["filename"], made["mime"], made["path"]) == ("a.pdf", "application/pdf", "in")
    assert made["pathWithFilename"] == "in/a.pdf"
    assert ask(running.url, "GET", made["signedUrl"].removeprefix(running.url)).body == b"1"
    body = form(("b.pdf", b"2"), ("c.pdf", b"3"), name="bulk[]")
    reply = ask(running.url, "POST", "/aws/buckets/bulk_upload", WOOTIV | FORM, body)
    assert [each["pathWithFilename"] for each in reply.json] == ["b.pdf", "c.pdf"]
    for path in ("upload", "bulk_upload"):
        refused = ask(running.url, "POST", f"/aws/buckets/{path}", WOOTIV | FORM, form(("x", b"x"), name="other"))
        assert refused.status == 422
    assert [stored.content for stored in running.simulator.stored] == [b"1", b"2", b"3"]


def test_downloads(start: Start) -> None:
    running = start()
    running.simulator.put_object("reports/latest.pdf", b"report")
    reply = ask(running.url, "GET", "/aws/buckets/reports/latest.pdf", WOOTIV)
    assert ask(running.url, "GET", reply.json["signedUrl"].removeprefix(running.url)).body == b"report"
    assert ask(running.url, "GET", "/aws/buckets/reports/older.pdf", WOOTIV).status == 404


def test_the_rest(start: Start) -> None:
    running = start()
    running.simulator.put_object("k", b"bytes")
    assert ask(running.url, "GET", "/aws/buckets/health", WOOTIV).json == {"status": "ok"}
    assert ask(running.url, "GET", "/aws/buckets", WOOTIV).json == {"buckets": ["wootiv-documents"]}
    assert ask(running.url, "GET", "/aws/objects", WOOTIV).json["objects"][0]["key"] == "k"
    assert ask(running.url, "GET", "/aws/elsewhere", WOOTIV).status == 404
    assert ask(running.url, "GET", "/nowhere", WOOTIV).status == 404


def test_faults_speak_the_language_of_each_service(start: Start) -> None:
    running = start(
        faults=[
            Fault("status", "wootiv.sign", nth=1, params={"status": 500, "headers": {"x-should-retry": "true"}}),
            Fault("status", "s3.put", first=1, params={"status": 503, "stored": True}),
            Fault("status", "s3.put", first=1, params={"status": 500, "code": "Odd"}),
        ]
    )
    with Raw(running.url) as raw:
        reply = raw.ask("POST", "/aws/get-signed-put-url", WOOTIV, b'{"filename": "a"}')
        assert (reply.status, reply.headers["x-should-retry"]) == (500, "true")
    url = sign(running)["url"]
    reply = send(running, url)
    assert (reply.status, b"<Code>SlowDown</Code>" in reply.body) == (503, True)
    assert len(running.simulator.objects) == 1
    reply = send(running, url)
    assert (reply.status, b"<Code>Odd</Code>" in reply.body) == (500, True)
    assert len(running.simulator.stored) == 1
