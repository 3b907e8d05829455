"""Verify the sent documents: once for a command, or repeatedly in the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio

from docferry import logs
from docferry.app.application import Application
from docferry.app.remotes import open_remotes
from docferry.clock import Clock, SystemClock
from docferry.errors import DocferryError
from docferry.settings import Settings
from docferry.store.database import Database
from docferry.store.transfers import Transfers
from docferry.store.verification import Verdict, Verifications
from docferry.upload.verifier import Verifier

log = logs.get("verify")

#: The pause before an interrupted round continues, seconds.
AGAIN_S: Final = 3600.0


@asynccontextmanager
async def open_verifier(settings: Settings, database: Database) -> AsyncIterator[Verifier]:
    """Return a verifier with its own connections."""
    clock: Clock = SystemClock()
    async with AsyncExitStack() as stack:
        remotes = open_remotes(settings, clock)
        for remote in remotes.values():
            stack.push_async_callback(remote.aclose)
        transfers, rows = Transfers(database, clock, "verify"), Verifications(database, clock)
        yield Verifier(remotes, transfers, rows, clock, _reserve(settings))


async def run(app: Application, every: float) -> None:
    """Verify all documents once in `every` seconds, until cancelled.

    Uploads and the verifier share limits and quota.
    """
    rows = Verifications(app.database, app.clock)
    verifier = Verifier(app.remotes, app.transfers, rows, app.clock, _reserve(app.settings))
    while True:
        wait = min(every, AGAIN_S)
        try:
            wait = max(await rows.last_done() + every - app.clock.now(), 0.0)
            if not wait:
                report = await verifier.run()
                await _tell(rows, report.progress.present, report.stopped)
                wait = min(every, AGAIN_S) if report.stopped else every
        except DocferryError as error:
            log.warning("verify_stopped", f"{error}; tried again")
        await anyio.sleep(wait)


async def _tell(rows: Verifications, present: int, stopped: str | None) -> None:
    if stopped is not None:
        log.warning("verify_stopped", f"{stopped}; it continues later")
        return
    found = await rows.found()
    for each in found:
        if each.verdict in (Verdict.MISSING, Verdict.CHANGED):
            log.error(each.verdict, each.detail, mapping=each.mapping, remote_name=each.remote_name)
    log.info("verified", present=present, others=len(found))


def _reserve(settings: Settings) -> dict[str, float]:
    return {"codat": settings.codat.quota_reserve}
