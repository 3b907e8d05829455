"""Test races with a scan: a file that was planned after its folder was listed is not gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import anyio
import pytest

from docferry.app.application import Application
from docferry.detect.planner import plan, validate
from docferry.files import scan
from docferry.files.hashing import hash_file
from docferry.files.safe_open import OpenRoot, Root
from docferry.model import State, Target
from docferry.store.database import READERS
from upload.conftest import UploadEnv

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def walked(app: Application) -> AsyncIterator[None]:
    """Run a scan that has walked every folder; it compares when the context ends."""
    go_on = Event()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            try:
                for _ in range(READERS):
                    group.start_soon(app.database.read, lambda _connection: go_on.wait(20))
                group.start_soon(app.scan_scheduler.round)
                while not app.database._readers.statistics().tasks_waiting:  # noqa: ASYNC110 - nothing outside shows it
                    await anyio.sleep(0.01)
                yield
            finally:
                go_on.set()


async def planned(app: Application, folder: Path, path: bytes) -> None:
    """Plan a file as a hint does, without the database reads that would wait for the scan."""
    upload = app.uploads["bank"]
    read = hash_file(Root(folder), path)
    with OpenRoot(Root(folder)) as opened:
        seen = scan.stat_file(opened, path)
    assert seen is not None
    assert read.digests is not None
    target = validate(upload, seen, {"codat": app.remotes["codat"].rules})
    assert isinstance(target, Target)
    await app.documents.apply("bank", [plan(upload, seen, target, read.digests, 0.0)])


@pytest.mark.parametrize("late", ["old/b.pdf", "new/b.pdf", "new/deeper/b.pdf"])
async def test_a_file_that_came_behind_the_scan_stays(env: UploadEnv, late: str) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "old/a.pdf")
    async with env.app() as app:
        async with walked(app):
            env.write_documents(folder, late)
            await planned(app, folder, late.encode())
        assert (await env.states(app))[State.WAITING] == 2


@pytest.mark.parametrize("gone", ["old/b.pdf", "new/b.pdf"])
async def test_what_a_scan_misses_and_is_not_there_is_gone(env: UploadEnv, gone: str) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "old/a.pdf", gone)
    async with env.app() as app:
        assert (await env.states(app))[State.WAITING] == 2
        (folder / gone).unlink()
        if not gone.startswith("old"):
            (folder / gone).parent.rmdir()
        await app.scan_scheduler.round()
        assert (await env.states(app))[State.WAITING] == 1


async def test_a_file_that_was_filled_after_the_scan_is_not_held_as_empty(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    async with env.app() as app:
        (folder / "a.pdf").touch()
        with OpenRoot(Root(folder)) as opened:
            seen = scan.stat_file(opened, b"a.pdf")
        assert seen is not None
        env.write_documents(folder, "a.pdf")
        assert await app.reconciler.planner.enqueue(app.uploads["bank"], [seen]) == [seen]
        (folder / "a.pdf").unlink()
        assert await app.reconciler.planner.enqueue(app.uploads["bank"], [seen]) == []
        assert not await env.states(app)
