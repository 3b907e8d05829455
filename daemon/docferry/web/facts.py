"""Collect facts about the process and its disk, which the metrics add to the figures of `status --json`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from docferry.app import last_sync
from docferry.app.application import database_path
from docferry.app.figures import figures
from docferry.app.running import RunningDaemon
from docferry.app.status_file import read_status
from docferry.settings import Settings
from docferry.store.database import Database
from docferry.store.queue_view import QueueSnapshot, queue_snapshot
from docferry.web.metrics import EventMetrics, Facts, Snapshot, render


async def scrape(daemon: RunningDaemon, events: EventMetrics, *, plain: bool = False) -> bytes:
    """Return the metrics of the running daemon as text."""
    told = await daemon.figures()
    facts: Facts = {
        "database_writable": float(daemon.app.database.trouble is None),
        "config_last_reload_successful": float(daemon.reload_ok),
        "start_timestamp_seconds": daemon.started,
    }
    settings = daemon.app.settings
    return await anyio.to_thread.run_sync(
        lambda: render(Snapshot(told, facts | disk_facts(settings), events), plain=plain)
    )


async def scrape_without_daemon(settings: Settings, database: Database | None) -> bytes:
    """Return the plain text of the queue and of the status file; only the daemon counts events."""
    queue = QueueSnapshot() if database is None else await database.read(queue_snapshot)
    status = await anyio.to_thread.run_sync(read_status, settings.state_dir)
    facts: Facts = {}
    if status is not None:
        facts["config_last_reload_successful"] = float(status.get("reload_ok", True))
        facts["start_timestamp_seconds"] = status["started"]
    told = figures(settings, queue, status)
    return await anyio.to_thread.run_sync(lambda: render(Snapshot(told, facts | disk_facts(settings)), plain=True))


def disk_facts(settings: Settings) -> Facts:
    """Return sizes, free space and the end of the last one-shot `sync`."""
    path = database_path(settings)
    last = last_sync.read(settings.state_dir)
    return {
        "database_size_bytes": _size((path, path.with_name(f"{path.name}-wal"))),
        "state_free_bytes": _free(settings.state_dir),
        "sync_last_run_timestamp_seconds": None if last is None else last.ended,
        "sync_last_success_timestamp_seconds": None if last is None else last.succeeded,
        "sync_last_exit_code": None if last is None else float(last.exit_code),
    }


def _size(paths: Iterable[Path]) -> float | None:
    found = None
    for path in paths:
        with suppress(OSError):
            found = (found or 0.0) + path.stat().st_size
    return found


def _free(folder: Path) -> float | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return float(found.f_bavail * found.f_frsize)
