"""Run `docferry hosts`: list the machines that share the queue."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Final

import anyio

from docferry.app.figures import host_row
from docferry.cli import args
from docferry.cli.output import BAD, GOOD, WARN, Cell, Screen, Table, line, span
from docferry.cli.queue import open_queue
from docferry.settings import Settings
from docferry.store.owners import Process, processes

#: Smaller differences between clocks are not shown, seconds.
CLOCK_DEVIATION_S: Final = 5.0


def command(asked: Namespace) -> int:
    """Show the processes of all hosts; return the exit code."""
    return anyio.run(_hosts, args.load(asked.config), asked.json)


async def _hosts(settings: Settings, as_json: bool) -> int:
    screen, found = Screen(), list[Process]()
    if settings.database_url is not None:
        async with open_queue(settings) as database:
            found = [] if database is None else await processes(database)
    if as_json:
        for process in found:
            screen.write(json.dumps(host_row(process), ensure_ascii=False) + "\n")
        return 0
    if settings.database_url is None:
        screen.show(line("the queue belongs to this machine alone; set database_url to share it"))
    elif not found:
        screen.show(line("no docferry runs on this queue"))
    else:
        screen.show(_table(found))
    return 0


def _table(found: list[Process]) -> Table:
    table = Table(("host", "pid", "version", "heartbeat", "clock", "holds", "shared folders"), folds=frozenset({5, 6}))
    for process in found:
        heartbeat = Cell(f"{span(process.age)} ago", GOOD if process.is_alive else BAD)
        holds = ", ".join(f"{count} {state}" for state, count in sorted(process.held.items()))
        facts = process.host, str(process.pid), process.version, heartbeat, _clock(process)
        table.rows.append((*facts, holds or "nothing", _folders(process)))
    return table


def _clock(process: Process) -> str | Cell:
    """Return the offset of the host's clock from the server's."""
    offset = process.clock_offset
    if offset is None:
        return ""
    if abs(offset) < CLOCK_DEVIATION_S:
        return "right"
    return Cell(f"{span(abs(offset))} {'ahead' if offset > 0 else 'behind'}", WARN)


def _folders(process: Process) -> str | Cell:
    """Return the shared mappings that the process scans, and those that it cannot read."""
    parts = [f"scans {', '.join(process.scans)}"] if process.scans else []
    if not process.unreadable:
        return "; ".join(parts)
    return Cell("; ".join([*parts, f"cannot read {', '.join(process.unreadable)}"]), BAD)
