"""Test S3's signatures and policies with botocore."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import botocore.config
import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.clock import SystemClock, TurnableClock
from docferry.simulator import Credentials, S3Object, Simulator, SimulatorOptions, SimulatorThread
from docferry.simulator.sigv4 import S3Error, Signable, presign, verify
from simulator.conftest import Start
from simulator.rawclient import BOUNDARY, Raw, Reply, ask, form

BUCKET = "wootiv-documents"


def signer(running: SimulatorThread) -> Any:
    """Sign with another implementation of S3."""
    known = running.simulator.credentials
    return botocore.session.Session().create_client(
        "s3",
        region_name=known.region,
        endpoint_url=f"{running.url}/s3",
        aws_access_key_id=known.access_key,
        aws_secret_access_key=known.secret_key,
        config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def signed(running: SimulatorThread, verb: str, key: str = "a b/ü~(1).pdf", lifetime: int = 60, **more: str) -> str:
    url = signer(running).generate_presigned_url(
        verb, Params={"Bucket": BUCKET, "Key": key, **more}, ExpiresIn=lifetime
    )
    return str(url).removeprefix(running.url)


def code(reply: Reply) -> str:
    return reply.body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


def ahead() -> TurnableClock:
    """Provide a clock at the machine's time, which botocore uses to sign."""
    return TurnableClock(wall=SystemClock().now())


def test_a_put_signed_by_botocore_is_stored_under_its_key(start: Start) -> None:
    running = start()
    reply = ask(running.url, "PUT", signed(running, "put_object"), {"Content-Type": "application/pdf"}, b"bytes")
    assert reply.status == 200
    assert reply.headers["etag"] == f'"{hashlib.md5(b"bytes", usedforsecurity=False).hexdigest()}"'
    stands = running.simulator.objects[BUCKET, "a b/ü~(1).pdf"]
    assert (stands.content, stands.size) == (b"bytes", 5)
    assert [(stored.remote, stored.name) for stored in running.simulator.stored] == [("wootiv", "a b/ü~(1).pdf")]


def test_two_puts_leave_one_object(start: Start) -> None:
    running = start()
    for body in (b"one", b"two"):
        assert ask(running.url, "PUT", signed(running, "put_object", "k"), {}, body).status == 200
    assert [each.content for each in running.simulator.objects.values()] == [b"two"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda target: target.replace("~(1)", "~(2)").replace("%281%29", "%282%29"),
        lambda target: target.replace("X-Amz-Expires=60", "X-Amz-Expires=61"),
        lambda target: target[:-1] + ("0" if target[-1] != "0" else "1"),
        lambda target: target + "&versionId=7",
    ],
)
def test_a_tampered_url_is_refused(start: Start, tamper: Any) -> None:
    running = start()
    reply = ask(running.url, "PUT", tamper(signed(running, "put_object")), {}, b"bytes")
    assert (reply.status, code(reply)) == (403, "SignatureDoesNotMatch")
    assert running.simulator.objects == {}


def test_another_method_or_host_is_refused(start: Start) -> None:
    running = start()
    target = signed(running, "put_object")
    assert code(ask(running.url, "GET", target)) == "SignatureDoesNotMatch"
    with Raw(running.url) as raw:
        raw.host = "elsewhere:80"
        assert code(raw.ask("PUT", target, {}, b"bytes")) == "SignatureDoesNotMatch"
    assert running.simulator.objects == {}


def test_an_unsigned_or_foreign_request_is_refused(start: Start) -> None:
    running = start()
    target = signed(running, "put_object")
    stranger = target.replace(running.simulator.credentials.access_key, "AKIASTRANGER")
    abroad = target.replace("us-east-1", "eu-west-1")
    for wrong, status, expected in (
        (target.partition("?")[0], 403, "AccessDenied"),
        (stranger, 403, "InvalidAccessKeyId"),
        (abroad, 400, "AuthorizationQueryParametersError"),
        (target.replace("X-Amz-Date", "X-Amz-Day"), 400, "AuthorizationQueryParametersError"),
        (target.replace("X-Amz-Expires=60", "X-Amz-Expires=700000"), 400, "AuthorizationQueryParametersError"),
        (target.replace("X-Amz-Expires=60", "X-Amz-Expires=x"), 400, "AuthorizationQueryParametersError"),
        (target.replace("SHA256", "SHA1"), 400, "AuthorizationQueryParametersError"),
        (target.replace("SignedHeaders=host", "SignedHeaders=date"), 400, "AuthorizationQueryParametersError"),
    ):
        reply = ask(running.url, "PUT", wrong, {}, b"bytes")
        assert (reply.status, code(reply)) == (status, expected), wrong
    assert running.simulator.objects == {}


