"""Run a database connection in its own thread, and define the transaction passed to a unit of work."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

from docferry.errors import DocferryError
from docferry.model import clamped
from docferry.store.statement import Statement, Translation, for_sqlite

T = TypeVar("T")
Parameters = Mapping[str, Any]
#: Called with a transaction.
Work = Callable[["Transaction"], T]

NO_PARAMETERS: Parameters = {}
#: The largest number of rows that `Transaction.fetch_pieces` holds in memory.
PIECE_ROWS = 4096


def is_storable(value: object) -> bool:
    """Return whether a database can store a number or text."""
    if isinstance(value, str):
        return (value.isascii() and "\0" not in value) or storable(value) == value
    return not isinstance(value, int) or clamped(value) == value


def storable(value: object) -> object:
    """Return the nearest number or text that a database can store."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    return clamped(value) if isinstance(value, int) else value


def as_bytes(value: object) -> bytes:
    """Return a path of a row, also of a damaged one, for people to see."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, because libpq's errors have several."""
    return str(error).strip().partition("\n")[0]


class CommitUnknown(DocferryError):
    """Report that the connection was lost during COMMIT: only the database knows the result."""


class DriverConnection(Protocol):
    """Define the methods that both drivers' connections have (PEP 249)."""

    def cursor(self) -> Any:
        """Return a new cursor."""

    def commit(self) -> None:
        """Commit the transaction."""

    def rollback(self) -> None:
        """Undo the transaction."""

    def close(self) -> None:
        """Close the connection."""


class Transaction:
    """Run statements on one connection.

    A statement is translated once; the driver's cursor then runs the translated text. A small UPDATE costs 2 µs by this
    method. It costs 16 µs through `sqlalchemy.Connection.execute`, and 37 µs through aiosqlite, which changes threads
    for each statement.
    """

    __slots__ = ("_translations", "driver")

    #: Whether `json_to_recordset` exists; each statement is then a round trip to a server.
    has_recordsets = False

    def __init__(self, driver: DriverConnection) -> None:
        self.driver = driver
        self._translations: dict[Statement, Translation] = {}

    def start(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> Any:
        """Start a statement without waiting for its result, and return the cursor for the result.

        Such statements are sent to a server together with the next one. Their errors are raised when a later result is
        read, at the latest by the commit.
        """
        return self._run(statement, parameters)

    def execute(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> int:
        """Run a statement and return the number of changed rows."""
        return int(self._run(statement, parameters).rowcount)

    def execute_many(self, statement: Statement, rows: Sequence[Parameters]) -> None:
        """Run a statement once for each mapping of parameters."""
        self.driver.cursor().executemany(self._translated(statement).sql, rows)

    def fetch_all(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> list[Any]:
        """Return all rows of a statement as tuples."""
        return list(self._run(statement, parameters).fetchall())

    def fetch_one(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> Any:
        """Return the first row of a statement as a tuple, or None."""
        return self._run(statement, parameters).fetchone()

    def fetch_pieces(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> Iterator[list[Any]]:
        """Yield the rows of a statement in lists of at most `PIECE_ROWS`."""
        with closing(self._run(statement, parameters)) as cursor:
            while rows := cursor.fetchmany(PIECE_ROWS):
                yield list(rows)

    def _run(self, statement: Statement, parameters: Parameters) -> Any:
        translated = self._translated(statement)
        if translated.lists:
            parameters = {**parameters, **{name: json.dumps(parameters[name]) for name in translated.lists}}
        cursor = self.driver.cursor()
        try:
            cursor.execute(translated.sql, parameters)
        # raised before the statement runs, by an invalid value from outside
        except (OverflowError, UnicodeEncodeError):
            cursor.execute(translated.sql, {name: storable(value) for name, value in parameters.items()})
        return cursor

    def _translated(self, statement: Statement) -> Translation:
        found = self._translations.get(statement)
        if found is None:
            found = self._translations[statement] = self._translate(statement)
        return found

    def _translate(self, statement: Statement) -> Translation:
        return for_sqlite(statement)


class ThreadConnection:
    """Run transactions on a connection in its own thread.

    Each unit of work is one transaction and one call in that thread.
    """

    def __init__(self, connect: Callable[[], DriverConnection], begin: str, errors: type[Exception]) -> None:
        self._open_driver = connect
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="docferry-database")
        self._transaction: Transaction | None = None
        self._errors = errors  # the base class of the driver's errors
        #: Errors that a statement or a damaged row causes.
        self.row_errors = (self._errors, ValueError, TypeError)

    async def open(self) -> None:
        """Connect. Raises the driver's errors."""
        await self._visit(self._connect)

    async def run(self, work: Work[T]) -> T:
        """Run `work` in one transaction and commit it. A cancelled caller does not interrupt the work."""
        return await self._visit(lambda: self._run(work))

    async def close(self) -> None:
        """Close the connection in its thread and end the thread."""
        await self._visit(self._disconnect)
        self._thread.shutdown()

    async def _visit(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _connect(self) -> Transaction:
        driver = self._open_driver()
        try:
            self._transaction = self._transaction_on(driver)
        except Exception:  # of any kind: an unusable connection stays open otherwise
            self._close(driver)
            raise
        return self._transaction

    def _transaction_on(self, driver: DriverConnection) -> Transaction:
        return Transaction(driver)

    def _run(self, work: Work[T]) -> T:
        is_old = self._transaction is not None
        try:
            try:
                return self._run_in(self._transaction or self._connect(), work)
            except Exception as error:
                if not is_old or isinstance(error, CommitUnknown) or not self._is_lost(error):
                    raise
                self._disconnect()  # the connection was lost while idle, or before the commit
                return self._run_in(self._connect(), work)
        except Exception as error:
            if self._is_lost(error) or self._serves_no_writes(error):
                self._disconnect()  # the next unit of work reconnects, perhaps to another server
            raise

    def _run_in(self, transaction: Transaction, work: Work[T]) -> T:
        driver = transaction.driver
        try:
            driver.cursor().execute(self._begin)
            value = work(transaction)
        except Exception:  # of any kind, as `work` is the caller's
            with contextlib.suppress(self._errors):  # the first error has the cause
                driver.rollback()
            raise
        try:
            driver.commit()
        except Exception as error:
            if self._is_lost(error):
                raise CommitUnknown(str(error)) from error
            driver.rollback()
            raise
        return value

    def _is_lost(self, error: Exception) -> bool:
        """Return whether an error means the end of the connection.

        pgbouncer and a server that shuts down report an error before they close the connection.
        """
        cause = error.__cause__ if isinstance(error, CommitUnknown) else error
        if not isinstance(cause, self._errors):
            return False
        code = getattr(cause, "sqlstate", None) or ""
        return code.startswith(("08", "57P")) or self._is_closed()

    def _is_closed(self) -> bool:
        """Return whether the driver found the end of the connection. That of a file ends with its process."""
        return False

    @staticmethod
    def _serves_no_writes(error: Exception) -> bool:
        """Return whether a PostgreSQL server is a standby, or was made read-only."""
        return getattr(error, "sqlstate", None) in ("25006", "55000")

    def _disconnect(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._close(transaction.driver)

    def _close(self, driver: DriverConnection) -> None:
        with contextlib.suppress(self._errors):
            driver.close()
