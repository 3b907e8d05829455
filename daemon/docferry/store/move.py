"""Move a SQLite queue to an empty PostgreSQL database, completely or not at all.

The file gets another name before the server commits, so that the two queues are never usable at once. After a kill, the
name shows that a move was interrupted; the same command checks whether the server committed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, MetaData, NullPool, Table, create_engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from docferry.errors import StateError
from docferry.store import postgresql, schema
from docferry.store.tables import TABLES

#: The number of rows in one copy.
_CHUNK = 2_000
#: Tables of the schema's revision, and of the processes that share a server.
_NOT_MOVED = ("alembic_version", "process", "company_lease", "scan_lease")
#: Kinds of cursors whose second part is the name of a mapping.
_BY_MAPPING = ("mapping", "rules", "day", "object")


def move(path: Path, url: str, host: str, shared: Collection[str]) -> int:
    """Copy all rows to `url` in one transaction, rename the file, and return the number of rows.

    Mappings become NAME@HOST, except those in `shared`. Raises StateError if the database is not empty or a row is
    missing afterwards; the file is then unchanged. Completes an interrupted move.
    """
    server = postgresql.prepare(url, host)
    if schema.moving(path).exists() and not path.exists():
        total = _complete(path, server)
        if total is not None:
            return total
    schema.prepare(path)
    _checkpoint(path)
    with _transaction(path) as source, server.engine.connect() as target:
        try:
            target.exec_driver_sql("BEGIN")
            postgresql.lock_writers(target)
            _assert_empty(target, server.name)
            total = sum(_copy(source, target, table, host, shared) for table in _tables(target))
            _rename(path, schema.moving(path))
            target.exec_driver_sql("COMMIT")
        except DBAPIError as error:
            raise _undone(path, server, error) from error
        except StateError:
            target.exec_driver_sql("ROLLBACK")
            raise
        _rename(schema.moving(path), schema.moved(path))
    return total


def _undone(path: Path, server: postgresql.PostgresServer, error: DBAPIError) -> StateError:
    """Return the error of a failed move, after restoring the file's name unless the result of COMMIT is unknown."""
    if not error.connection_invalidated and schema.moving(path).exists():
        _rename(schema.moving(path), path)
    if not schema.moving(path).exists():
        return StateError(f"the queue could not be moved ({error.orig}); {path} is unchanged")
    return StateError(
        f"the connection to {server.name} was lost at the end of the move ({error.orig}); "
        "run `docferry queue move` with the same URL again"
    )


def _complete(path: Path, server: postgresql.PostgresServer) -> int | None:
    """Complete an interrupted move.

    Return the number of rows if the server has them; else restore the file and return None.
    """
    with _transaction(schema.moving(path)) as source, server.engine.connect() as target:
        origin = source.execute(_ORIGIN).scalar_one()
        if target.execute(_IS_THERE, {"origin": origin}).first() is not None:
            total = sum(
                source.execute(select(func.count()).select_from(table)).scalar_one() for table in _tables(target)
            )
            _rename(schema.moving(path), schema.moved(path))
            return total
        _rename(schema.moving(path), path)
    return None


#: The random name of a log of receipts, which moves with the log.
_ORIGIN = text("SELECT origin FROM receipt_log")
_IS_THERE = text("SELECT 1 FROM receipt_log WHERE origin = :origin")


@contextmanager
def _transaction(path: Path) -> Iterator[Connection]:
    """Yield a connection that locks the file, so that no command changes the queue in the meantime."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"isolation_level": None}, poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def _checkpoint(path: Path) -> None:
    """Write the write-ahead log into the database: the log keeps its name when the database is renamed."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rename(path: Path, other: Path) -> None:
    """Rename a file durably."""
    path.rename(other)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _tables(target: Connection) -> list[Table]:
    """Return the tables with rows to move, with the types of the server."""
    found = MetaData()
    found.reflect(target, only=[name for name in TABLES if name not in _NOT_MOVED])
    return found.sorted_tables


def _assert_empty(target: Connection, name: str) -> None:
    target.execute(text("DELETE FROM receipt_log WHERE size = 0"))  # a new log, which the moved one replaces
    target.execute(text("DELETE FROM cursor WHERE key LIKE 'server/%'"))  # an earlier command recorded the server
    for table in _tables(target):
        if target.execute(select(func.count()).select_from(table)).scalar_one():
            raise StateError(f"{name} has a queue already (table {table.name} has rows); move to an empty database")


def _copy(source: Connection, target: Connection, table: Table, host: str, shared: Collection[str]) -> int:
    copied = 0
    for rows in _chunks(source, table):
        target.execute(insert(table), [_renamed(table.name, row, host, shared) for row in rows])
        copied += len(rows)
    found = target.execute(select(func.count()).select_from(table)).scalar_one()
    if found != copied:
        raise StateError(f"table {table.name} has {found} rows instead of {copied}; nothing was moved")
    if "id" in table.columns:  # the next row gets an id after the copied ones
        sequence = func.pg_get_serial_sequence(table.name, "id")
        following = func.coalesce(func.max(table.columns["id"]), 0) + 1
        target.execute(select(func.setval(sequence, following, False)))
    return copied


def _chunks(source: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    result = source.execution_options(yield_per=_CHUNK).execute(select(table))
    for partition in result.mappings().partitions():
        yield [dict(row) for row in partition]


def _renamed(table: str, row: dict[str, Any], host: str, shared: Collection[str]) -> dict[str, Any]:
    """Return a row with the mapping's name in the shared queue."""
    if row.get("mapping") is not None and row["mapping"] not in shared:
        row["mapping"] = f"{row['mapping']}@{host}"
    if table == "receipt_log":
        row["host"] = host  # continues as the log of this host
    if table == "cursor":
        kind, separator, rest = row["key"].partition("/")
        name, slash, more = rest.partition("/")
        if separator and kind in _BY_MAPPING and name not in shared:
            row["key"] = f"{kind}/{name}@{host}{slash}{more}"
    return row