def test_a_url_expires(start: Start) -> None:
    clock = ahead()
    running = start(clock=clock)
    target = signed(running, "put_object", lifetime=60)
    clock.turn(58.0)
    assert ask(running.url, "PUT", target, {}, b"bytes").status == 200
    clock.turn(5.0)
    reply = ask(running.url, "PUT", target, {}, b"bytes")
    assert (reply.status, code(reply)) == (403, "AccessDenied")
    assert b"<Message>Request has expired</Message>" in reply.body


def test_a_server_whose_clock_runs_ahead_or_behind_refuses(start: Start) -> None:
    running = start(SimulatorOptions(date_skew=3600.0))
    reply = ask(running.url, "PUT", signed(running, "put_object"), {}, b"bytes")
    assert b"Request has expired" in reply.body
    running.simulator.options.date_skew = -3600.0
    reply = ask(running.url, "PUT", signed(running, "put_object"), {}, b"bytes")
    assert b"Request is not yet valid" in reply.body


def test_an_amz_header_that_was_not_signed_is_refused(start: Start) -> None:
    running = start()
    reply = ask(running.url, "PUT", signed(running, "put_object"), {"x-amz-acl": "public-read"}, b"bytes")
    assert (reply.status, code(reply)) == (403, "AccessDenied")
    assert b"x-amz-acl" in reply.body
    target = signed(running, "put_object", ACL="public-read")
    assert ask(running.url, "PUT", target, {"x-amz-acl": "public-read"}, b"bytes").status == 200


def test_a_signed_content_type_must_be_sent_as_it_is(start: Start) -> None:
    running = start()
    target = signed(running, "put_object", ContentType="application/pdf")
    for wrong in ({"Content-Type": "text/plain"}, {}):
        assert code(ask(running.url, "PUT", target, wrong, b"bytes")) == "SignatureDoesNotMatch"
    assert ask(running.url, "PUT", target, {"Content-Type": "application/pdf"}, b"bytes").status == 200


def test_a_put_must_say_its_length(start: Start) -> None:
    running = start()
    with Raw(running.url) as raw:
        raw.sock.sendall(raw.head("PUT", signed(running, "put_object"), {"Transfer-Encoding": "chunked"}, None))
        raw.sock.sendall(b"5\r\nbytes\r\n0\r\n\r\n")
        reply = raw.reply()
    assert (reply.status, code(reply)) == (501, "NotImplemented")
    reply = ask(running.url, "PUT", signed(running, "put_object"))
    assert (reply.status, code(reply)) == (411, "MissingContentLength")
    assert ask(running.url, "PUT", signed(running, "put_object"), {}, b"").status == 200


def test_a_content_md5_must_be_right(start: Start) -> None:
    running = start()
    right = base64.b64encode(hashlib.md5(b"bytes", usedforsecurity=False).digest()).decode()
    for value, expected in (("bm9uZQ==", "InvalidDigest"), ("?", "InvalidDigest"), (right, "BadDigest")):
        reply = ask(running.url, "PUT", signed(running, "put_object"), {"Content-MD5": value}, b"other")
        assert (reply.status, code(reply)) == (400, expected)
    assert running.simulator.objects == {}
    assert ask(running.url, "PUT", signed(running, "put_object"), {"Content-MD5": right}, b"bytes").status == 200


# GET


