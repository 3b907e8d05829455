"""Provide what the tests of network faults share: quick environments, documents, rows and gates."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from app_env import AppEnv, digest
from crash.process_pool import ProcessPool

UPLOAD = "codat.upload"


def quick(app_env: AppEnv) -> AppEnv:
    """Shorten the waits of an environment."""
    app_env.settings["settle"] = '"20ms"'
    app_env.codat |= {"list_lag": '"150ms"', "timeout": '"2s"'}
    return app_env


def lay(folder: Path, *names: str, size: int = 0) -> Counter[tuple[str, str]]:
    """Write documents with their names as content; return the documents that the remote must have."""
    made: Counter[tuple[str, str]] = Counter()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = name.encode().ljust(size, b".")
        path.write_bytes(content)
        made[path.name, digest(content)] += 1
    return made


def rows(process_pool: ProcessPool, app_env: AppEnv) -> list[dict[str, Any]]:
    child = process_pool.spawn(app_env, "list", "--json")
    assert child.wait() == 0, child.text()
    return [json.loads(line) for line in child.out.read_text().splitlines()]


def gates(app_env: AppEnv) -> list[tuple[str, float]]:
    """Return the closed gates, with their times."""
    with closing(sqlite3.connect(app_env.state / "docferry.db")) as read:
        return read.execute("SELECT key, until FROM gate").fetchall()
