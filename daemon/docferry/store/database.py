"""Run the queue's database: one writer that commits collected work together, and readers beside it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct, field

from docferry import logs
from docferry.errors import StateError, StatementRefused
from docferry.store.backend import Backend
from docferry.store.connection import (
    NO_PARAMETERS,
    CommitUnknown,
    Parameters,
    ThreadConnection,
    Transaction,
    Work,
    first_line,
)
from docferry.store.receipts import ReceiptWriter
from docferry.store.statement import Statement

T = TypeVar("T")
Item = TypeVar("Item")

log = logs.get("database")

#: The first and the longest pause before work is repeated, seconds: after a full disk, a lock or an unreachable server.
#: Each pause is longer than the previous one by `RETRY_FACTOR`.
RETRY_PAUSE_S = 1.0
LONGEST_RETRY_PAUSE_S = 5.0
RETRY_FACTOR = 1.5
#: A longer commit is reported, seconds. SQLite waits longer for the lock of another program.
SILENT_S = 40.0
#: The duration of the alarm about a refused statement, and the interval at which it is logged again, seconds. The
#: statement itself is tried more often.
REFUSAL_ALARM_S = 900.0
#: The largest number of units of work in one commit, to limit its duration.
MAX_GATHERED = 256
#: Iterations of the event loop between two commits.
YIELDS = 8
#: The largest number of concurrent reads.
READERS = 4


class _Request(Struct):
    work: Work[Any]
    started: Callable[[], None] | None
    done: anyio.Event = field(default_factory=anyio.Event)
    value: Any = None
    error: BaseException | None = None


class Database:
    """Read snapshots and write durably.

    `read` and `write` run a unit of work, a function of a `Transaction`, in a database thread. The function must use
    only its transaction and its own data. `fetch_all`, `fetch_one`, `execute` and `execute_many` run one statement.

    Group commit: the writer runs all waiting units of work in one transaction and commits them together, with
    synchronous FULL. If one unit fails, the writer undoes the commit and runs each unit alone.
    """

    def __init__(self, backend: Backend, patience_s: float = float("inf"), host: str | None = None) -> None:
        self.receipts = ReceiptWriter(host)
        self._trouble: str | None = None  # the reason for a pause of the writer
        self._commit_began: float | None = None  # seconds on the event loop's clock
        self._backend = backend
        self._patience_s = patience_s
        self._troubled_since: float | None = None  # seconds on the event loop's clock
        self._refusals: dict[str, float] = {}  # seconds on the event loop's clock, by message
        self._commits = 0
        self._lost_commits = 0  # with an unknown result
        self._queue: deque[_Request] = deque()
        self._wake = anyio.Event()
        self._writer = backend.connection(writer=True)
        self._readers = anyio.Semaphore(READERS, fast_acquire=True)
        self._idle: list[ThreadConnection] = []
        self._closing = False
        self._ended = False

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a snapshot. Waits for an unreachable server, like `write`."""
        began, pauses = anyio.current_time(), retry_pauses()
        while True:
            try:
                async with self._readers:
                    reader = await self._reader()
                    try:
                        return await reader.run(work)
                    finally:
                        self._idle.append(reader)
            except Exception as error:
                # A read has nothing to commit, so it can be repeated after any result of COMMIT.
                if isinstance(error, CommitUnknown) or self._backend.is_transient(error):
                    if not self._closing and anyio.current_time() - began < self._patience_s:
                        await anyio.sleep(next(pauses))
                        continue
                    raise self._backend.busy(error) from error
                explained = self._explained(error)
                if explained is error:
                    raise
                raise explained from error

    async def write(self, work: Work[T], started: Callable[[], None] | None = None) -> T:
        """Run `work` and return after its commit.

        A cancellation does not interrupt the work, so the caller always gets the result. `started` is called on the
        event loop directly before the commit begins.
        """
        if self._ended:
            raise StateError("the database is closed; nothing more can be written")
        request = _Request(work, started)
        self._queue.append(request)
        self._wake.set()
        with anyio.CancelScope(shield=True):
            await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.value  # type: ignore[no-any-return]  # the queue loses the result type of `work`

    async def write_each(
        self,
        items: Sequence[Item],
        work: Callable[[Transaction, Sequence[Item]], T],
        started: Callable[[], None] | None = None,
    ) -> tuple[list[T], list[tuple[Item, StatementRefused]]]:
        """Commit `work` for all items together. Where it is refused, commit it for halves of them, down to one item.

        Returns the results of the commits, and the items that were refused alone.
        """
        return await by_halves(items, lambda some: self.write(lambda transaction: work(transaction, some), started))

    async def read_each(
        self, items: Sequence[Item], work: Callable[[Transaction, Sequence[Item]], T]
    ) -> tuple[list[T], list[tuple[Item, StatementRefused]]]:
        """Run `work` on a snapshot as `write_each` does: a damaged row hides no others."""
        return await by_halves(items, lambda some: self.read(lambda transaction: work(transaction, some)))

    async def fetch_all(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> list[Any]:
        """Return all rows of a reading statement as tuples."""
        return await self.read(lambda transaction: transaction.fetch_all(statement, parameters))

    async def fetch_one(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> Any:
        """Return the first row of a reading statement as a tuple, or None."""
        return await self.read(lambda transaction: transaction.fetch_one(statement, parameters))

    async def execute(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> int:
        """Commit a writing statement and return the number of changed rows."""
        return await self.write(lambda transaction: transaction.execute(statement, parameters))

    async def execute_many(self, statement: Statement, rows: Sequence[Parameters]) -> None:
        """Commit a writing statement that runs once for each mapping of parameters."""
        if rows:
            await self.write(lambda transaction: transaction.execute_many(statement, rows))

    def assert_unchanged(self) -> None:
        """Raise DatabaseLost if the database is no longer the one that was opened."""
        self._backend.assert_unchanged()

    async def serve(self, opened: anyio.Event) -> None:
        """Set `opened`, and run the writer until `close` was called and no work waits.

        The writer is shielded, because cancelled tasks still write their final states.
        """
        with anyio.CancelScope(shield=True):
            try:
                try:
                    await self._writer.open()
                except Exception as error:
                    if not self._backend.is_transient(error):
                        raise  # otherwise the first commit connects
                opened.set()
                await self._serve()
            finally:
                self._ended = True
                for request in self._queue:
                    request.error = StateError("the database is closed; this was not written")
                    request.done.set()

    async def _serve(self) -> None:
        while self._queue or not self._closing:
            if self._queue:
                for _ in range(YIELDS):  # let tasks awakened by the last commit join this one
                    await checkpoint()
                gathered = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GATHERED))]
                self._commit_began = anyio.current_time()
                await self._commit(gathered)
                self._commit_began = None
            else:
                self._wake = anyio.Event()
                await self._wake.wait()

    @property
    def unknown_commits(self) -> int:
        """Return the number of times at which this process lost track of its leases.

        A commit had an unknown result, or the server was replaced. The owner of leases changes with this number, see
        `Transfers.owner`.
        """
        return self._lost_commits + self._backend.replacements

    @property
    def adopt_before(self) -> float:
        """Return the time until which a lost queue may have sent a file, wall seconds, or 0.0."""
        return self._backend.adopt_before

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """Return a value that changes with every commit, also of other processes; None while it is unknown.

        The value includes the number of own commits: a file's time may be set long after its commit.
        """
        found = self._backend.stamp()
        return None if found is None else (self._commits, *found)

    @property
    def trouble(self) -> str | None:
        """Return why no write is possible now, or None. A silent server or pooler also counts."""
        began = self._commit_began
        if self._trouble is None and began is not None and anyio.current_time() - began > SILENT_S:
            return f"the database has not answered for {SILENT_S:g} s or more"
        return self._trouble

    @property
    def alarm(self) -> str | None:
        """Return the condition that an operator must know: the writer pauses, the log grows, rows are refused."""
        return self.trouble or self._backend.alarm() or self._refusal

    @property
    def _refusal(self) -> str | None:
        """Return the latest refusal, as long as it is an alarm."""
        message, at = next(reversed(self._refusals.items()), ("", float("-inf")))
        return message if anyio.current_time() - at < REFUSAL_ALARM_S else None

    def _explained(self, error: Exception) -> Exception:
        """Return the error for a caller; a statement or row without a better explanation was refused."""
        explained = self._backend.explain(error)
        if explained is not error or not isinstance(error, self._writer.row_errors):
            return explained
        message = (
            f"the database refuses some rows ({first_line(error)}); nothing is lost. Remove the cause, such as a "
            "trigger, a CHECK or a damaged row"
        )
        now = anyio.current_time()
        if now - self._refusals.pop(message, float("-inf")) >= REFUSAL_ALARM_S:
            log.error("statement_refused", message)
            log.debug("statement_refused", exc=error)
        self._refusals[message] = now
        if len(self._refusals) > MAX_GATHERED:
            del self._refusals[next(iter(self._refusals))]
        refused = StatementRefused(message)
        refused.__cause__ = error
        return refused

    def stop_waiting(self) -> None:
        """Make the writer give up at the next full disk or lock, because docferry is stopping."""
        self._patience_s = 0.0

    @property
    def has_stopped_waiting(self) -> bool:
        """Return whether `stop_waiting` was called."""
        return not self._patience_s

    def close(self) -> None:
        """End the writer after the waiting work."""
        self._closing = True
        self._wake.set()

    async def dispose(self) -> None:
        """Close all connections."""
        for connection in (self._writer, *self._idle):
            await connection.close()

    async def _close_idle_readers(self) -> None:
        """Close the idle readers: their server may no longer be the primary."""
        idle, self._idle = self._idle, []
        for reader in idle:
            await reader.close()

    async def _reader(self) -> ThreadConnection:
        if self._idle:
            return self._idle.pop()
        reader = self._backend.connection(writer=False)
        with anyio.CancelScope(shield=True):  # a cancellation between open and return would leak the connection
            await reader.open()
        return reader

    async def _commit(self, gathered: list[_Request]) -> None:
        for request in gathered:
            if request.started is not None:
                request.started()
        pauses = retry_pauses()
        while (error := await self._try_commit(gathered)) is not None:
            if isinstance(error, CommitUnknown):
                # Repeat the work: a completed transition is not repeated, because its lease is found lost.
                self._lost_commits += 1
            elif self._closing or not self._backend.is_transient(error):
                await self._fail(gathered, error)
                return
            self._trouble = f"the database cannot be written: {first_line(error)}"
            await self._close_idle_readers()
            if self._is_out_of_patience():
                self._give_up(gathered, self._backend.busy(error))
                return
            await anyio.sleep(next(pauses))
        self._trouble = self._troubled_since = None
        self._commits += 1
        for request in gathered:
            request.done.set()

    async def _try_commit(self, gathered: list[_Request]) -> Exception | None:
        def work(transaction: Transaction) -> None:
            for request in gathered:
                request.value = request.work(transaction)

        try:
            await self._writer.run(work)
        except Exception as error:  # noqa: BLE001 - raised in the requesting task
            return error
        return None

    def _is_out_of_patience(self) -> bool:
        now = anyio.current_time()
        self._troubled_since = now if self._troubled_since is None else self._troubled_since
        return now - self._troubled_since >= self._patience_s

    @staticmethod
    def _give_up(gathered: list[_Request], error: StateError) -> None:
        for request in gathered:
            request.error = error
            request.done.set()

    async def _fail(self, gathered: list[_Request], error: Exception) -> None:
        if len(gathered) == 1:
            gathered[0].error = self._explained(error)
            gathered[0].done.set()
            return
        for request in gathered:
            await self._commit([request])


async def by_halves(
    items: Sequence[Item], run: Callable[[Sequence[Item]], Awaitable[T]]
) -> tuple[list[T], list[tuple[Item, StatementRefused]]]:
    """Run a function for all items, and where it is refused for halves of them; see `Database.write_each`."""
    results: list[T] = []
    refused: list[tuple[Item, StatementRefused]] = []
    pending = [items]
    while pending:
        some = pending.pop()
        try:
            results.append(await run(some))
        except StatementRefused as error:
            middle = len(some) // 2
            if len(some) > 1:
                pending += [some[middle:], some[:middle]]
            else:
                refused += [(item, error) for item in some]
    return results, refused


def retry_pauses() -> Iterator[float]:
    """Yield growing pauses between attempts, seconds. A tenth is random, so that hosts do not return together."""
    pause = RETRY_PAUSE_S
    while True:
        yield pause * random.uniform(0.9, 1.0)  # noqa: S311 - jitter, not cryptography
        pause = min(pause * RETRY_FACTOR, LONGEST_RETRY_PAUSE_S)
