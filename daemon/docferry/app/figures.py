"""Collect the figures that `status --json`, the metrics, the status page and the alerts share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from docferry import projection
from docferry.clock import iso
from docferry.model import Gate, Reason, State, escaped
from docferry.projection import Backlog
from docferry.settings import Settings, Upload
from docferry.settings.outbox import outboxes
from docferry.store.owners import Process
from docferry.store.queue_view import QueueSnapshot

Figures = dict[str, Any]

#: The reasons of gates that usually need a person, not only time, to open.
PERSON_REASONS: Final = frozenset(
    {Reason.KEY, Reason.ACCOUNT, Reason.COMPANY, Reason.CONNECTION, Reason.REDIRECTED, Reason.ANTIVIRUS}
)


def figures(settings: Settings, queue: QueueSnapshot, daemon: Mapping[str, Any] | None) -> Figures:
    """Return the object of `status --json`, see docs/json.md. `daemon` is the status file, None without a daemon."""
    said = daemon or {}
    return {
        "time": iso(time.time()),
        "running": None if daemon is None else {"pid": daemon["pid"], "since": iso(daemon["started"])},
        "trouble": said.get("trouble"),
        "documents": {state.value: sum(c.get(state, 0) for c in queue.documents.values()) for state in State},
        "uploads": _uploads(settings, queue, said),
        "downloads": _downloads(settings, queue.arrivals, said),
        "held": [{"mapping": mapping, "reason": reason, "count": number} for mapping, reason, number in queue.held],
        "remotes": _remotes(settings, queue, said),
        "gates": [_gate(queue.gates[key]) for key in sorted(queue.gates)],
        "hosts": [host_row(process) for process in queue.hosts],
    }


def host_row(process: Process) -> Figures:
    """Return a process that shares the queue, in the format of `hosts --json` and `status --json`."""
    return {
        "host": process.host,
        "pid": process.pid,
        "version": process.version,
        "since": iso(process.started),
        "heartbeat": iso(process.heartbeat),
        "heartbeat_age_seconds": round(process.age, 3),
        "alive": process.is_alive,
        "clock_offset_seconds": process.clock_offset,
        "holds": process.held,
        "scans": list(process.scans),
        "unreadable": list(process.unreadable),
    }


def needs_person(gate: Gate) -> bool:
    """Return whether a person has to act before the gate can open."""
    return gate.reason in PERSON_REASONS


def _uploads(settings: Settings, queue: QueueSnapshot, daemon: Mapping[str, Any]) -> list[Figures]:
    configured = {upload.name: upload for upload in settings.uploads}
    boxes = outboxes(settings.uploads, settings.state_dir, settings.host_name)
    oldest: dict[str, float] = {}
    for due in queue.due:
        oldest[due.mapping] = min(due.since, oldest.get(due.mapping, due.since))
    rows = []
    for name in dict.fromkeys([*configured, *sorted(queue.documents)]):
        upload = configured.get(name) or boxes.get(name)
        said = daemon.get("mappings", {}).get(name, {})
        unsettled = said.get("unsettled", [])
        rows.append(
            {
                "mapping": name,
                "configured": upload is not None,
                "to": None if upload is None else upload.to,
                "folder": None if upload is None else escaped(upload.folder),
                "documents": {state.value: queue.documents.get(name, {}).get(state, 0) for state in State},
                "oldest_due": iso(oldest.get(name)),
                "problem": said.get("problem") if daemon or upload is None else _missing(upload),
                "watch": said.get("watch"),
                "last_scan": said.get("last_scan"),
                "scan_seconds": said.get("scan_seconds"),
                "left_out": said.get("left_out", []),
                "unsettled": [{"path": path, "since": since} for path, since in unsettled],
                "unsettled_files": said.get("unsettled_files", len(unsettled)),
            }
        )
    return rows


def _missing(upload: Upload) -> str | None:
    """Return the problem of a missing folder. Without a daemon no watcher reports it, so check the disk here."""
    if upload.unanswered is not None:
        return upload.unanswered
    root = upload.root
    try:
        return None if root.is_dir() else f"{escaped(str(root))} does not exist; create it, or mount it"
    except OSError as error:
        return f"{escaped(str(root))} cannot be read: {error.strerror}"


def _downloads(settings: Settings, arrivals: Mapping[str, int], daemon: Mapping[str, Any]) -> list[Figures]:
    configured = {download.name: download for download in settings.downloads}
    rows = []
    for name in dict.fromkeys([*configured, *sorted(arrivals)]):
        download = configured.get(name)
        said = daemon.get("mappings", {}).get(name, {})
        rows.append(
            {
                "mapping": name,
                "configured": download is not None,
                "from": None if download is None else download.source,
                "folder": None if download is None else escaped(download.folder),
                "brought": arrivals.get(name, 0),
                "problem": said.get("problem"),
                "last_round": said.get("last_scan"),
            }
        )
    return rows


def _remotes(settings: Settings, queue: QueueSnapshot, daemon: Mapping[str, Any]) -> list[Figures]:
    rows = []
    for name in sorted(settings.remotes):
        said = daemon.get("remotes", {}).get(name, {})
        oldest = queue.oldest.get(name)
        rows.append(
            {
                "remote": name,
                "limit": said.get("limit"),
                "remaining": said.get("remaining"),
                "reset": iso(said.get("reset")),
                "clock_offset": said.get("clock_offset"),
                "last_answer": iso(said.get("last_answer")),
                "in_flight": said.get("in_flight", 0),
                "due": sum(due.documents for due in queue.due if due.remote == name),
                "oldest_due": None
                if oldest is None
                else {
                    "id": oldest.id,
                    "mapping": oldest.mapping,
                    "path": escaped(oldest.path),
                    "since": iso(oldest.since),
                },
                "per_minute": None if said.get("rate") is None else round(said["rate"] * 60, 1),
                "projected_finish": iso(_projected(settings, queue, name, said)),
            }
        )
    return rows


def _projected(settings: Settings, queue: QueueSnapshot, remote: str, said: Mapping[str, Any]) -> float | None:
    gate, batch = queue.gates.get(remote), settings.codat.batch if remote == "codat" else 1
    remaining, limit = said.get("remaining"), said.get("limit")
    reserve = (limit or 0) * (settings.codat.quota_reserve if remote == "codat" else 0.0)
    backlog = Backlog(
        documents=sum(due.documents for due in queue.due if due.remote == remote),
        rate=said.get("rate"),
        per_minute=settings.codat.requests_per_minute * batch if remote == "codat" else None,
        batch=batch,
        quota_limit=limit,
        quota_left=None if remaining is None else max(remaining - reserve, 0.0),
        quota_reset=said.get("reset"),
        closed_until=None if gate is None else gate.until,
        needs_person=gate is not None and needs_person(gate),
    )
    return projection.finish(backlog, time.time())


def _gate(gate: Gate) -> Figures:
    return {
        "gate": gate.key,
        "reason": gate.reason,
        "detail": gate.detail,
        "since": iso(gate.since),
        "next_probe": iso(gate.until),
        "probes": gate.tries,
        "needs_person": needs_person(gate),
    }
