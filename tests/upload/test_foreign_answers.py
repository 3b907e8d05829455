"""Test responses of proxies, web sites and storages: none of them holds a document."""

from __future__ import annotations

import time

import pytest

from app_env import COMPANY, CONNECTION
from docferry.app.application import Application
from docferry.model import Gate, State
from docferry.simulator import Fault
from upload.conftest import UploadEnv, names_of, once

pytestmark = pytest.mark.anyio

LANE = f"codat/{COMPANY}/{CONNECTION}"
#: Every status that held documents, or closed nothing, when a page or a text came with it.
STATUSES = [400, 403, 404, 405, 406, 411, 413, 414, 431, 451, 500, 501, 503, 507]


async def for_a_while(env: UploadEnv, app: Application, requests: int, route: str) -> dict[str, int]:
    """Upload until a gate is closed after `requests` requests. Return the documents by state."""
    await env.run_uploads(app, lambda _: env.requests(route) >= requests and bool(app.gate_manager.closed))
    return await env.states(app)


async def recovers(env: UploadEnv, documents: int) -> None:
    """Remove the faults; everything is sent then, and nothing twice."""
    env.inject()
    async with env.app() as app:
        counts = await env.run_uploads(app)
        assert counts == {**dict.fromkeys(counts, 0), State.SENT: documents}
        assert await app.gates.all() == {}


@pytest.mark.parametrize("content_type", ["text/html", "text/plain"])
@pytest.mark.parametrize("status", STATUSES)
async def test_a_stranger_holds_nothing_and_closes_the_remote(env: UploadEnv, status: int, content_type: str) -> None:
    env.app_env.settings["workers"] = "2"
    env.write_documents(env.app_env.upload("bank"), *names_of(12))
    env.inject(Fault("page", "codat.*", params={"status": status, "type": content_type}))
    async with env.app() as app:
        counts = await for_a_while(env, app, 5, "codat.upload")
        assert counts["held"] == 0
        gate = (await app.gates.all())["codat"]
        assert gate.reason == "stranger"
        assert f"answered with {status}" in gate.detail
        assert env.requests("codat.upload") <= 8, "what was in flight, and no more"
    await recovers(env, 12)
    assert env.at_codat() == once(*names_of(12))


#: The errors of S3 about its account, bucket, signer and quota.
STORAGE: list[tuple[int, str]] = [
    (400, "InvalidToken"),
    (400, "InvalidRequest"),
    (400, "AuthorizationQueryParametersError"),
    (400, "IllegalLocationConstraintException"),
    (400, "KMS.DisabledException"),
    (403, "QuotaExceeded"),
    (403, "AccessDenied"),
    (403, "InvalidAccessKeyId"),
    (404, "NoSuchBucket"),
    (403, "SignatureDoesNotMatch"),
]


@pytest.mark.parametrize(("status", "code"), STORAGE)
async def test_a_storage_that_refuses_everything_holds_nothing(env: UploadEnv, status: int, code: str) -> None:
    env.app_env.settings["workers"] = "2"
    env.write_documents(env.app_env.upload("scans", "wootiv"), *names_of(12))
    env.inject(Fault("status", "s3.put", params={"status": status, "code": code}))
    async with env.app() as app:
        counts = await for_a_while(env, app, 5, "s3.put")
        assert counts["held"] == 0
        gate = (await app.gates.all())["wootiv"]
        assert gate.reason == "storage"
        assert env.requests("s3.put") <= 8
    await recovers(env, 12)
    assert len(env.simulator.objects) == 12


@pytest.mark.parametrize("code", ["EntityTooLarge", "KeyTooLongError"])
async def test_what_s3_says_of_the_document_holds_that_document_alone(env: UploadEnv, code: str) -> None:
    env.write_documents(env.app_env.upload("scans", "wootiv"), *names_of(6))
    env.inject(Fault("status", "s3.put", nth=3, params={"status": 400, "code": code}))
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 5, State.HELD: 1}


@pytest.mark.parametrize("status", [503, 507, 500])
async def test_a_storage_that_fails_is_asked_less_and_less(env: UploadEnv, status: int) -> None:
    env.app_env.settings["workers"] = "2"
    env.write_documents(env.app_env.upload("scans", "wootiv"), *names_of(12))
    env.inject(Fault("status", "s3.put", params={"status": status, "code": "InternalError"}))
    async with env.app() as app:
        counts = await for_a_while(env, app, 5, "s3.put")
        assert counts["held"] == 0
        assert (await app.gates.all())["wootiv"].reason == "failing"
    await recovers(env, 12)


