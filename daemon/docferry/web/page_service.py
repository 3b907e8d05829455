"""Serve the status page while the daemon runs."""

from __future__ import annotations

import logging

from docferry.app.running import RunningDaemon
from docferry.web import server
from docferry.web.activity import ActivityLog
from docferry.web.page import StatusPage
from docferry.web.sessions import Sessions


class PageService:
    """Serve the status page; sessions and activity survive a reload."""

    def __init__(self) -> None:
        self._sessions = Sessions()
        self._activity = ActivityLog()
        logging.getLogger().addHandler(self._activity)

    async def __call__(self, daemon: RunningDaemon) -> None:
        """Run until cancelled."""
        listen = daemon.app.settings.web.listen
        if listen is not None:
            app = StatusPage(daemon, self._sessions, self._activity).application()
            await server.serve_for_ever("web", listen, app, daemon.listening)
