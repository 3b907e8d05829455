"""Serve `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from docferry.app.running import RunningDaemon
from docferry.web import facts
from docferry.web.metrics import OPENMETRICS_TYPE, TEXT_TYPE, EventMetrics
from docferry.web.patience import Patience
from docferry.web.security import HostCheck, allowed_hosts


def application(daemon: RunningDaemon, events: EventMetrics, listen: str, hosts: Sequence[str]) -> Starlette:
    """Return the application for monitoring."""
    one_at_a_time = anyio.Lock()

    async def metrics(request: Request) -> Response:
        plain = _wants_plain(request.headers.get("accept", ""))
        async with one_at_a_time:
            content = await facts.scrape(daemon, events, plain=plain)
        return Response(content, headers={"content-type": TEXT_TYPE if plain else OPENMETRICS_TYPE})

    async def healthz(_request: Request) -> Response:
        return _verdict(daemon.is_alive, "alive", "scans or uploads have not moved for a minute")

    async def readyz(_request: Request) -> Response:
        trouble = daemon.app.database.trouble
        return _verdict(daemon.is_ready, "ready", trouble or "the first scan is not planned yet")

    routes = [Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    middleware = [
        Middleware(HostCheck, allowed=allowed_hosts(listen, hosts)),
        Middleware(Patience, database=daemon.app.database),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _wants_plain(accept: str) -> bool:
    """Return whether a client accepts only the plain format; without `Accept` it gets OpenMetrics."""
    return "text/plain" in accept and "openmetrics" not in accept


def _verdict(good: bool, word: str, problem: str) -> Response:
    return PlainTextResponse(f"{word if good else problem}\n", 200 if good else 503)