async def test_a_list_that_works_opens_no_gate_that_sending_closed(env: UploadEnv) -> None:
    """Uploads fail with 500 while the list works: 40 documents cost few requests."""
    env.app_env.settings["workers"] = "4"
    env.app_env.codat["list_lag"] = '"100ms"'
    env.write_documents(env.app_env.upload("bank"), *names_of(40))
    env.inject(Fault("status", "codat.upload", params={"status": 500}))
    async with env.app() as app:
        began = time.monotonic()
        await env.run_uploads(app, lambda _: time.monotonic() - began > 4)
        assert (await app.gates.all())[LANE].reason == "failing"
        assert (await env.states(app))["held"] == 0
    # At most one probe in half a second, each with a lookup, and the first requests in flight.
    assert env.requests("codat.upload") + env.requests("codat.list") < 60
    await recovers(env, 40)
    assert env.at_codat() == once(*names_of(40))


async def test_a_list_that_fails_stops_no_upload(env: UploadEnv) -> None:
    env.app_env.codat["list_lag"] = '"100ms"'
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "doubt.pdf")
    env.inject(Fault("status", "codat.list", params={"status": 500}), Fault("lost_answer", "codat.upload", first=1))
    async with env.app() as app:
        await env.run_until(app, lambda: env.requests("codat.list") >= 6)
        gates = await app.gates.all()
        assert {key: gate.reason for key, gate in gates.items()} == {f"codat/{COMPANY}": "failing"}
        env.write_documents(folder, *names_of(5))
        await app.scan_scheduler.round()
        counts = await env.run_uploads(app, lambda counts: counts.get("sent", 0) >= 5)
        assert counts["doubtful"] + counts["asking"] == 1
    await recovers(env, 6)


@pytest.mark.parametrize("reset", ["253402300799", "999999999999999", "Sat, 31 Dec 2199 23:59:59 GMT"])
async def test_a_quota_that_never_resets_is_probed_within_the_hour(env: UploadEnv, reset: str) -> None:
    """X-Rate-Limit-Reset of the year 9999, with a 200: the gate is limited to 25 hours, over restarts too."""
    env.app_env.settings["workers"] = "1"
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    headers = {"X-Rate-Limit-Limit": "1000", "X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": reset}
    env.inject(Fault("status", "codat.upload", params={"status": 200, "headers": headers, "stored": True}))
    async with env.app() as app:
        await env.run_uploads(app, lambda _: "codat" in app.gate_manager.closed and not app.scheduler.is_busy)
        gate = (await app.gates.all())["codat"]
        assert gate.until <= app.clock.now() + 25 * 3600
        assert app.gate_manager.closed["codat"].until <= app.clock.now() + 3600


@pytest.mark.parametrize("said", ["1000000000", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_no_pause_is_longer_than_a_day(env: UploadEnv, said: str) -> None:
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.inject(Fault("status", "codat.upload", params={"status": 429, "headers": {"Retry-After": said}}))
    async with env.app() as app:
        await env.run_uploads(app, lambda _: "codat" in app.gate_manager.closed)
        gate = (await app.gates.all())["codat"]
        assert gate.until <= app.clock.now() + 86_400


async def test_a_gate_of_an_older_release_is_limited_at_the_start(env: UploadEnv) -> None:
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    async with env.app() as app:
        await app.gates.close(Gate("codat", "quota", "until the year 9999", 253_402_300_799.0, 1, app.clock.now()))
    async with env.app() as app:
        assert (await app.gates.all())["codat"].until <= app.clock.now() + 25 * 3600


async def test_secrets_that_a_remote_quotes_are_kept_nowhere(env: UploadEnv) -> None:
    """The key, its base64 and the query of a signed URL reach neither the database nor an error."""
    options = env.simulator.options
    said = f"the key {options.codat_key} is wrong, see https://s3.test/x?X-Amz-Signature=abc123"
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.inject(Fault("status", "codat.upload", params={"status": 400, "code": said}))
    async with env.app() as app:
        counts = await env.run_uploads(app)
        assert counts["held"] == 1
        (row,) = await app.reports.by_path("bank", b"a.pdf")
        path = env.app_env.state / "docferry.db"
    stored = b"".join(each.read_bytes() for each in path.parent.glob("docferry.db*"))
    for secret in (options.codat_key.encode(), b"abc123"):
        assert secret not in stored
    assert row.detail is not None
    assert "[hidden]" in row.detail
