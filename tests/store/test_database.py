"""The writer: gathered commits, pieces of work that fail, cancellation, locks, and a file that is lost or broken."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import text

from docferry.errors import DatabaseLost, StateError
from docferry.store.connection import Transaction
from docferry.store.database import Database, open_database
from store.conftest import Shop

pytestmark = [pytest.mark.anyio, pytest.mark.sqlite_only]


def noting(mark: str) -> Callable[[Transaction], str]:
    def work(transaction: Transaction) -> str:
        transaction.execute(text("INSERT INTO cursor VALUES (:mark, :mark, 0)"), {"mark": mark})
        return mark

    return work


async def marks(database: Database) -> set[str]:
    return {key for (key,) in await database.fetch_all(text("SELECT key FROM cursor"))}


async def trouble(database: Database) -> str:
    with anyio.fail_after(10):
        while database.trouble is None:  # noqa: ASYNC110 - `status` reads it now and then, and so does this
            await anyio.sleep(0.01)
    return database.trouble


async def test_what_waits_together_is_committed_together(shop: Shop, tmp_path: Path) -> None:
    observer = sqlite3.connect(tmp_path / "docferry.db")
    commits: set[int] = set()

    async def writes(number: int) -> None:
        assert await shop.database.write(noting(f"m{number}")) == f"m{number}"
        commits.add(observer.execute("PRAGMA data_version").fetchone()[0])

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(writes, number)
    observer.close()
    assert await marks(shop.database) == {f"m{number}" for number in range(200)}
    assert len(commits) <= 3


async def test_a_write_is_seen_by_others_when_it_returns(shop: Shop, tmp_path: Path) -> None:
    await shop.database.write(noting("here"))
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        assert other.execute("SELECT value FROM cursor").fetchall() == [("here",)]
    other.close()


async def test_commits_are_synced(shop: Shop) -> None:
    def work(transaction: Transaction) -> list[tuple[Any]]:
        return [transaction.fetch_one(text(f"PRAGMA {name}")) for name in ("synchronous", "journal_mode")]

    assert await shop.database.write(work) == [(2,), ("wal",)]


async def test_a_failing_piece_of_work_fails_alone(shop: Shop) -> None:
    failed: list[str] = []

    async def writes(mark: str) -> None:
        try:
            await shop.database.write(noting(mark))
        except sqlite3.IntegrityError:
            failed.append(mark)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(writes, f"m{number}")
            if number % 5 == 0:
                group.start_soon(writes, f"m{number}")  # the same again: it must be unique
    assert await marks(shop.database) == {f"m{number}" for number in range(20)}
    assert sorted(failed) == ["m0", "m10", "m15", "m5"]


async def test_what_is_not_of_the_database_is_raised_where_it_belongs(shop: Shop) -> None:
    def bad(transaction: Transaction) -> None:
        noting("half")(transaction)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await shop.database.write(bad)
    assert await marks(shop.database) == set()


async def test_a_cancelled_write_still_tells_what_happened(shop: Shop) -> None:
    """Cancelled at any moment: the value is handed out, or nothing was begun."""
    returned: set[str] = set()

    async def writes(mark: str) -> None:
        returned.add(await shop.database.write(noting(mark)))

    for number in range(300):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(writes, f"m{number}")
                for _ in range(number % 12):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    assert await marks(shop.database) == returned


async def test_who_is_cancelled_from_outside_can_still_write(tmp_path: Path) -> None:
    """A cancelled application still releases its transfers in a shielded write."""
    with anyio.fail_after(10), anyio.CancelScope() as everything:
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


async def test_what_waits_is_written_before_the_end(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group, open_database(tmp_path / "docferry.db") as database:
        for number in range(20):
            group.start_soon(database.write, noting(f"m{number}"))
        await anyio.lowlevel.checkpoint()
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        assert other.execute("SELECT count(*) FROM cursor").fetchone() == (20,)
    other.close()


async def test_after_the_end_nothing_waits_for_ever(tmp_path: Path) -> None:
    async with open_database(tmp_path / "docferry.db") as database:
        pass
    with anyio.fail_after(5), pytest.raises(StateError, match="closed"):
        await database.write(noting("late"))


async def test_a_foreign_lock_is_waited_for_and_the_loop_goes_on(shop: Shop, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "docferry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    lags: list[float] = []

    async def heartbeat() -> None:
        while True:
            before = time.monotonic()
            await anyio.sleep(0.01)
            lags.append(time.monotonic() - before - 0.01)

    async def releases() -> None:
        await anyio.sleep(1.5)  # the lock's length is what is tested
        other.execute("COMMIT")

    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat)
        group.start_soon(releases)
        began = time.monotonic()
        await shop.database.write(noting("patient"))
        group.cancel_scope.cancel()
    other.close()
    assert time.monotonic() - began >= 1.4
    assert len(lags) > 50
    assert max(lags) < 0.2
    assert await marks(shop.database) == {"patient"}


async def test_a_lock_that_stays_is_told_and_waited_for(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docferry.store.database.RETRY_PAUSE_S", 0.02)
    await shop.change("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "docferry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as group:
        group.start_soon(shop.database.write, noting("patient"))
        assert "locked" in await trouble(shop.database)
        other.execute("COMMIT")
    other.close()
    assert shop.database.trouble is None
    assert await marks(shop.database) == {"patient"}


async def test_a_full_disk_is_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit on pages gives the very error of a full disk."""
    monkeypatch.setattr("docferry.store.database.RETRY_PAUSE_S", 0.02)
    pages = (await shop.column("PRAGMA page_count"))[0]
    await shop.change(f"PRAGMA max_page_count = {pages}")

    def large(transaction: Transaction) -> None:
        transaction.execute(text("INSERT INTO cursor VALUES ('large', hex(zeroblob(200000)), 0)"))

    lifted: list[bool] = []

    def twice(transaction: Transaction) -> None:
        if lifted:  # somebody made room; the limit is this connection's own
            transaction.execute(text("PRAGMA max_page_count = 1000000"))
        large(transaction)

    async with anyio.create_task_group() as group:
        group.start_soon(shop.database.write, twice)
        assert "full" in await trouble(shop.database)
        lifted.append(True)
    assert await marks(shop.database) == {"large"}
    assert shop.database.trouble is None


