"""Run `docferry status`: print the figures of queue and daemon, with problems for a person last."""

from __future__ import annotations

import json
import time
from argparse import Namespace

import anyio
import anyio.to_thread

from docferry.app.figures import Figures, figures
from docferry.app.status_file import read_status
from docferry.cli import args, status_view
from docferry.cli.output import Screen, rendered
from docferry.cli.queue import open_queue
from docferry.settings import Settings
from docferry.store.queue_view import QueueSnapshot, queue_snapshot

#: Interval of `--watch` on a terminal, and in a pipe, seconds.
REDRAWN, PRINTED = 1.0, 2.0


def command(asked: Namespace) -> int:
    """Print the figures, once or until Ctrl-C, and return the exit code."""
    settings, screen = args.load(asked.config), Screen()
    if not asked.watch:
        _tell(screen, anyio.run(gathered, settings), as_json=asked.json)
        return 0
    try:
        anyio.run(_watch, settings, screen, asked.json)
    except KeyboardInterrupt:
        return 0  # Ctrl-C is the normal end of watching
    return 0


async def gathered(settings: Settings) -> Figures:
    """Return the object of `status --json`, see docs/json.md."""
    daemon = await anyio.to_thread.run_sync(read_status, settings.state_dir)
    queue = QueueSnapshot()
    async with open_queue(settings) as database:
        if database is not None:
            queue = await database.read(queue_snapshot)
    return figures(settings, queue, daemon)


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
