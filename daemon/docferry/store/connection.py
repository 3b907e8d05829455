"""Run a database connection in its own thread, and define the transaction passed to a unit of work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Dialect, Engine, TextClause, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import PoolProxiedConnection

from docferry.errors import DocferryError
from docferry.model import clamped

T = TypeVar("T")
#: Called with a transaction and the cursor that ran its BEGIN.
Parameters = Mapping[str, Any]
Work = Callable[["Transaction"], T]

NO_PARAMETERS: Parameters = {}
#: The largest number of rows that `Transaction.fetch_pieces` holds in memory.
PIECE_ROWS = 4096
_ANY = re.compile(r"= ANY\(:(\w+)\)")
_ALL = re.compile(r"<> ALL\(:(\w+)\)")
_SHA256 = re.compile(r"sha256\(([\w.:]+)\)")
_POSITION = re.compile(r"position\(:(\w+) IN ([\w.]+)\)")


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


class ByDialect(Struct, frozen=True, eq=False):
    """Hold the variants of a statement for each database."""

    sqlite: TextClause
    postgresql: TextClause


Statement = TextClause | ByDialect


class CommitUnknown(DocferryError):
    """Report that the connection was lost during COMMIT: only the database knows the result."""


class Translation:
    """Hold a statement translated for one database, and the names of its list parameters.

    Statements are written in PostgreSQL's dialect. SQLite has no arrays: `= ANY(:ids)` and `<> ALL(:ids)` read a JSON
    array there. `position(:part IN column)` becomes `instr(column, :part)`. Versions before 3.39 write `IS DISTINCT
    FROM` as `IS NOT`. SQLite indexes paths themselves, so `sha256(folder)` becomes `folder`.
    """

    __slots__ = ("lists", "sql")

    def __init__(self, statement: Statement, dialect: Dialect) -> None:
        lists: tuple[str, ...] = ()
        if isinstance(statement, ByDialect):
            statement = statement.sqlite if dialect.name == "sqlite" else statement.postgresql
        if dialect.name == "sqlite":
            lists = (*_ANY.findall(statement.text), *_ALL.findall(statement.text))
            sql = _ANY.sub(r"IN (SELECT value FROM json_each(:\1))", statement.text)
            sql = _ALL.sub(r"NOT IN (SELECT value FROM json_each(:\1))", sql)
            sql = _SHA256.sub(r"\1", sql)
            sql = _POSITION.sub(r"instr(\2, :\1)", sql)
            statement = text(sql.replace("IS DISTINCT FROM", "IS NOT"))
        self.lists = lists
        self.sql = str(statement.compile(dialect=dialect))


class Transaction:
    """Run statements on one connection.

    SQLAlchemy translates a statement once; the driver's cursor then runs the translated text. A small UPDATE costs 2 µs
    by this method. It costs 16 µs through `sqlalchemy.Connection.execute`, and 37 µs through aiosqlite, which changes
    threads for each statement.
    """

    __slots__ = ("_dialect", "_translations", "driver")

    #: Whether `json_to_recordset` exists; each statement is then a round trip to a server.
    has_recordsets = False

    def __init__(self, driver: DBAPIConnection, dialect: Dialect) -> None:
        self.driver = driver
        self._dialect = dialect
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
            found = self._translations[statement] = Translation(statement, self._dialect)
        return found


class ThreadConnection:
    """Run transactions on a connection in its own thread.

    Each unit of work is one transaction and one call in that thread.
    """

    def __init__(self, engine: Engine, begin: str) -> None:
        self._engine = engine
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="docferry-database")
        self._connection: PoolProxiedConnection | None = None
        self._transaction: Transaction | None = None
        self._errors: type[Exception] = engine.dialect.loaded_dbapi.Error
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
        self._connection = self._engine.raw_connection()
        driver = self._connection.dbapi_connection
        assert driver is not None  # noqa: S101 - it was opened one line above
        try:
            self._transaction = self._transaction_on(driver)
        except Exception:
            self._disconnect()  # the pool would report a connection that nobody returns
            raise
        return self._transaction

    def _transaction_on(self, driver: DBAPIConnection) -> Transaction:
        return Transaction(driver, self._engine.dialect)

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
        except Exception:
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
        dialect: Any = self._engine.dialect
        cause = error.__cause__ if isinstance(error, CommitUnknown) else error
        if not isinstance(cause, self._errors):
            return False
        code = getattr(cause, "sqlstate", None) or ""
        return code.startswith(("08", "57P")) or bool(dialect.is_disconnect(cause, self._connection, None))

    @staticmethod
    def _serves_no_writes(error: Exception) -> bool:
        """Return whether a PostgreSQL server is a standby, or was made read-only."""
        return getattr(error, "sqlstate", None) in ("25006", "55000")

    def _disconnect(self) -> None:
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(self._errors):
                connection.invalidate()
