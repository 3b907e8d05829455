"""The command `docferry hosts`: the machines that share the queue."""

from __future__ import annotations

import json
from argparse import Namespace

import anyio

from docferry.cli import args
from docferry.cli.output import BAD, GOOD, Cell, Screen, Table, line, span
from docferry.cli.queue import open_queue
from docferry.clock import iso
from docferry.settings import Settings
from docferry.store.owners import Process, processes


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
            screen.write(json.dumps(_row(process), ensure_ascii=False) + "\n")
        return 0
    if settings.database_url is None:
        screen.show(line("the queue belongs to this machine alone; set database_url to share it"))
    elif not found:
        screen.show(line("no docferry runs on this queue"))
    else:
        screen.show(_table(found))
    return 0


def _table(found: list[Process]) -> Table:
    table = Table(("host", "pid", "version", "heartbeat", "holds"))
    for process in found:
        heartbeat = Cell(f"{span(process.age)} ago", GOOD if process.is_alive else BAD)
        holds = ", ".join(f"{count} {state}" for state, count in sorted(process.held.items()))
        table.rows.append((process.host, str(process.pid), process.version, heartbeat, holds or "nothing"))
    return table


def _row(process: Process) -> dict[str, object]:
    return {
        "host": process.host,
        "pid": process.pid,
        "version": process.version,
        "since": iso(process.started),
        "heartbeat": iso(process.heartbeat),
        "heartbeat_age_seconds": round(process.age, 3),
        "alive": process.is_alive,
        "holds": process.held,
    }
