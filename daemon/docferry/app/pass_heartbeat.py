"""Send the heartbeat of a one-shot pass: URL/start, then URL/EXITCODE."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from msgspec import Struct

from docferry.errors import DatabaseBusy, DocferryError
from docferry.settings import Settings


class PassResult(Struct):
    """Hold the exit code of a pass; 70 until the pass sets it."""

    exit_code: int = 70
    text: str = ""


@asynccontextmanager
async def pass_heartbeat(settings: Settings) -> AsyncIterator[PassResult]:
    """Ping URL/start now and URL/EXITCODE at the end. The pass waits only for the last ping."""
    result = PassResult()
    if not settings.heartbeat.is_set:
        yield result
        return
    from docferry.alerts.heartbeat import Heartbeat  # a pass without a heartbeat skips the import

    heartbeat = Heartbeat(settings.heartbeat)
    started = anyio.Event()

    async def start() -> None:
        try:
            await heartbeat.ping("/start", "")
        finally:
            started.set()

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        try:
            yield result
        except DocferryError as error:
            result.exit_code = 75 if isinstance(error, DatabaseBusy) else 2
            result.text = str(error)
            raise
        finally:
            with anyio.CancelScope(shield=True):  # limited by the timeout of a ping
                await started.wait()
                await heartbeat.ping(f"/{result.exit_code}", result.text)
