"""One SQLite connection in a thread of its own: a whole piece of work is a single visit there."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy import Connection, Engine, StaticPool, create_engine
from sqlalchemy.exc import DatabaseError, OperationalError

T = TypeVar("T")
Work = Callable[[Connection], T]

#: How long a foreign lock on the database is waited for, seconds.
BUSY_TIMEOUT = 30.0
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY")


class ThreadConnection:
    """SQLAlchemy's connection, living where aiosqlite runs. SQLAlchemy's own asyncio layer goes to the thread for
    every statement and twice for its rows; where each document passes several times, the visits are what costs."""

    def __init__(self, path: Path, begin: str, cache: int) -> None:
        self._path = path
        self._cache = cache  # KiB of pages in memory
        self._begin = begin
        self._driver = aiosqlite.Connection(self._connect, iter_chunk_size=64)
        self._engine: Engine
        self._connection: Connection
        self._is_open = False

    async def open(self) -> None:
        """Connect; raises SQLAlchemy's errors."""
        await self._driver
        self._is_open = True

    async def run(self, work: Work[T]) -> T:
        """`work` in one transaction, committed when this returns. Whoever is cancelled while it waits leaves it to end
        by itself."""
        return await self._there(lambda: self._visit(work))

    async def close(self) -> None:
        """Leave the thread, where it was entered; nothing can be run any more."""
        if self._is_open:
            self._is_open = False
            await self._there(self._leave)
            await self._driver.close()

    async def _there(self, function: Callable[[], T]) -> T:
        # Not public, and the only way to hand aiosqlite's thread more than one statement: `store` tests walk it.
        return await self._driver._execute(function)  # type: ignore[no-any-return, no-untyped-call]  # it has no types

    def _connect(self) -> sqlite3.Connection:
        # For SQLAlchemy there are no transactions: a visit is one.
        self._engine = create_engine("sqlite://", creator=self._raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        return driver(self._connection)

    def _raw(self) -> sqlite3.Connection:
        raw = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None, cached_statements=128)
        for pragma in (*_PRAGMAS, f"cache_size=-{self._cache}"):
            raw.execute(f"PRAGMA {pragma}")
        return raw

    def _visit(self, work: Work[T]) -> T:
        raw = driver(self._connection)
        try:
            raw.execute(self._begin)
            value = work(self._connection)
            raw.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise OperationalError(None, None, error) from error
        except sqlite3.DatabaseError as error:
            raise DatabaseError(None, None, error) from error
        finally:
            raw.rollback()  # also where a COMMIT failed; nothing where it did not
        return value

    def _leave(self) -> None:
        self._connection.close()
        self._engine.dispose()


def fetched(connection: Connection, statement: str, parameters: Mapping[str, object] = {}) -> list[Any]:
    """All rows of a statement, past SQLAlchemy: for the statements that every document needs, whose cost it doubles."""
    return driver(connection).execute(statement, parameters).fetchall()


def driver(connection: Connection) -> sqlite3.Connection:
    """The connection beneath."""
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)  # noqa: S101 - `_raw` made it
    return found
