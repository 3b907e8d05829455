"""Serve the metrics while the daemon runs, and write the textfile."""

from __future__ import annotations

import anyio

from docferry.app.running import RunningDaemon
from docferry.web import endpoints, server, textfile
from docferry.web.metrics import EventMetrics


class MetricsService:
    """Serve `/metrics`, `/healthz` and `/readyz`, and write the textfile."""

    def __init__(self, events: EventMetrics) -> None:
        self._events = events

    async def __call__(self, daemon: RunningDaemon) -> None:
        """Run until cancelled."""
        wanted, hosts = daemon.app.settings.metrics, daemon.app.settings.web.hosts
        self._events.expect(daemon.app.settings)
        async with anyio.create_task_group() as group:
            if wanted.textfile is not None:
                daemon.listening["textfile"] = str(wanted.textfile)
                group.start_soon(textfile.keep_written, wanted.textfile, daemon, self._events)
            if wanted.listen is not None:
                app = endpoints.application(daemon, self._events, wanted.listen, hosts)
                group.start_soon(server.serve_for_ever, "metrics", wanted.listen, app, daemon.listening)