async def test_a_commit_that_fails_leaves_no_transaction_open(shop: Shop) -> None:
    def broken(transaction: Transaction) -> None:
        transaction.execute(text("PRAGMA defer_foreign_keys = ON"))
        noting("gone")(transaction)
        transaction.execute(text("SELECT nonsense"))

    with pytest.raises(Exception, match="nonsense"):
        await shop.database.write(broken)
    await shop.database.write(noting("next"))
    assert await marks(shop.database) == {"next"}


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_database_that_went_away_is_noticed(shop: Shop, tmp_path: Path, how: str) -> None:
    shop.database.assert_unchanged()
    path = tmp_path / "docferry.db"
    os.rename(path, tmp_path / "elsewhere.db")  # noqa: PTH104 - a plain move
    if how == "replaced":
        path.write_bytes(b"")
    with pytest.raises(DatabaseLost, match=rf"{how}.*sync --adopt"):
        shop.database.assert_unchanged()


async def test_a_broken_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StateError, match="sync --adopt"):
        async with open_database(path):
            pass


async def test_a_file_that_breaks_later_is_told_with_the_cure(tmp_path: Path) -> None:
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


async def test_a_refused_commit_is_undone_and_the_next_begins_afresh(shop: Shop) -> None:
    """SQLite leaves a transaction open whose COMMIT it could not even begin (no memory, interrupted), and SQLAlchemy
    takes it for ended.
    """

    def refused(transaction: Transaction) -> None:
        noting("refused")(transaction)
        transaction.driver.set_authorizer(
            lambda action, name, *_: (
                sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK
            )
        )

    def lifted(transaction: Transaction) -> None:
        transaction.driver.set_authorizer(None)
        noting("next")(transaction)

    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        await shop.database.write(refused)
    await shop.database.write(lifted)
    assert await marks(shop.database) == {"next"}


async def test_a_reader_that_is_cancelled_while_it_opens_leaves_no_line_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"

    def lines() -> int:
        return sum(os.path.realpath(each) == str(path) for each in Path("/proc/self/fd").iterdir())

    async with open_database(path) as database:
        await database.write(noting("before"))
        before = lines()
        async with anyio.create_task_group() as group:
            group.start_soon(marks, database)
            await anyio.lowlevel.checkpoint()  # it has begun to open
            group.cancel_scope.cancel()
        assert await marks(database) == {"before"}
        assert lines() == before + 1
    assert lines() == 0


async def test_an_own_commit_counts_whatever_file_times_say(shop: Shop, tmp_path: Path) -> None:
    """The log is written before it is synced, and only then is the commit seen: a look in between comes too early,
    and finds the file as it will be afterwards.
    """
    log = tmp_path / "docferry.db-wal"
    stamps = []
    for mark in ("one", "two"):
        await shop.database.write(noting(mark))
        os.truncate(log, 1_000_000)
        os.utime(log, (1_700_000_000, 1_700_000_000))
        stamps.append(shop.database.stamp)
    assert None not in stamps
    assert stamps[0] != stamps[1]
