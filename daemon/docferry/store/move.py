"""Move a SQLite queue to an empty PostgreSQL database, completely or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, NullPool, Table, create_engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from docferry.errors import StateError
from docferry.store import postgresql, schema
from docferry.store.tables import alembic_version, company_lease, metadata, process, scan_lease

#: Rows that are copied together.
_CHUNK = 2_000
#: Cursors of these kinds have a mapping's name as their second part.
_BY_MAPPING = ("mapping", "rules", "day", "object")


def move(path: Path, url: str, host: str, shared: Collection[str]) -> int:
    """Copy all rows to `url` in one transaction, set the file aside, and return the number of rows.

    Mappings become NAME@HOST, apart from those in `shared`. Raises StateError if the database is not empty or a row is
    missing afterwards; the file then stays as it was.
    """
    schema.prepare(path)
    server = postgresql.prepare(url)
    source_engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"isolation_level": None}, poolclass=NullPool
    )
    try:
        with source_engine.connect() as source, server.engine.connect() as target:
            source.exec_driver_sql("BEGIN IMMEDIATE")  # no other command changes the queue meanwhile
            target.exec_driver_sql("BEGIN")
            _assert_empty(target, server.name)
            total = sum(_copy(source, target, table, host, shared) for table in _tables())
            target.exec_driver_sql("COMMIT")
            # Renamed while it is locked: from here on nobody can send from the old queue.
            path.rename(path.with_name(f"{path.name}.moved"))
            source.exec_driver_sql("ROLLBACK")
    except DBAPIError as error:
        raise StateError(f"the queue could not be moved ({error.orig}); {path} is unchanged") from error
    finally:
        source_engine.dispose()
    return total


def _tables() -> list[Table]:
    not_moved = (alembic_version, process, company_lease, scan_lease)
    return [table for table in metadata.sorted_tables if table not in not_moved]


def _assert_empty(target: Connection, name: str) -> None:
    target.execute(text("DELETE FROM receipt_log WHERE size = 0"))  # a fresh log; the moved one replaces it
    target.execute(text("DELETE FROM cursor WHERE key LIKE 'server/%'"))  # any earlier command recorded the server
    for table in _tables():
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
    if table.autoincrement_column is not None:  # the next row gets an id behind the copied ones
        sequence = func.pg_get_serial_sequence(table.name, table.autoincrement_column.name)
        following = func.coalesce(func.max(table.autoincrement_column), 0) + 1
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
    if table == "cursor":
        kind, separator, rest = row["key"].partition("/")
        name, slash, more = rest.partition("/")
        if separator and kind in _BY_MAPPING and name not in shared:
            row["key"] = f"{kind}/{name}@{host}{slash}{more}"
    return row
