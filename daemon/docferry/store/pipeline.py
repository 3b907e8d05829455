"""Connect to PostgreSQL and send statements in pipelines: few round trips for any number of statements.

psycopg sends each statement at once, and waits only when a result is read. A commit waits twice for any number of
transitions: for the transitions with the inputs of their receipts, and for COMMIT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import DataError
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import make_url, text

from docferry.model import clamped
from docferry.store.connection import (
    NO_PARAMETERS,
    PIECE_ROWS,
    CommitUnknown,
    DriverConnection,
    Parameters,
    ThreadConnection,
    Transaction,
    Work,
    storable,
)
from docferry.store.statement import ByDialect, Statement, Translation

T = TypeVar("T")

#: The number of executions after which a statement is prepared: PostgreSQL then parses it once for a connection.
PREPARE_THRESHOLD = 2
#: Error codes of a session other than the one where statements were prepared.
UNPREPARED = ("26000", "42P05")
_DIALECT = make_url("postgresql+psycopg://").get_dialect()()


class PipelinedTransaction(Transaction):
    """Run statements in a pipeline."""

    __slots__ = ("_pieces", "_pipeline")

    driver: psycopg.Connection[Any]
    has_recordsets = True

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        super().__init__(driver)
        self._pieces = 0

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[None]:
        """Send the statements of this context as a pipeline. The end of the context waits for all results."""
        with self.driver.pipeline() as self._pipeline:
            yield

    def execute(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> int:
        """Run a statement and return the number of changed rows."""
        cursor = self._run(statement, parameters)
        self._pipeline.sync()
        return int(cursor.rowcount)

    def fetch_pieces(self, statement: Statement, parameters: Parameters = NO_PARAMETERS) -> Iterator[list[Any]]:
        """Yield the rows of a statement in lists of at most `PIECE_ROWS`."""
        self._pieces += 1
        name = f"piece_{self._pieces}"  # several iterations may alternate
        self._command(f"DECLARE {name} NO SCROLL CURSOR FOR {self._translated(statement).sql}", parameters)
        while rows := self._command(f"FETCH {PIECE_ROWS} FROM {name}").fetchall():
            yield rows
            if len(rows) < PIECE_ROWS:
                break
        self._command(f"CLOSE {name}")

    def _run(self, statement: Statement, parameters: Parameters) -> Any:
        cursor = self.driver.cursor()
        cursor.execute(self._translated(statement).sql, parameters)
        return cursor

    def _translate(self, statement: Statement) -> Translation:
        sql = statement.postgresql if isinstance(statement, ByDialect) else statement
        return Translation(str(text(sql).compile(dialect=_DIALECT)))

    def _command(self, command: str, parameters: Parameters = NO_PARAMETERS) -> Any:
        driver: Any = self.driver
        return driver.cursor().execute(command, parameters, prepare=False)


def adapt(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Make a connection replace unstorable texts and numbers by the nearest storable ones; return the connection."""
    connection.adapters.register_dumper(str, _StorableText)
    connection.adapters.register_dumper(int, _StorableInteger)
    return connection


class Server(Protocol):
    """Recognise the server of the queue by the row of the last statement that begins a transaction."""

    def is_same(self, found: Sequence[Any]) -> bool:
        """Return whether the row belongs to the last accepted server."""

    def accept(self, transaction: Transaction, found: Sequence[Any]) -> None:
        """Accept another server, and change the queue accordingly."""


class _ServerChanged(Exception):
    """Report that the work ran before another server was accepted; the work is undone and runs again."""


class PipelinedConnection(ThreadConnection):
    """Run each transaction as a pipeline. `begin` are the statements that begin a transaction."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], begin: Sequence[str], server: Server | None = None
    ) -> None:
        super().__init__(connect, begin[0], psycopg.Error)
        self._first = begin
        self._server = server
        self._is_fresh = True  # no transaction has run on this connection yet

    def _transaction_on(self, driver: DriverConnection) -> Transaction:
        self._is_fresh = True
        connection: Any = driver
        # Behind a pooler, sessions do not share prepared statements; a pooler reports its own process id.
        (process,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        connection.prepare_threshold = PREPARE_THRESHOLD if process == connection.info.backend_pid else None
        return PipelinedTransaction(connection)

    def _run_in(self, transaction: Transaction, work: Work[T]) -> T:
        assert isinstance(transaction, PipelinedTransaction)  # noqa: S101 - set by `_transaction_on`
        try:
            accept, self._is_fresh = self._is_fresh, False
            return self._attempt(transaction, work, accept=accept)
        except _ServerChanged:
            return self._attempt(transaction, work, accept=True)

    def _attempt(self, transaction: PipelinedTransaction, work: Work[T], *, accept: bool) -> T:
        commits = False
        try:
            with transaction.pipeline():
                for statement in self._first:
                    begun: Any = transaction.driver.cursor()
                    begun.execute(statement)
                if self._server is not None and accept:
                    self._server.accept(transaction, begun.fetchone())
                value = work(transaction)
                # Checked after the work: the row arrives together with the results of the work's statements.
                if not accept:
                    self._assert_same(begun)
                commits = True
                transaction.driver.cursor().execute("COMMIT")
        except Exception as error:
            if commits and self._is_lost(error):
                raise CommitUnknown(str(error)) from error
            if getattr(error, "sqlstate", None) in UNPREPARED:  # a pooler that does not identify itself
                transaction.driver.prepare_threshold = None
            with contextlib.suppress(self._errors):  # the first error has the cause
                transaction.driver.rollback()
            raise
        return value

    def _is_closed(self) -> bool:
        driver: Any = self._transaction and self._transaction.driver
        return driver is not None and (driver.closed or driver.broken)

    def _assert_same(self, begun: Any) -> None:
        if self._server is not None and not self._server.is_same(begun.fetchone()):
            raise _ServerChanged


class _StorableText(StrDumperUnknown):
    """Write a text; replace an unstorable text by the nearest storable one."""

    def dump(self, obj: str) -> Any:
        try:
            return super().dump(obj)
        except (DataError, UnicodeEncodeError):
            return super().dump(str(storable(obj)))


class _StorableInteger(Int8Dumper):
    """Write a number as `bigint`; replace a number that is too large by the largest storable one."""

    def dump(self, obj: int) -> Any:
        return super().dump(clamped(obj))
