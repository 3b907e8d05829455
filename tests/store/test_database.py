"""Test the writer of a SQLite file: group commit, failing work, cancellation, locks, and a lost or damaged file."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from docferry.errors import DatabaseLost, StateError, StatementRefused
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.opening import open_database
from docferry.store.statement import Sql
from store.conftest import StoreEnv

pytestmark = [pytest.mark.anyio, pytest.mark.sqlite_only]


def noting(mark: str) -> Callable[[Transaction], str]:
    def work(transaction: Transaction) -> str:
        transaction.execute(Sql("INSERT INTO cursor VALUES (:mark, :mark, 0)"), {"mark": mark})
        return mark

    return work


async def marks(database: Database) -> set[str]:
    return {key for (key,) in await database.fetch_all(Sql("SELECT key FROM cursor"))}


async def trouble(database: Database) -> str:
    with anyio.fail_after(60):
        while database.trouble is None:  # noqa: ASYNC110 - `status` polls it too
            await anyio.sleep(0.01)
    return database.trouble


async def test_waiting_work_is_committed_together(env: StoreEnv, tmp_path: Path) -> None:
    observer = sqlite3.connect(tmp_path / "docferry.db")
    commits: set[int] = set()

    async def writes(number: int) -> None:
        assert await env.database.write(noting(f"m{number}")) == f"m{number}"
        commits.add(observer.execute("PRAGMA data_version").fetchone()[0])

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(writes, number)
    observer.close()
    assert await marks(env.database) == {f"m{number}" for number in range(200)}
    assert len(commits) <= 3


async def test_a_write_is_visible_to_others_when_it_returns(env: StoreEnv, tmp_path: Path) -> None:
    await env.database.write(noting("here"))
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        assert other.execute("SELECT value FROM cursor").fetchall() == [("here",)]
    other.close()


async def test_commits_are_synced(env: StoreEnv) -> None:
    def work(transaction: Transaction) -> list[tuple[Any]]:
        return [transaction.fetch_one(Sql(f"PRAGMA {name}")) for name in ("synchronous", "journal_mode")]

    assert await env.database.write(work) == [(2,), ("wal",)]


async def test_failing_work_does_not_affect_other_work(env: StoreEnv) -> None:
    failed: list[str] = []

    async def writes(mark: str) -> None:
        try:
            await env.database.write(noting(mark))
        except StatementRefused:
            failed.append(mark)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(writes, f"m{number}")
            if number % 5 == 0:
                group.start_soon(writes, f"m{number}")  # the same key again violates its uniqueness
    assert await marks(env.database) == {f"m{number}" for number in range(20)}
    assert sorted(failed) == ["m0", "m10", "m15", "m5"]


async def test_errors_of_the_work_itself_are_raised_in_its_caller(env: StoreEnv) -> None:
    def bad(transaction: Transaction) -> None:
        noting("half")(transaction)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await env.database.write(bad)
    assert await marks(env.database) == set()


async def test_a_cancelled_write_still_returns_its_result(env: StoreEnv) -> None:
    """A write cancelled at any moment returns its value, or was never begun."""
    returned: set[str] = set()

    async def writes(mark: str) -> None:
        returned.add(await env.database.write(noting(mark)))

    for number in range(300):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(writes, f"m{number}")
                for _ in range(number % 12):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    assert await marks(env.database) == returned


async def test_a_cancelled_task_can_write_in_a_shield(tmp_path: Path) -> None:
    """A cancelled application still releases its transfers in a shielded write."""
    with anyio.fail_after(60), anyio.CancelScope() as everything:
        async with open_database(tmp_path / "docferry.db") as database:
            try:
                everything.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await database.write(noting("last words"))
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        assert other.execute("SELECT value FROM cursor").fetchall() == [("last words",)]
    other.close()


async def test_waiting_work_is_written_before_the_database_closes(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group, open_database(tmp_path / "docferry.db") as database:
        for number in range(20):
            group.start_soon(database.write, noting(f"m{number}"))
        await anyio.lowlevel.checkpoint()
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        assert other.execute("SELECT count(*) FROM cursor").fetchone() == (20,)
    other.close()


async def test_a_write_after_the_close_fails(tmp_path: Path) -> None:
    async with open_database(tmp_path / "docferry.db") as database:
        pass
    with anyio.fail_after(60), pytest.raises(StateError, match="closed"):
        await database.write(noting("late"))


async def test_a_foreign_lock_does_not_block_the_event_loop(env: StoreEnv, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "docferry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    lags: list[float] = []

    async def heartbeat() -> None:
        while True:
            before = time.monotonic()
            await anyio.sleep(0.01)
            lags.append(time.monotonic() - before - 0.01)

    async def releases() -> None:
        await anyio.sleep(1.5)  # the test is about the length of the lock
        other.execute("COMMIT")

    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat)
        group.start_soon(releases)
        began = time.monotonic()
        await env.database.write(noting("patient"))
        group.cancel_scope.cancel()
    other.close()
    assert time.monotonic() - began >= 1.4
    assert len(lags) > 50
    assert max(lags) < 0.2
    assert await marks(env.database) == {"patient"}


async def test_a_lasting_lock_is_reported_and_waited_for(
    env: StoreEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docferry.store.database.RETRY_PAUSE_S", 0.02)
    await env.change("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "docferry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as group:
        group.start_soon(env.database.write, noting("patient"))
        assert "locked" in await trouble(env.database)
        other.execute("COMMIT")
    other.close()
    assert env.database.trouble is None
    assert await marks(env.database) == {"patient"}


async def test_a_full_disk_is_waited_for(env: StoreEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports its limit of pages with the same error as a full disk."""
    monkeypatch.setattr("docferry.store.database.RETRY_PAUSE_S", 0.02)
    pages = (await env.column("PRAGMA page_count"))[0]
    await env.change(f"PRAGMA max_page_count = {pages}")

    def large(transaction: Transaction) -> None:
        transaction.execute(Sql("INSERT INTO cursor VALUES ('large', hex(zeroblob(200000)), 0)"))

    lifted: list[bool] = []

    def twice(transaction: Transaction) -> None:
        if lifted:  # the disk has room again; the limit belongs to this connection
            transaction.execute(Sql("PRAGMA max_page_count = 1000000"))
        large(transaction)

    async with anyio.create_task_group() as group:
        group.start_soon(env.database.write, twice)
        assert "full" in await trouble(env.database)
        lifted.append(True)
    assert await marks(env.database) == {"large"}
    assert env.database.trouble is None


