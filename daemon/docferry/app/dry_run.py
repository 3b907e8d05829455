"""Lists what a pass would do, without doing it: for `sync --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio.to_thread

from docferry.app.application import database_path, select_mappings
from docferry.app.remotes import RULES
from docferry.clock import SystemClock
from docferry.detect.debounce import Debouncer
from docferry.detect.planner import plan, validate
from docferry.errors import SourceError
from docferry.files import scan
from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.model import SeenFile
from docferry.settings import Settings, Upload
from docferry.store.database import open_database
from docferry.store.documents import Documents
from docferry.store.enqueue import Planned


@dataclass(frozen=True, slots=True)
class DryRunRow:
    """One file and the action that a pass would take."""

    mapping: str
    path: bytes
    size: int
    would: str  # "upload" | "unchanged" | "held" | "still being written"
    to: str
    remote_name: str
    reason: str | None


async def dry_run(settings: Settings, *, mappings: Sequence[str] = ()) -> list[DryRunRow]:
    """Return every document of these mappings. Raises FolderError where a folder cannot be read."""
    uploads, _ = select_mappings(settings, mappings)
    async with AsyncExitStack() as stack:
        documents = None
        if database_path(settings).exists():
            database = await stack.enter_async_context(open_database(database_path(settings)))
            documents = Documents(database, SystemClock())
        return [row for upload in uploads.values() for row in await _mapping(upload, documents)]


async def _mapping(upload: Upload, documents: Documents | None) -> list[DryRunRow]:
    listings = await anyio.to_thread.run_sync(
        lambda: [listing for chunk in scan.walk(Root.of(upload), enters=upload.enters) for listing in chunk]
    )
    rows: list[DryRunRow] = []
    planned: list[Planned] = []
    debouncer = Debouncer(SystemClock())
    for listing in listings:
        known = (
            (await documents.known(upload.name, [listing.folder])).get(listing.folder, set()) if documents else set()
        )
        for seen in listing.files:
            seen_file = listing.seen_file(seen)
            if not upload.wanted(seen_file.path):
                continue
            if seen in known:
                rows.append(_row(upload, seen_file, "unchanged"))
            elif not debouncer.offer(upload.name, seen_file, upload.settle):
                rows.append(_row(upload, seen_file, "still being written"))
            else:
                found = await _plan(upload, seen_file)
                planned += [found] if found else []
    for each in planned:
        rows.append(await _judged(upload, each, documents))
    return rows


async def _plan(upload: Upload, seen_file: SeenFile) -> Planned | None:
    verdict = validate(upload, seen_file, RULES)
    if isinstance(verdict, Planned):
        return verdict
    try:
        found = await anyio.to_thread.run_sync(hash_file, Root.of(upload), seen_file.path)
    except SourceError:
        return None
    if found.digests is None:
        return None
    return plan(upload, SeenFile(seen_file.folder, seen_file.name, found.stamp), verdict, found.digests, 0.0)


async def _judged(upload: Upload, planned: Planned, documents: Documents | None) -> DryRunRow:
    if planned.reason is not None:
        return _row(upload, planned.seen_file, "held", reason=planned.detail)
    to = planned.target.lane if planned.target else ""
    if documents is not None and await documents.is_queued(to, planned.dedupe_key, planned.sha256):
        return _row(upload, planned.seen_file, "unchanged", to=to)
    return _row(upload, planned.seen_file, "upload", to=to, name=planned.remote_name)


def _row(
    upload: Upload, seen_file: SeenFile, would: str, *, to: str = "", name: str = "", reason: str | None = None
) -> DryRunRow:
    return DryRunRow(upload.name, seen_file.path, seen_file.stamp.size, would, to or upload.to, name, reason)
