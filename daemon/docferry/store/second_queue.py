"""Find a second queue of the same configuration: documents in both would be sent twice."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from docferry.model import escaped
from docferry.settings import Settings
from docferry.settings.sources import default_state_dirs

_FIX: Final = "set state_dir in the configuration to the folder that is right, and move the other one away"
#: Longest wait for a lock of a program that uses the other queue, seconds.
_TIMEOUT_S: Final = 1.0


def second_queues(settings: Settings) -> list[str]:
    """Return a sentence for each other default state folder with a queue of these mappings."""
    used = escaped(str(settings.state_dir))
    return [
        f"{escaped(str(folder))} holds a second queue of this configuration, beside {used}: "
        f"what both send arrives twice; {_FIX}"
        for folder in _candidates(settings)
        if _knows_mappings(folder / "docferry.db", [upload.name for upload in settings.uploads])
    ]


def _candidates(settings: Settings) -> Iterator[Path]:
    base = settings.path.parent if settings.path is not None else Path.cwd()
    folders = default_state_dirs(os.environ, base)
    for folder in dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders):
        if folder != Path(os.path.realpath(settings.state_dir)):
            yield folder


def _knows_mappings(database: Path, names: list[str]) -> bool:
    """Return whether a database has documents of a mapping; False for an unreadable database."""
    try:
        if not database.is_file():
            return False
        location = f"file:{quote(os.fsencode(database))}?mode=ro"
        with closing(sqlite3.connect(location, uri=True, timeout=_TIMEOUT_S)) as connection:
            query = "SELECT EXISTS (SELECT 1 FROM document WHERE mapping = ?)"
            return any(connection.execute(query, (name,)).fetchone()[0] for name in names)
    except (OSError, sqlite3.Error):
        return False