async def test_a_commit_that_fails_leaves_no_transaction_open(env: StoreEnv) -> None:
    def broken(transaction: Transaction) -> None:
        transaction.execute(Sql("PRAGMA defer_foreign_keys = ON"))
        noting("gone")(transaction)
        transaction.execute(Sql("SELECT nonsense"))

    with pytest.raises(Exception, match="nonsense"):
        await env.database.write(broken)
    await env.database.write(noting("next"))
    assert await marks(env.database) == {"next"}


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_removed_or_replaced_database_is_noticed(env: StoreEnv, tmp_path: Path, how: str) -> None:
    env.database.assert_unchanged()
    path = tmp_path / "docferry.db"
    os.rename(path, tmp_path / "elsewhere.db")  # noqa: PTH104 - a plain move
    if how == "replaced":
        path.write_bytes(b"")
    with pytest.raises(DatabaseLost, match=rf"{how}.*sync --adopt"):
        env.database.assert_unchanged()


async def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StateError, match="sync --adopt"):
        async with open_database(path):
            pass


async def test_damage_below_the_first_page_is_reported_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    async with open_database(path) as database:
        await database.write(noting("before"))
    page = 4096
    content = bytearray(path.read_bytes())
    content[page:] = b"\xa5" * (len(content) - page)
    path.write_bytes(bytes(content))
    with pytest.raises(StateError, match="sync --adopt"):
        async with open_database(path) as database:
            await marks(database)


async def test_a_refused_commit_is_rolled_back(env: StoreEnv) -> None:
    """SQLite leaves the transaction open if it could not even begin the COMMIT (no memory, interrupted)."""

    def refused(transaction: Transaction) -> None:
        noting("refused")(transaction)
        driver: Any = transaction.driver
        driver.set_authorizer(
            lambda action, name, *_: (
                sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK
            )
        )

    def lifted(transaction: Transaction) -> None:
        driver: Any = transaction.driver
        driver.set_authorizer(None)
        noting("next")(transaction)

    with pytest.raises(StatementRefused, match="not authorized"):
        await env.database.write(refused)
    await env.database.write(lifted)
    assert await marks(env.database) == {"next"}


async def test_a_reader_that_is_cancelled_while_it_opens_does_not_leak(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"

    def lines() -> int:
        return sum(os.path.realpath(each) == str(path) for each in Path("/proc/self/fd").iterdir())

    async with open_database(path) as database:
        await database.write(noting("before"))
        before = lines()
        async with anyio.create_task_group() as group:
            group.start_soon(marks, database)
            await anyio.lowlevel.checkpoint()  # the reader has begun to open
            group.cancel_scope.cancel()
        assert await marks(database) == {"before"}
        assert lines() == before + 1
    assert lines() == 0


async def test_an_opening_that_is_cancelled_ends(tmp_path: Path) -> None:
    """The writer is shielded from the cancellation, and must still end."""

    async def open_it() -> None:
        async with open_database(tmp_path / "docferry.db"):
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        while not any(task.name == "database writer" for task in anyio.get_running_tasks()):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def test_the_stamp_changes_with_every_own_commit(env: StoreEnv, tmp_path: Path) -> None:
    """Others see a commit after the log was synced. The time of the file may be earlier."""
    log = tmp_path / "docferry.db-wal"
    stamps = []
    for mark in ("one", "two"):
        await env.database.write(noting(mark))
        os.truncate(log, 1_000_000)
        os.utime(log, (1_700_000_000, 1_700_000_000))
        stamps.append(env.database.stamp)
    assert None not in stamps
    assert stamps[0] != stamps[1]
