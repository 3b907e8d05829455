"""One SQLite file: a single writer that commits gathered work together, and readers beside it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, OperationalError

from docferry.errors import DatabaseBusy, DatabaseLost, StateError
from docferry.store import schema
from docferry.store.connection import ThreadConnection, Work
from docferry.store.receipts import ReceiptWriter

T = TypeVar("T")

#: How long the writer pauses before it tries again on a full disk or a lock that stays, seconds.
PAUSE = 1.0
#: A write-ahead log of this size is no longer taken into the database: somebody reads an old state for ever; bytes.
LOG_ALARM = 64 * 1024 * 1024
#: At most so many pieces of work go into one commit: a crash forgets no more, a commit stays short.
GATHERED = 256
#: File times may stand still for so long, seconds.
TICK = 0.1
#: Turns of the event loop between two commits: told, woken, asking again.
TURNS = 3
#: Pages kept in memory, KiB: digests fall anywhere into an index of millions, scans read it from end to end.
WRITER_CACHE, READER_CACHE = 8_000, 2_000
#: So many reads run at once; the next one waits.
READERS = 4
#: How SQLite says that the file is not what it should be.
_BROKEN = ("malformed", "not a database")


@dataclass(slots=True)
class _Request:
    work: Work[Any]
    started: Callable[[], None] | None
    done: anyio.Event = field(default_factory=anyio.Event)
    value: Any = None
    error: BaseException | None = None


class Database:
    """`read(work)` sees a snapshot; `write(work)` is committed, synchronous FULL, when it returns.

    Writers are gathered: whatever waits is run inside one BEGIN IMMEDIATE and committed together, in one visit to
    the writer's thread. A piece of work runs there: it touches nothing but its connection and what it was given.
    When a piece fails, the whole commit is undone and each is run alone.
    """

    def __init__(self, path: Path, patience: float = float("inf"), host: str | None = None) -> None:
        self.path = path
        self.receipts = ReceiptWriter(host)
        self.trouble: str | None = None  # why the writer is pausing, for `status`
        self._patience = patience  # for so long the writer pauses, then it gives up; seconds
        self._troubled: float | None = None  # since when, steady seconds
        self._commits = 0
        self._queue: deque[_Request] = deque()
        self._wake = anyio.Event()
        self._identity = _identity(path)
        self._writer = ThreadConnection(path, "BEGIN IMMEDIATE", WRITER_CACHE)
        self._readers = anyio.Semaphore(READERS)
        self._idle: list[ThreadConnection] = []
        self._closing = False
        self._ended = False

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a snapshot of its own."""
        try:
            async with self._readers:
                reader = await self._reader()
                try:
                    return await reader.run(work)
                finally:
                    self._idle.append(reader)
        except DatabaseError as error:
            raise self._meant(error) from error

    async def write(self, work: Work[T], started: Callable[[], None] | None = None) -> T:
        """Run `work` and commit it; cannot be cancelled half way, so the caller always learns what happened.
        `started` is called, here on the event loop, right before the commit begins."""
        if self._ended:
            raise StateError(f"{self.path} is closed; nothing more can be written")
        request = _Request(work, started)
        self._queue.append(request)
        self._wake.set()
        with anyio.CancelScope(shield=True):
            await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.value  # type: ignore[no-any-return]  # what `work` gave, untyped in the queue

    def assert_ours(self) -> None:
        """DatabaseLost when the file is no longer the one that was opened (SQLite itself would not notice)."""
        try:
            found = _identity(self.path)
        except FileNotFoundError:
            found = None
        if found != self._identity:
            raise DatabaseLost(
                f"{self.path} was {'removed' if found is None else 'replaced'} while docferry was using it; docferry "
                "stops so that nothing is sent twice. Put the file back, or run `docferry sync --adopt`"
            )

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """The writer; ends when `close` was called and nothing waits any more. Whoever is being cancelled still has
        to write what it leaves behind, so a cancellation from outside does not reach it."""
        with anyio.CancelScope(shield=True):
            try:
                await self._writer.open()
                task_status.started()
                await self._serve()
            finally:
                self._ended = True
                for request in self._queue:
                    request.error = StateError(f"{self.path} is closed; this was not written")
                    request.done.set()

    async def _serve(self) -> None:
        while self._queue or not self._closing:
            if self._queue:
                for _ in range(TURNS):  # whoever was told of the last commit may have more to write: it joins this one
                    await checkpoint()
                gathered = [self._queue.popleft() for _ in range(min(len(self._queue), GATHERED))]
                await self._commit(gathered)
            else:
                self._wake = anyio.Event()
                await self._wake.wait()

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """Changes with every commit of ours, and with almost every foreign one: that is seen only when its log was
        synced, long after the log's time perhaps. None while the last one is too young to tell it from a next one."""
        try:
            log = self.path.with_name(f"{self.path.name}-wal").stat()
        except FileNotFoundError:
            return None
        return None if abs(time.time() - log.st_mtime) < TICK else (self._commits, log.st_mtime_ns, log.st_size)

    @property
    def alarm(self) -> str | None:
        """What a person must know: the writer's trouble, or a log that only grows."""
        log = self.path.with_name(f"{self.path.name}-wal")
        with contextlib.suppress(FileNotFoundError):
            if self.trouble is None and (size := log.stat().st_size) >= LOG_ALARM:
                return (
                    f"{log} has grown to {size >> 20} MiB: a program has been reading the database for too long; "
                    f"end it (`fuser -v {self.path}` names it)"
                )
        return self.trouble

    def hurry(self) -> None:
        """docferry is to stop: from now on the writer waits for no full disk and no lock that stays."""
        self._patience = 0.0

    @property
    def hurried(self) -> bool:
        return not self._patience

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    async def dispose(self) -> None:
        for connection in (self._writer, *self._idle):
            await connection.close()

    async def _reader(self) -> ThreadConnection:
        if self._idle:
            return self._idle.pop()
        reader = ThreadConnection(self.path, "BEGIN", READER_CACHE)
        with anyio.CancelScope(shield=True):  # cancelled half way, it would be nobody's to close
            await reader.open()
        return reader

    async def _commit(self, gathered: list[_Request]) -> None:
        def together(connection: Connection) -> None:
            for request in gathered:
                request.value = request.work(connection)

        for request in gathered:
            if request.started is not None:
                request.started()
        while True:
            try:
                await self._writer.run(together)
            except OperationalError as error:
                if self._closing or not schema.passes(error.orig):
                    await self._fail(gathered, error)
                    return
                self.trouble = f"the database cannot be written: {error.orig}"
                if self._is_out_of_patience():
                    self._give_up(gathered, DatabaseBusy(schema.unwritable(self.path, error.orig)))
                    return
                await anyio.sleep(PAUSE)
                continue
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked, not to the writer
                await self._fail(gathered, error)
                return
            self.trouble = self._troubled = None
            self._commits += 1
            for request in gathered:
                request.done.set()
            return

    def _is_out_of_patience(self) -> bool:
        now = anyio.current_time()
        self._troubled = now if self._troubled is None else self._troubled
        return now - self._troubled >= self._patience

    @staticmethod
    def _give_up(gathered: list[_Request], error: DatabaseBusy) -> None:
        for request in gathered:
            request.error = error
            request.done.set()

    async def _fail(self, gathered: list[_Request], error: Exception) -> None:
        if len(gathered) == 1:
            gathered[0].error = self._meant(error)
            gathered[0].done.set()
            return
        for request in gathered:
            await self._commit([request])

    def _meant(self, error: Exception) -> Exception:
        """A broken file as the error that says how to mend it; any other as it is."""
        broken = isinstance(error, DatabaseError) and any(sign in str(error.orig) for sign in _BROKEN)
        return StateError(schema.broken(self.path, error.orig)) if broken else error  # type: ignore[attr-defined]  # as above


@asynccontextmanager
async def open_database(path: Path, patience: float = float("inf"), host: str | None = None) -> AsyncIterator[Database]:
    """The database at `path`, made or upgraded first; StateError when it cannot be used. Its writer waits for a full
    disk or a lock for `patience` seconds: a daemon for ever, a command that somebody waits for not."""
    await anyio.to_thread.run_sync(schema.prepare, path)
    database = Database(path, patience, host)
    try:
        async with anyio.create_task_group() as group:
            await group.start(database.serve, name="database writer")
            try:
                yield database
            finally:
                database.close()
    finally:
        with anyio.CancelScope(shield=True):  # a connection that stays open is a thread, and the program waits for it
            await database.dispose()


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
