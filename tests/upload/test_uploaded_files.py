"""Test files that change, vanish, are copied, archived or given up during an upload."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from docferry.model import State
from docferry.simulator import Fault
from upload.conftest import UploadEnv, names_of, once, until_queued

pytestmark = pytest.mark.anyio


async def test_a_file_that_changes_while_it_goes_out_is_not_stored_torn(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    old, new = b"old" * 1_000_000, b"new" * 1_000_000
    env.write_documents(folder, "a.pdf", content=lambda _: old)
    env.inject(Fault("slow_read", "codat.upload", first=1, params={"rate": 2_000_000}))
    async with env.app() as app:
        await env.run_until(app, lambda: env.requests("codat.upload") == 1)
        (folder / "a.pdf").write_bytes(new)
        await env.run_uploads(app, lambda _: bool(env.simulator.stored))
    assert [s.content == new for s in env.simulator.stored] == [True]


@pytest.mark.parametrize("to", ["codat", "wootiv"])
async def test_a_file_that_goes_away_before_it_is_sent_is_gone(env: UploadEnv, to: str) -> None:
    folder = env.app_env.upload("bank", to)
    env.write_documents(folder, "a.pdf", "b.pdf")
    async with env.app() as app:
        await until_queued(env, app, 2)
        (folder / "a.pdf").unlink()
        counts = await env.run_uploads(app)
        assert [row.state for row in await app.reports.by_path("bank", b"a.pdf")] == ["gone"]
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 1}


async def test_what_fails_for_too_long_is_given_up_and_can_be_retried(env: UploadEnv) -> None:
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.inject(Fault("reset_before", "codat.upload"))
    async with env.app() as app:
        app.gate_manager.retry = replace(app.gate_manager.retry, give_up_after=2.0)
        counts = await env.run_uploads(app)
        assert counts["held"] == 1
        (row,) = await app.reports.by_path("bank", b"a.pdf")
        assert (row.reason, row.attempts > 1) == ("gave_up", True)
        assert row.detail is not None
        assert row.detail.endswith("docferry retry`")
        env.inject()
        app.gate_manager.retry = replace(app.gate_manager.retry, give_up_after=60.0)
        assert await app.transfers.retry(ids=[row.id]) == 1
        await app.gates.open_all()
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 1}
    assert env.at_codat() == once("a.pdf")


async def test_after_the_upload_a_file_is_archived_or_deleted(env: UploadEnv) -> None:
    archive = env.app_env.root / "archive"
    kept = env.app_env.upload("kept", after_upload='"archive"', archive_folder=f'"{archive}"')
    dropped = env.app_env.upload("dropped", "wootiv", after_upload='"delete"')
    env.write_documents(kept, "x/a.pdf")
    env.write_documents(dropped, "b.pdf")
    await env.run_daemon(lambda _: not (kept / "x/a.pdf").exists() and not (dropped / "b.pdf").exists())
    assert (archive / "x/a.pdf").read_bytes() == b"x/a.pdf"
    assert len(env.simulator.stored) == 2
    await env.run_daemon()
    assert len(env.simulator.stored) == 2


async def test_copies_go_once_and_namesakes_as_the_mapping_says(env: UploadEnv) -> None:
    by_content = env.app_env.upload("by-content")
    env.write_documents(by_content, "a.pdf", "x/copy.pdf", "y/copy.pdf", content=lambda _: b"the same")
    by_name = env.app_env.upload("by-name", "wootiv", dedupe='"name"', object_name='"{name}"')
    env.write_documents(by_name, "a.pdf", content=lambda _: b"one")
    await env.run_daemon()
    env.write_documents(by_name, "x/a.pdf", content=lambda _: b"two")
    env.write_documents(by_name, "b.pdf", content=lambda _: b"one")
    await env.run_daemon()
    assert sum(env.at_codat().values()) == 1
    assert Counter(key for _, key in env.simulator.objects) == Counter(["a.pdf", "b.pdf"])


async def test_a_renamed_mapping_takes_its_documents_along(env: UploadEnv) -> None:
    folder = env.app_env.upload("old-name")
    env.write_documents(folder, *names_of(3))
    env.inject(Fault("status", "codat.upload", params={"status": 503}))
    await env.run_daemon(lambda counts: counts["doubtful"] + counts["waiting"] > 0 and env.requests("codat.upload") > 0)
    env.inject()
    env.app_env.sections = [section.replace('"old-name"', '"new-name"') for section in env.app_env.sections]
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 3}
    assert env.at_codat() == once(*names_of(3))
