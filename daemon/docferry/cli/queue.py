"""Opens the queue for those who only look: beside a running daemon too, and not at all where there is none."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from docferry.errors import StateError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.store.database import Database, open_database


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Database | None]:
    """The database; None when nothing was ever done here. Makes neither a state folder nor a database."""
    path = settings.state_dir / "docferry.db"
    if not _there(path):
        yield None
        return
    async with open_database(path) as database:
        yield database


def _there(path: Path) -> bool:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise StateError(_not_ours(path)) from None
    except OSError as error:
        raise StateError(f"{escaped(str(path))} cannot be read: {error.strerror}") from error
    # An empty file is one that a first start has only just made.
    if not os.access(path, os.R_OK | os.W_OK):
        raise StateError(_not_ours(path))
    return status.st_size > 0


def _not_ours(path: Path) -> str:
    folder = escaped(str(path.parent))
    return f"the state folder {folder} belongs to another user; run docferry as that user: sudo -u USER docferry …"
