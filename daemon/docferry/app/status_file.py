"""Publish the figures of a running daemon: a small file for `status`, and a line for systemd."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docferry.clock import ServerClock, iso
from docferry.model import escaped
from docferry.settings.outbox import Outbox
from docferry.store import locks
from docferry.store.state_dir import overwrite_file, replace_file

if TYPE_CHECKING:  # `status` reads the file and must not import the application
    from docferry.app.application import Application

#: Interval between two checks for changed figures, seconds.
EVERY = 2.0
#: Interval at which an unchanged file is touched, seconds.
TOUCHED_EVERY_S = 10.0
#: The largest number of unsettled files that the file names.
NAMED = 20


def snapshot(app: Application, started: float) -> dict[str, Any]:
    """Return the current figures of the daemon; times are wall seconds."""
    return {
        "pid": os.getpid(),
        "started": started,
        "in_flight": app.scheduler.in_flight,
        "remotes": {
            name: {
                "limit": remote.health.limit,
                "remaining": remote.health.remaining,
                "reset": remote.health.reset,
                "clock_offset": clock_offset(app, name),
                "last_answer": remote.health.last_answer,
                "in_flight": app.scheduler.in_flight_at(name),
                "rate": _rounded(app.telemetry.rate(name)),
            }
            for name, remote in app.remotes.items()
        },
        "mappings": {name: _mapping(app, name) for name in _names(app)},
        "trouble": app.database.alarm,
    }


def clock_offset(app: Application, remote: str) -> float | None:
    """Return the seconds by which a remote's clock is ahead of this machine's, None if unknown."""
    offset = app.remotes[remote].health.clock_offset
    if offset is None or not isinstance(app.clock, ServerClock):
        return offset
    return offset + app.clock.now() - app.clock.local()


def summary(app: Application) -> str:
    """Return one line for the STATUS of systemd."""
    stopped = sum(state.problem is not None for state in app.reconciler.folders.values())
    parts = [f"{app.scheduler.in_flight} in flight", f"{app.uploader.counters.uploaded} sent"]
    if app.gate_manager.closed:
        parts.append("closed: " + ", ".join(sorted(app.gate_manager.closed)))
    if stopped:
        parts.append(f"{stopped} mappings stopped")
    if (alarm := app.database.alarm) is not None:
        parts.append(alarm)
    return ", ".join(parts)


def write(state_dir: Path, status_file: dict[str, Any]) -> bool:
    """Replace the whole file, and return whether it could be written.

    On a full disk the file is overwritten in place, so that `status` can report the full disk.
    """
    path, said = state_dir / "status.json", json.dumps(status_file)
    try:
        replace_file(path, said)
    except OSError:
        try:
            overwrite_file(path, said)
        except OSError:
            return False
    return True


def read_status(state_dir: Path) -> dict[str, Any] | None:
    """Return the last figures of a running daemon; None if no daemon runs."""
    pid = locks.running(state_dir)
    if pid is None:
        return None
    said: dict[str, Any] = {"started": None, "remotes": {}, "mappings": {}}
    with suppress(OSError, ValueError, RecursionError):  # the daemon has just started, or its file is damaged
        written = json.loads((state_dir / "status.json").read_text(encoding="utf-8"))
        said |= written if isinstance(written, dict) else {}
    return said | {"pid": pid}


def keep_fresh(state_dir: Path) -> None:
    """Touch the file, so that `docferry health` can recognise a hanging daemon."""
    path = state_dir / "status.json"
    with suppress(OSError):
        if time.time() - path.stat().st_mtime >= TOUCHED_EVERY_S:
            os.utime(path)


def age(state_dir: Path) -> float | None:
    """Return the seconds since the daemon wrote or touched its file; None if there is no file."""
    try:
        return max(time.time() - (state_dir / "status.json").stat().st_mtime, 0.0)
    except OSError:
        return None


def forget(state_dir: Path) -> None:
    """Remove the file at the end of the daemon."""
    with suppress(OSError):  # a remaining file is recognised as old, because no process holds the lock
        (state_dir / "status.json").unlink()


def _names(app: Application) -> list[str]:
    states = app.reconciler.state
    idle = {
        name
        for name, upload in app.uploads.items()
        if isinstance(upload, Outbox) and states(name).problem is None and not states(name).known
    }
    return [*(name for name in app.uploads if name not in idle), *(download.name for download in app.downloads)]


def _rounded(rate: float | None) -> float | None:
    """Round to two digits, so that a slowly changing figure does not rewrite the file each time."""
    return None if rate is None else float(f"{rate:.2g}")


def _mapping(app: Application, name: str) -> dict[str, Any]:
    state = app.reconciler.state(name)
    problems = chain(state.subfolders.values(), app.reconciler.planner.refused.get(name, {}).values())
    unsettled = app.reconciler.debouncer.unsettled(name)
    return {
        "problem": state.problem or next(problems, None) or app.after_upload.problem(name),
        "left_out": state.left_out,
        "watch": state.watch if name in app.uploads else "on a schedule",
        "last_scan": iso(state.last_scan),
        "scan_seconds": round(state.reading, 3) if name in app.uploads else None,
        "unsettled": [[escaped(path), iso(since)] for path, since in unsettled[:NAMED]],
        "unsettled_files": len(unsettled),
    }
