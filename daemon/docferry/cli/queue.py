"""Open the queue for commands that read it, also while a daemon runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from docferry.errors import StateError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.store import schema
from docferry.store.database import Database
from docferry.store.opening import open_database

#: How long a command waits for an unreachable PostgreSQL server, seconds.
SERVER_TIMEOUT_S = 10.0


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Database | None]:
    """Yield the database, or None if there is none; create neither folder nor database."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        async with open_database(url, SERVER_TIMEOUT_S, settings.host_name) as database:
            yield database
        return
    path = settings.state_dir / "docferry.db"
    if not _exists(path):
        schema.assert_not_moved(path)  # otherwise all documents would seem to be gone
        yield None
        return
    async with open_database(path) as database:
        yield database


def _exists(path: Path) -> bool:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise StateError(_owned_by_another(path)) from None
    except OSError as error:
        raise StateError(f"{escaped(str(path))} cannot be read: {error.strerror}") from error
    # The file is empty while a first start creates the database.
    if not os.access(path, os.R_OK | os.W_OK):
        raise StateError(_owned_by_another(path))
    return status.st_size > 0


def _owned_by_another(path: Path) -> str:
    folder = escaped(str(path.parent))
    return f"the state folder {folder} belongs to another user; run docferry as that user: sudo -u USER docferry …"