def standing(start: Start) -> tuple[SimulatorThread, S3Object]:
    running = start()
    return running, running.simulator.put_object("k.bin", b"0123456789")


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({}, 200, b"0123456789"),
        ({"Range": "bytes=2-4"}, 206, b"234"),
        ({"Range": "bytes=7-"}, 206, b"789"),
        ({"Range": "bytes=-2"}, 206, b"89"),
        ({"Range": "bytes=-99"}, 206, b"0123456789"),
        ({"Range": "bytes=8-99"}, 206, b"89"),
        ({"Range": "bytes=10-"}, 416, b""),
        ({"Range": "lines=1-2"}, 200, b"0123456789"),
        ({"Range": "bytes=7-", "If-Range": "ETAG"}, 206, b"789"),
        ({"Range": "bytes=7-", "If-Range": '"older"'}, 200, b"0123456789"),
        ({"If-None-Match": "ETAG"}, 304, b""),
        ({"If-None-Match": '"older"'}, 200, b"0123456789"),
        ({"If-Match": '"older", ETAG'}, 200, b"0123456789"),
        ({"If-Match": '"older"'}, 412, b""),
    ],
)
def test_whole_partial_and_conditional_gets(start: Start, headers: dict[str, str], status: int, body: bytes) -> None:
    running, stands = standing(start)
    sent = {name: value.replace("ETAG", stands.etag) for name, value in headers.items()}
    reply = ask(running.url, "GET", signed(running, "get_object", "k.bin"), sent)
    assert (reply.status, reply.body) == (status, body)
    assert reply.headers["etag"] == stands.etag
    if status == 206:
        assert reply.headers["content-range"].endswith("/10")


def test_head_and_what_is_missing(start: Start) -> None:
    running, stands = standing(start)
    reply = ask(running.url, "HEAD", signed(running, "head_object", "k.bin"))
    assert (reply.status, reply.headers["content-length"], reply.headers["etag"]) == (200, "10", stands.etag)
    assert code(ask(running.url, "GET", signed(running, "get_object", "other"))) == "NoSuchKey"
    assert code(ask(running.url, "DELETE", signed(running, "delete_object", "k.bin"))) == "MethodNotAllowed"


def test_bytes_that_were_not_kept_cannot_be_got(start: Start) -> None:
    running = start(content="digest")
    running.simulator.put_object("k.bin", b"0123456789")
    assert ask(running.url, "GET", signed(running, "get_object", "k.bin")).status == 500
    assert ask(running.url, "HEAD", signed(running, "head_object", "k.bin")).status == 200


def test_without_digests_the_etag_proves_nothing(start: Start) -> None:
    running = start(content="count")
    reply = ask(running.url, "PUT", signed(running, "put_object", "k"), {}, b"bytes")
    assert reply.headers["etag"].endswith('-1"')


# POST


def posted(
    running: SimulatorThread,
    change: Mapping[str, str] = MappingProxyType({}),
    *,
    key: str = "in/${filename}",
    lifetime: int = 60,
) -> Reply:
    """Sign a form by botocore, with a length range and a field with a required prefix; then change and send it."""
    made = signer(running).generate_presigned_post(
        BUCKET,
        key,
        Fields={"x-amz-meta-origin": "test", "success_action_status": "201"},
        Conditions=[
            {"x-amz-meta-origin": "test"},
            {"success_action_status": "201"},
            ["content-length-range", 2, 9],
            ["starts-with", "$x-amz-meta-note", "no"],
        ],
        ExpiresIn=lifetime,
    )
    fields = {**made["fields"], "x-amz-meta-note": "note", **change}
    content = fields.pop("content", "bytes").encode()
    body = form(("a.pdf", content), fields={name: value for name, value in fields.items() if value})
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return ask(running.url, "POST", urlsplit(made["url"]).path, headers, body)


def test_a_form_signed_by_botocore_is_stored(start: Start) -> None:
    running = start()
    reply = posted(running)
    assert reply.status == 201
    assert b"<Key>in/a.pdf</Key>" in reply.body
    assert running.simulator.objects[BUCKET, "in/a.pdf"].content == b"bytes"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"key": "elsewhere/${filename}"}, 403, "Policy Condition failed"),
        ({"x-amz-meta-origin": ""}, 403, "Policy Condition failed"),
        ({"x-amz-meta-note": "yes"}, 403, "Policy Condition failed"),
        ({"x-amz-meta-more": "1"}, 403, "Extra input fields: x-amz-meta-more"),
        ({"content": "1"}, 400, "EntityTooSmall"),
        ({"content": "0123456789"}, 400, "EntityTooLarge"),
        ({"policy": ""}, 403, "Access Denied"),
        ({"policy": "eyJhIjoxfQ=="}, 403, "SignatureDoesNotMatch"),
        ({"x-amz-signature": "0" * 64}, 403, "SignatureDoesNotMatch"),
        ({"x-amz-credential": "AKIASTRANGER/x"}, 403, "InvalidAccessKeyId"),
        ({"bucket": "other"}, 403, "Invalid according to Policy"),
    ],
)
def test_a_form_against_its_policy_is_refused(start: Start, change: dict[str, str], status: int, said: str) -> None:
    running = start()
    key = change.pop("key", None)
    reply = posted(running, change) if key is None else posted_elsewhere(running, key)
    assert reply.status == status
    assert said in reply.body.decode()
    assert running.simulator.objects == {}


