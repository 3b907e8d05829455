"""Run `docferry metrics`: print the metrics of the running daemon, else of the queue.

The format is the classic text format, which `promtool check metrics` reads. The listener also serves OpenMetrics.
"""

from __future__ import annotations

import http.client
import socket
from argparse import Namespace
from pathlib import Path

import anyio

from docferry.app.status_file import read_status
from docferry.cli import args, streams
from docferry.cli.output import complain
from docferry.cli.queue import open_queue
from docferry.errors import DocferryError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.settings.listeners import address

_TIMEOUT_S = 30.0


def command(asked: Namespace) -> int:
    """Write the metrics to stdout."""
    settings = args.load(asked.config)
    streams.write_bytes(_from_daemon(settings) or anyio.run(_from_queue, settings))
    return 0


def _from_daemon(settings: Settings) -> bytes | None:
    """Return the daemon's metrics with its event counters; None if the daemon serves none."""
    status = read_status(settings.state_dir) or {}
    listen = status.get("listening", {}).get("metrics")
    if listen is None:
        return None
    connection = _Connection(listen)
    try:
        connection.request("GET", "/metrics", headers={"accept": "text/plain"})
        response = connection.getresponse()
        return response.read() if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None  # the daemon is stopping: read the queue instead
    finally:
        connection.close()


async def _from_queue(settings: Settings) -> bytes:
    from docferry.web.facts import scrape_without_daemon

    async with open_queue(settings) as database:
        return await scrape_without_daemon(settings, database)


def write_textfile(settings: Settings, path: Path) -> None:
    """Write the textfile once, unless a running daemon writes it. Failures are logged and keep the exit code."""
    status = read_status(settings.state_dir) or {}
    if status.get("listening", {}).get("textfile") == str(path):
        return
    from docferry.web.textfile import replace

    try:
        replace(path, anyio.run(_from_queue, settings))
    except (OSError, DocferryError) as error:
        complain(f"metrics.textfile: {escaped(str(path))} was not written: {error}")


class _Connection(http.client.HTTPConnection):
    """Connect to a loopback port or a Unix socket."""

    def __init__(self, listen: str) -> None:
        self._where = address(listen)
        super().__init__(self._where.host or "localhost", self._where.port or None, timeout=_TIMEOUT_S)

    def connect(self) -> None:
        """Connect to the socket if there is one, else to the port."""
        if self._where.path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._where.path)
