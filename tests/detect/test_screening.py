"""Test documents that are held before they are sent: incomplete, mislabelled, or waiting for approval."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from app_env import AppEnv, digest, until
from docferry.clock import SystemClock
from docferry.store.receipts import unix_user
from upload.conftest import UploadEnv

pytestmark = pytest.mark.anyio

CUT = b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n"
WHOLE = CUT + b"startxref\n9\n%%EOF\n"


@pytest.fixture
def env(app_env: AppEnv) -> UploadEnv:
    app_env.settings |= {"settle": '"10ms"', "log_level": '"info"'}
    app_env.codat |= {"list_lag": '"150ms"'}
    return UploadEnv(app_env)


def names(env: UploadEnv) -> list[str]:
    return sorted(each.name for each in env.simulator.stored)


def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of documents be an hour ahead: the ctime of a file cannot be set back."""
    now = SystemClock.now
    monkeypatch.setattr(SystemClock, "now", lambda self: now(self) + 3601)


def held(env: UploadEnv) -> list[tuple[str, str]]:
    return sorted((Path(row["path"]).name, row["reason"]) for row in env.app_env.rows("--state", "held"))


# -- cut short ---------------------------------------------------------------------------------------------------------


def test_a_cut_file_waits_and_goes_once_it_is_whole(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    env.write_documents(folder, "b.pdf", content=lambda _: WHOLE + b"b")
    with env.app_env.daemon():
        until(lambda: names(env) == ["b.pdf"], what="b.pdf being sent")
        (folder / "a.pdf").write_bytes(WHOLE)
        until(lambda: names(env) == ["a.pdf", "b.pdf"], what="a.pdf being sent")
    assert env.app_env.stored()["a.pdf", digest(WHOLE)] == 1


async def test_a_cut_file_is_read_once_while_it_waits(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    async with env.app() as app:
        reads = []
        monkeypatch.setattr("docferry.detect.planner.hash_files", lambda *_, **__: reads.append(1))
        for _ in range(3):
            await app.scan_scheduler.round()
        assert not reads


async def test_a_cut_file_is_held_after_an_hour_over_restarts(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    async with env.app() as app:
        assert await env.states(app) == {}
    an_hour_later(monkeypatch)
    async with env.app() as app:
        assert (await env.states(app))["held"] == 1
    assert held(env) == [("a.pdf", "incomplete")]
    (row,) = env.app_env.rows("--reason", "incomplete")
    assert row["sha256"] == digest(CUT)
    assert "%%EOF" in row["detail"]
    assert "docferry retry" in row["detail"]


@pytest.mark.parametrize("how", [["ID"], ["--all"], ["--reason", "incomplete"]])
async def test_a_person_sends_a_cut_file_as_it_is(
    env: UploadEnv, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    an_hour_later(monkeypatch)
    async with env.app() as app:
        await env.run_uploads(app)
    (row,) = env.app_env.rows("--state", "held")
    done = env.app_env.run("retry", *[str(row["id"]) if word == "ID" else word for word in how])
    assert done.returncode == 0, done.stderr
    async with env.app() as app:
        await env.run_uploads(app)
    assert names(env) == ["a.pdf"]


async def test_a_held_file_that_is_written_again_goes(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    with monkeypatch.context() as later:
        an_hour_later(later)
        async with env.app() as app:
            assert (await env.states(app))["held"] == 1
    env.write_documents(folder, "a.pdf", content=lambda _: WHOLE)
    assert (await env.run_daemon())["sent"] == 1
    assert {row["state"] for row in env.app_env.rows()} == {"gone", "sent"}


async def test_a_large_cut_file_is_noticed(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and last bytes are in different blocks of the one read."""
    folder = env.app_env.upload("bank")
    blocks = bytes(range(256)) * 8000
    env.write_documents(folder, "cut.pdf", content=lambda _: CUT + blocks)
    env.write_documents(folder, "whole.pdf", content=lambda _: CUT + blocks + b"%%EOF" + b"\n" * 200)
    an_hour_later(monkeypatch)
    await env.run_daemon()
    assert names(env) == ["whole.pdf"]
    assert held(env) == [("cut.pdf", "incomplete")]


async def test_sync_counts_a_cut_file_as_due(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(CUT)
    os.utime(folder / "a.pdf", (1_700_000_000, 1_700_000_000))
    report = app_env.sync(code=75)
    assert (report["uploaded"], report["held"], report["due"]) == (0, 0, 1)
    done = app_env.run("sync", "--dry-run", "--json")
    assert [json.loads(line)["would"] for line in done.stdout.splitlines()] == ["still being written"]


async def test_off_sends_everything(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", check_content='"off"')
    env.write_documents(folder, "a.pdf", content=lambda _: CUT)
    assert (await env.run_daemon())["sent"] == 1


# -- mislabelled -------------------------------------------------------------------------------------------------------


async def test_what_is_not_what_its_extension_says_is_held(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", check_content='"type"')
    env.write_documents(folder, "a.csv", content=lambda _: b"a,b\n1,2\n")
    env.write_documents(folder, "b.xls", content=lambda _: b"<html><body>please log in</body></html>")
    assert await env.run_daemon() == {"sent": 1, "held": 1}
    assert held(env) == [("b.xls", "content")]


async def test_the_same_bytes_under_a_fitting_name_are_sent_under_it(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", check_content='"type"')
    env.write_documents(folder, "a.csv", content=lambda _: WHOLE)
    await env.run_daemon()
    assert held(env) == [("a.csv", "content")]
    env.write_documents(folder, "a.pdf", content=lambda _: WHOLE)
    await env.run_daemon()
    assert names(env) == ["a.pdf"]


# -- approval ----------------------------------------------------------------------------------------------------------


def released(env: UploadEnv) -> list[tuple[str, str]]:
    done = env.app_env.run("receipts", "export", "-o", str(env.app_env.root / "x.zip"))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(env.app_env.root / "x.zip") as archive:
        (lines,) = [archive.read(name) for name in archive.namelist() if name.endswith("receipts.jsonl")]
    found = [json.loads(line) for line in lines.splitlines()]
    return [(each["path"], each["actor"]) for each in found if each["kind"] == "released"]


async def test_nothing_goes_before_it_is_approved(env: UploadEnv) -> None:
    folder = env.app_env.upload("payroll", hold_for_approval="true")
    env.write_documents(folder, "a.pdf", "b.pdf", "c.pdf")
    assert await env.run_daemon() == {"held": 3}
    assert held(env) == [("a.pdf", "approval"), ("b.pdf", "approval"), ("c.pdf", "approval")]
    for words in (["--all"], ["--mapping", "payroll"]):
        done = env.app_env.run("retry", *words)
        assert done.returncode == 0, done.stderr
        assert "3 documents still held for approval" in done.stdout
    assert await env.run_daemon() == {"held": 3}
    ids = {Path(row["path"]).name: row["id"] for row in env.app_env.rows()}
    env.app_env.run("retry", str(ids["b.pdf"]))
    assert await env.run_daemon() == {"held": 2, "sent": 1}
    assert names(env) == ["b.pdf"]
    assert released(env) == [("b.pdf", unix_user())]
    env.app_env.run("retry", "--reason", "approval")
    assert await env.run_daemon() == {"sent": 3}
    assert sorted(released(env)) == [(name, unix_user()) for name in ("a.pdf", "b.pdf", "c.pdf")]


async def test_a_changed_file_needs_another_approval(env: UploadEnv) -> None:
    folder = env.app_env.upload("payroll", hold_for_approval="true")
    env.write_documents(folder, "a.pdf")
    await env.run_daemon()
    (row,) = env.app_env.rows()
    env.app_env.run("retry", str(row["id"]))
    env.write_documents(folder, "a.pdf", content=lambda _: b"another salary")
    assert (await env.run_daemon())["held"] == 1
    assert names(env) == []
    again = {row["state"]: row for row in env.app_env.rows()}
    assert again["held"]["sha256"] == digest(b"another salary")
    env.app_env.run("retry", str(row["id"]))  # the version that was looked at is gone
    await env.run_daemon()
    assert names(env) == []


async def test_what_was_queued_before_needs_an_approval_too(env: UploadEnv) -> None:
    folder = env.app_env.upload("payroll")
    env.write_documents(folder, "a.pdf")
    async with env.app() as app:
        assert await env.states(app) == {"waiting": 1}
    env.app_env.sections = [section + "\nhold_for_approval = true" for section in env.app_env.sections]
    assert await env.run_daemon() == {"held": 1}
    assert held(env) == [("a.pdf", "approval")]
    env.app_env.run("retry", "--reason", "approval")
    assert await env.run_daemon() == {"sent": 1}


async def test_another_mapping_may_send_the_same_bytes(env: UploadEnv) -> None:
    payroll = env.app_env.upload("payroll", hold_for_approval="true")
    env.write_documents(payroll, "a.pdf")
    assert await env.run_daemon() == {"held": 1}
    bank = env.app_env.upload("bank")
    env.write_documents(bank, "b.pdf", content=lambda _: b"a.pdf")
    assert await env.run_daemon() == {"sent": 2}
    assert names(env) == ["b.pdf"]


async def test_an_object_gets_its_new_version_only_once_it_is_approved(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", to="wootiv", hold_for_approval="true")
    contents = [b"first", b"second", b"first"]
    stored = []
    for content in contents:
        env.write_documents(folder, "a.pdf", content=lambda _, content=content: content)  # type: ignore[misc]
        assert (await env.run_daemon())["held"] == 1
        stored.append(sorted(env.app_env.stored()))
        env.app_env.run("retry", "--reason", "approval")
        await env.run_daemon()
        assert sorted(env.app_env.stored()) == [("a.pdf", digest(content))]
    assert stored == [[], [("a.pdf", digest(b"first"))], [("a.pdf", digest(b"second"))]]


async def test_after_a_lost_database_nothing_approved_goes_twice(env: UploadEnv) -> None:
    folder = env.app_env.upload("payroll", hold_for_approval="true")
    env.write_documents(folder, "a.pdf", "b.pdf")
    await env.run_daemon()
    ids = {Path(row["path"]).name: row["id"] for row in env.app_env.rows()}
    env.app_env.run("retry", str(ids["a.pdf"]))
    await env.run_daemon()
    for name in ("docferry.db", "docferry.db-wal", "docferry.db-shm"):
        (env.app_env.state / name).unlink(missing_ok=True)
    async with env.app(adopt=True) as app:
        counts = await env.run_uploads(app)
    assert (counts["sent"], counts["held"]) == (1, 1)
    env.app_env.run("retry", "--reason", "approval")
    await env.run_daemon()
    assert names(env) == ["a.pdf", "b.pdf"]