def posted_elsewhere(running: SimulatorThread, key: str) -> Reply:
    made = signer(running).generate_presigned_post(BUCKET, "in/a.pdf", ExpiresIn=60)
    body = form(("a.pdf", b"bytes"), fields={**made["fields"], "key": key})
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return ask(running.url, "POST", urlsplit(made["url"]).path, headers, body)


def test_fields_that_are_to_be_ignored_need_no_condition(start: Start) -> None:
    assert posted(start(), {"x-ignore-me": "1"}).status == 201


def test_a_form_expires(start: Start) -> None:
    clock = ahead()
    running = start(clock=clock)
    clock.turn(65.0)
    reply = posted(running, lifetime=3)
    assert reply.status == 403
    assert b"Policy expired" in reply.body
    assert running.simulator.objects == {}


@pytest.mark.parametrize(
    "document",
    [b"{}", b"[]", b"no JSON", b'{"conditions": []}', b'{"expiration": 1, "conditions": []}'],
)
def test_a_policy_that_is_none_is_refused(start: Start, document: bytes) -> None:
    running = start()
    known, policy = running.simulator.credentials, base64.b64encode(document).decode()
    fields = {
        "key": "k",
        "Policy": policy,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{known.access_key}/{known.scope('20260101')}",
        "X-Amz-Date": "20260101T000000Z",
        "X-Amz-Signature": known.sign("20260101", policy),
    }
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    reply = ask(running.url, "POST", f"/s3/{BUCKET}", headers, form(("a.pdf", b"bytes"), fields=fields))
    assert (reply.status, code(reply)) == (400, "InvalidPolicyDocument")


def test_a_form_without_a_file_or_that_is_none_is_refused(start: Start) -> None:
    running = start()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert ask(running.url, "POST", f"/s3/{BUCKET}", headers, form(fields={"key": "k"})).status == 400
    assert ask(running.url, "POST", f"/s3/{BUCKET}", {}, b"bytes").status == 400


# signing


@settings(max_examples=150, deadline=None)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    name=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    value=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_botocore_and_the_simulator_sign_every_key_alike(key: str, name: str, value: str) -> None:
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Known

    known = Credentials()
    wanted = Simulator().s3.sign("PUT", "http://h:1", BUCKET, key)
    path = urlsplit(wanted).path
    request = AWSRequest("PUT", f"http://h:1{path}", params={f"x-{name}": value})
    S3SigV4QueryAuth(Known(known.access_key, known.secret_key), "s3", "us-east-1", 60).add_auth(request)
    target = str(request.url).removeprefix("http://h:1")
    verify(known, _signable("PUT", target), SystemClock().now())
    with pytest.raises(S3Error, match="does not match"):
        verify(known, _signable("PUT", target + "&more=1"), SystemClock().now())


def _signable(method: str, target: str) -> Signable:
    from urllib.parse import unquote

    path, _, query = target.partition("?")
    pairs = [(unquote(name), unquote(value)) for name, _, value in (each.partition("=") for each in query.split("&"))]
    return Signable(method, path, pairs, {"host": "h:1"})


def test_what_the_simulator_signs_it_believes() -> None:
    known = Credentials()
    query = presign(known, "PUT", "/s3/b/k", {"host": "h:1"}, now=1_700_000_000.0, lifetime=60)
    verify(known, _signable("PUT", f"/s3/b/k?{query}"), 1_700_000_060.0)
    with pytest.raises(S3Error, match="expired"):
        verify(known, _signable("PUT", f"/s3/b/k?{query}"), 1_700_000_061.0)
