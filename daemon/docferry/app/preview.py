"""What a pass would do, without doing it: for `sync --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio.to_thread

from docferry.app.house import chosen, database_path
from docferry.app.shores import RULES
from docferry.clock import SystemClock
from docferry.files import scan
from docferry.files.digest import digests
from docferry.files.quiet import Quiet
from docferry.model import Sighting
from docferry.settings import Settings, Upload
from docferry.store.database import open_database
from docferry.store.documents import Documents
from docferry.store.plans import Planned
from docferry.work.planner import judge, plan


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One file and what would become of it."""

    mapping: str
    path: bytes
    size: int
    would: str  # "upload" | "unchanged" | "held" | "still being written"
    to: str
    remote_name: str
    reason: str | None


async def preview(settings: Settings, *, mappings: Sequence[str] = ()) -> list[PreviewRow]:
    """Every wanted file of these mappings. FolderError when a folder can't be read."""
    uploads, _ = chosen(settings, mappings)
    async with AsyncExitStack() as stack:
        documents = None
        if database_path(settings).exists():
            database = await stack.enter_async_context(open_database(database_path(settings)))
            documents = Documents(database, SystemClock())
        return [row for upload in uploads.values() for row in await _mapping(upload, documents)]


async def _mapping(upload: Upload, documents: Documents | None) -> list[PreviewRow]:
    listings = await anyio.to_thread.run_sync(
        lambda: [listing for chunk in scan.walk(upload.root, enters=upload.enters) for listing in chunk]
    )
    rows: list[PreviewRow] = []
    planned: list[Planned] = []
    quiet = Quiet(SystemClock())
    for listing in listings:
        known = (
            (await documents.known(upload.name, [listing.folder])).get(listing.folder, set()) if documents else set()
        )
        for seen in listing.files:
            sighting = listing.sighting(seen)
            if not upload.wanted(sighting.path):
                continue
            if seen in known:
                rows.append(_row(upload, sighting, "unchanged"))
            elif not quiet.offer(upload.name, sighting, upload.settle):
                rows.append(_row(upload, sighting, "still being written"))
            else:
                found = await _plan(upload, sighting)
                planned += [found] if found else []
    for each in planned:
        rows.append(await _judged(upload, each, documents))
    return rows


async def _plan(upload: Upload, sighting: Sighting) -> Planned | None:
    verdict = judge(upload, sighting, RULES)
    if isinstance(verdict, Planned):
        return verdict
    (found,) = await anyio.to_thread.run_sync(digests, upload.root, [sighting.path])
    if isinstance(found, Exception) or found.digests is None:
        return None
    return plan(upload, Sighting(sighting.folder, sighting.name, found.stamp), verdict, found.digests, 0.0)


async def _judged(upload: Upload, planned: Planned, documents: Documents | None) -> PreviewRow:
    if planned.reason is not None:
        return _row(upload, planned.sighting, "held", reason=planned.detail)
    to = planned.target.lane if planned.target else ""
    if documents is not None and await documents.is_queued(to, planned.once):
        return _row(upload, planned.sighting, "unchanged", to=to)
    return _row(upload, planned.sighting, "upload", to=to, name=planned.remote_name)


def _row(
    upload: Upload, sighting: Sighting, would: str, *, to: str = "", name: str = "", reason: str | None = None
) -> PreviewRow:
    return PreviewRow(upload.name, sighting.path, sighting.stamp.size, would, to or upload.to, name, reason)
