"""Open the queue's database: create or upgrade it, then run its writer."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from docferry.errors import StateError
from docferry.store import schema
from docferry.store.backend import Backend
from docferry.store.database import Database
from docferry.store.sqlite import SqliteFile

if TYPE_CHECKING:
    from docferry.store.postgresql import PostgresServer


@asynccontextmanager
async def open_database(
    location: Path | str, patience_s: float = float("inf"), host: str | None = None
) -> AsyncIterator[Database]:
    """Open a SQLite file (a path) or a PostgreSQL database (a URL); create or upgrade it first.

    Raises StateError if the database cannot be used.

    The writer waits `patience_s` seconds for a full disk or a lock: a daemon without limit, an interactive command
    briefly.
    """
    host = host or platform.node()
    database = Database(await anyio.to_thread.run_sync(_prepare, location, host), patience_s, host)
    try:
        async with anyio.create_task_group() as group:
            try:  # the writer ends only after `close`, also if this opening is cancelled
                opened = anyio.Event()
                group.start_soon(database.serve, opened, name="database writer")
                await opened.wait()
                yield database
            finally:
                database.close()
    finally:
        with anyio.CancelScope(shield=True):  # an open connection has a thread, and the interpreter would wait for it
            await database.dispose()


def _prepare(location: Path | str, host: str) -> Backend:
    if isinstance(location, Path):
        schema.prepare(location)
        return SqliteFile(location)
    return prepare_server(location, host)


def prepare_server(url: str, host: str) -> PostgresServer:
    """Return a PostgreSQL server after creating or upgrading its schema for a host.

    Raises StateError if the server cannot be used.
    """
    server: PostgresServer = _driver().prepare(url, host)
    return server


def open_server(url: str) -> PostgresServer:
    """Return a PostgreSQL server without connecting to it. Raises StateError if its driver is missing."""
    server: PostgresServer = _driver().PostgresServer(url)
    return server


def _driver() -> ModuleType:
    try:
        from docferry.store import postgresql  # imported here, because its driver is an extra
    except ImportError as error:
        raise StateError(
            "database_url needs the PostgreSQL driver; install it with: pip install 'docferry[postgresql]'"
        ) from error
    return postgresql
