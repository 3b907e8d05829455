"""Run the alerts and the heartbeat of a running daemon. Imported only if receivers or a heartbeat are configured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import anyio
import anyio.to_thread
from msgspec.structs import replace

from docferry.alerts.conditions import Facts
from docferry.alerts.digest import Totals
from docferry.alerts.heartbeat import Heartbeat
from docferry.alerts.notifier import Notifier, Sources
from docferry.alerts.receivers import open_receiver
from docferry.app import status_file
from docferry.app.application import Application
from docferry.app.figures import figures
from docferry.app.running import RunningDaemon
from docferry.clock import ServerClock
from docferry.settings import Settings, missing_keys
from docferry.store.alerts import Alerts
from docferry.store.owners import Process
from docferry.store.queue_view import QueueSnapshot
from docferry.store.verification import Verifications

_DAY_S = 86_400.0


async def run(daemon: RunningDaemon) -> None:
    """Observe conditions, and send alerts and heartbeats, until cancelled."""
    app = daemon.app
    settings = app.settings
    rows = Alerts(app.database, settings.queue_host)
    receivers = [open_receiver(each, app.clock) for each in settings.alerts.to]
    sources = Sources(partial(_facts, daemon), partial(_totals, daemon, rows), app.telemetry.alert_failed)
    notifier = Notifier(settings.alerts, rows, receivers, sources, app.clock)
    async with anyio.create_task_group() as group:
        group.start_soon(notifier.run, name="alerts")
        if settings.heartbeat.is_set:
            group.start_soon(Heartbeat(settings.heartbeat).run, notifier, daemon, name="alerts heartbeat")


async def _facts(daemon: RunningDaemon) -> Facts:
    """Return the present facts. Facts that cannot be read are unknown, and begin and end no condition."""
    app = daemon.app
    try:
        queue = await daemon.queue.snapshot()
        missing = await Verifications(app.database, app.clock).absent()
    except Exception as error:  # noqa: BLE001 - a database that cannot be read is a condition of its own
        return replace(await _outside_the_queue(daemon), queue_problem=f"the database cannot be read: {error}")
    limit = app.clock.now() - app.settings.alerts.oldest_due
    overdue: dict[str, tuple[int, float]] = {}
    for due in queue.due:
        if due.since < limit:
            number, oldest = overdue.get(due.mapping, (0, due.since))
            overdue[due.mapping] = number + due.documents, min(oldest, due.since)
    return replace(
        await _outside_the_queue(daemon),
        held=queue.held,
        overdue=overdue,
        missing=missing,
        gates=list(queue.gates.values()),
        projected_finish=_projected(daemon, queue),
        silent_hosts=silent_hosts(queue.hosts, app.settings.host_name),
    )


def silent_hosts(processes: Sequence[Process], host: str) -> dict[str, float]:
    """Return the hosts without a recent heartbeat that `host` reports, with the wall seconds of the last heartbeat.

    Only the next running host in the order of names reports a silent host, so that receivers get one message.
    """
    newest: dict[str, float] = {}
    for process in processes:
        newest[process.host] = max(process.heartbeat, newest.get(process.host, 0.0))
    alive = {process.host for process in processes if process.is_alive} | {host}
    return {
        name: at
        for name, at in newest.items()
        if name not in alive and host == min(alive, key=lambda other: (other < name, other))
    }


async def _outside_the_queue(daemon: RunningDaemon) -> Facts:
    """Return the facts that need no database."""
    app = daemon.app
    scanned = app.scan_scheduler.first_round.is_set()
    limit, unsettled = app.settings.alerts.oldest_due, app.reconciler.debouncer.unsettled
    still_written = {name: number for name in app.uploads if (number := len(unsettled(name, at_least=limit)))}
    offsets = {name: offset for name in app.remotes if (offset := status_file.clock_offset(app, name)) is not None}
    if isinstance(app.clock, ServerClock):
        offsets["database"] = app.clock.now() - app.clock.local()
    return Facts(
        missing_keys=await anyio.to_thread.run_sync(_missing_keys, app.settings),
        folders=_folders(app) if scanned else None,
        still_written=still_written if scanned else None,
        disk_free=await anyio.to_thread.run_sync(_free, app.settings),
        queue_problem=app.database.alarm,
        clock_offsets=offsets,
        notices=app.receipts.notices,
    )


async def _totals(daemon: RunningDaemon, rows: Alerts) -> Totals:
    """Return the figures of the digest."""
    queue = await daemon.queue.snapshot()
    return Totals(
        uploaded=await rows.uploaded_since(daemon.app.clock.now() - _DAY_S),
        due=sum(due.documents for due in queue.due),
        held=sum(number for _, _, number in queue.held),
        gates=len(queue.gates),
        oldest_due=min((due.since for due in queue.due), default=None),
        projected_finish=_projected(daemon, queue),
        extra=await daemon.app.receipts.digest_lines(),
    )


def _projected(daemon: RunningDaemon, queue: QueueSnapshot) -> dict[str, float]:
    """Return the time at which each remote will have all due documents, wall seconds."""
    remotes = figures(daemon.app.settings, queue, daemon.status())["remotes"]
    found = {remote["remote"]: remote["projected_finish"] for remote in remotes}
    return {name: datetime.fromisoformat(at).timestamp() for name, at in found.items() if at is not None}


def _folders(app: Application) -> dict[str, str]:
    """Return the problems of upload folders and of downloads, by mapping."""
    found = {}
    for name in [*app.uploads, *(download.name for download in app.downloads)]:
        state = app.reconciler.state(name)
        if (problem := state.problem or next(iter(state.subfolders.values()), None)) is not None:
            found[name] = problem
    return found


def _missing_keys(settings: Settings) -> dict[str, str]:
    """Return a sentence for each remote without a key."""
    sentences = missing_keys(settings, settings.secrets())
    return {remote: sentence for remote in settings.remotes for sentence in sentences if sentence.startswith(remote)}


def _free(settings: Settings) -> int | None:
    try:
        return shutil.disk_usage(settings.state_dir).free
    except OSError:
        return None
