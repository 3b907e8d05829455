"""`docferry status`: asks the queue and the daemon how things stand; what needs a person comes last, so it is seen."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from docferry.app.status_file import read_status
from docferry.cli import args, status_view
from docferry.cli.output import Screen, rendered
from docferry.cli.queue import open_queue
from docferry.clock import iso
from docferry.model import Gate, State, escaped
from docferry.settings import Settings
from docferry.store.gates import Gates
from docferry.store.reports import Reports

#: How often `--watch` shows it afresh, seconds: on a terminal, and in a pipe.
REDRAWN, PRINTED = 1.0, 2.0
Figures = dict[str, Any]


def command(asked: Namespace) -> int:
    settings, screen = args.load(asked.config), Screen()
    if not asked.watch:
        _tell(screen, anyio.run(gathered, settings), as_json=asked.json)
        return 0
    try:
        anyio.run(_watch, settings, screen, asked.json)
    except KeyboardInterrupt:
        return 0  # that is how watching ends
    return 0


async def gathered(settings: Settings) -> Figures:
    """Everything that `status --json` tells, see docs/json.md."""
    status_file = await anyio.to_thread.run_sync(read_status, settings.state_dir)
    counts: dict[str, dict[str, int]] = {}
    arrivals: dict[str, int] = {}
    held: list[tuple[str, str, int]] = []
    gates: Mapping[str, Gate] = {}
    async with open_queue(settings) as database:
        if database is not None:
            reports = Reports(database)
            counts, arrivals = await reports.counts(), await reports.arrivals()
            held, gates = await reports.held_reasons(), await Gates(database).all()
    return {
        "time": iso(time.time()),
        "running": None if status_file is None else {"pid": status_file["pid"], "since": iso(status_file["started"])},
        "trouble": None if status_file is None else status_file.get("trouble"),
        "documents": {state.value: sum(found.get(state, 0) for found in counts.values()) for state in State},
        "uploads": _uploads(settings, counts, status_file or {}),
        "downloads": _downloads(settings, arrivals, status_file or {}),
        "held": [{"mapping": mapping, "reason": reason, "count": number} for mapping, reason, number in held],
        "remotes": _remotes(settings, status_file or {}),
        "gates": [_gate(gates[key]) for key in sorted(gates)],
    }


def _uploads(settings: Settings, counts: dict[str, dict[str, int]], status_file: Figures) -> list[Figures]:
    configured = {upload.name: upload for upload in settings.uploads}
    rows = []
    for name in dict.fromkeys([*configured, *sorted(counts)]):
        upload = configured.get(name)
        said = status_file.get("mappings", {}).get(name, {})
        rows.append(
            {
                "mapping": name,
                "configured": upload is not None,
                "to": None if upload is None else upload.to,
                "folder": None if upload is None else escaped(upload.folder),
                "documents": {state.value: counts.get(name, {}).get(state, 0) for state in State},
                "problem": said.get("problem") if status_file or upload is None else _missing(upload.root),
                "watch": said.get("watch"),
                "last_scan": said.get("last_scan"),
                "unsettled": [{"path": path, "since": since} for path, since in said.get("unsettled", [])],
            }
        )
    return rows


def _missing(root: Path) -> str | None:
    """Without a daemon nobody watches the folder: whether it is there can be seen all the same."""
    try:
        return None if root.is_dir() else f"{escaped(str(root))} is not there; make it, or mount it"
    except OSError as error:
        return f"{escaped(str(root))} cannot be read: {error.strerror}"


def _downloads(settings: Settings, arrivals: dict[str, int], status_file: Figures) -> list[Figures]:
    configured = {download.name: download for download in settings.downloads}
    rows = []
    for name in dict.fromkeys([*configured, *sorted(arrivals)]):
        download = configured.get(name)
        said = status_file.get("mappings", {}).get(name, {})
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


def _remotes(settings: Settings, status_file: Figures) -> list[Figures]:
    rows = []
    for name in sorted(settings.remotes):
        said = status_file.get("remotes", {}).get(name, {})
        rows.append(
            {
                "remote": name,
                "limit": said.get("limit"),
                "remaining": said.get("remaining"),
                "reset": iso(said.get("reset")),
                "clock_offset": said.get("clock_offset"),
                "last_answer": iso(said.get("last_answer")),
                "in_flight": said.get("in_flight", 0),
            }
        )
    return rows


def _gate(gate: Gate) -> Figures:
    return {
        "gate": gate.key,
        "reason": gate.reason,
        "detail": gate.detail,
        "since": iso(gate.since),
        "next_probe": iso(gate.until),
        "probes": gate.tries,
    }


def _tell(screen: Screen, figures: Figures, *, as_json: bool) -> None:
    if as_json:
        screen.write(json.dumps(figures, ensure_ascii=False) + "\n")
    else:
        screen.show(*status_view.blocks(figures, time.time()))


async def _watch(settings: Settings, screen: Screen, as_json: bool) -> None:
    if as_json or not screen.tty:
        while True:
            _tell(screen, await gathered(settings), as_json=as_json)
            if not as_json:
                screen.write("\n")
            await anyio.sleep(PRINTED)
    from rich.console import Group
    from rich.live import Live

    with Live(console=screen.console(), auto_refresh=False, screen=True) as live:
        while True:
            blocks = status_view.blocks(await gathered(settings), time.time())
            live.update(Group(*map(rendered, blocks)), refresh=True)
            await anyio.sleep(REDRAWN)
