"""List the actions of a pass without performing them, for `sync --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from msgspec import Struct

from docferry.app.application import database_location, select_mappings
from docferry.app.remotes import RULES
from docferry.clock import SystemClock
from docferry.detect.debounce import Debouncer
from docferry.detect.left_out import LeftOut, unwanted
from docferry.detect.planner import plan, validate
from docferry.detect.screening import Screening, inspector
from docferry.errors import SourceError, SourceUnreadable, SourceVanished
from docferry.files import scan
from docferry.files.folder_thread import run_in_folder
from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.model import Reason, SeenFile, State
from docferry.settings import Settings, Upload
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.reports import Reports, Row

#: The states of documents that a pass processes, with the action for each.
_ACTIONS: Final = {
    "waiting": "upload",
    "leased": "upload",
    "sending": "upload",
    "doubtful": "ask the remote",
    "asking": "ask the remote",
    "held": "held",
}
_CHUNK: Final = 1000


class DryRunRow(Struct, frozen=True):
    """Describe one file and the action that a pass would perform on it."""

    mapping: str
    path: bytes
    size: int
    would: str  # "upload" | "ask the remote" | "unchanged" | "held" | "still being written" | "left out" (many files)
    to: str
    remote_name: str
    reason: str | None


async def dry_run(settings: Settings, *, mappings: Sequence[str] = ()) -> list[DryRunRow]:
    """Return a row for every document of these mappings. Raises FolderError if a folder cannot be read."""
    uploads, _ = select_mappings(settings, mappings)
    async with AsyncExitStack() as stack:
        database = None
        location = database_location(settings)
        if isinstance(location, str) or location.exists():
            database = await stack.enter_async_context(open_database(location, host=settings.host_name))
        return [row for upload in uploads.values() for row in await _DryRun(upload, database).rows()]


class _DryRun:
    """List the actions on one mapping."""

    def __init__(self, upload: Upload, database: Database | None) -> None:
        self._upload = upload
        self._documents = None if database is None else Documents(database, SystemClock())
        self._reports = None if database is None else Reports(database)
        self._debouncer = Debouncer(SystemClock())

    async def rows(self) -> list[DryRunRow]:
        """Return a row for each document in the folder."""
        upload = self._upload
        upload.assert_answering()
        listings = await run_in_folder(
            Root.of(upload), lambda: [listing for chunk in scan.walk(Root.of(upload), upload) for listing in chunk]
        )
        open_rows = await self._open_rows()
        rows: list[DryRunRow] = []
        left_out = LeftOut()
        for listing in listings:
            left_out.add_listing(listing)
            left_out.add_unwanted(upload, unwanted(upload, listing))
            known = await self._known(listing.folder)
            for entry in listing.files:
                seen_file = listing.seen_file(entry)
                if not upload.wanted(seen_file.path):
                    continue
                if entry not in known:
                    rows += await self._new(seen_file)
                elif (queued := open_rows.get(seen_file.path)) is not None:
                    rows.append(self._queued(seen_file, queued))
                else:
                    rows.append(self._row(seen_file, "unchanged"))
        left_out.documents = len(rows)
        return rows + [DryRunRow(upload.name, b"", 0, "left out", "", "", text) for text in left_out.sentences(upload)]

    async def _known(self, folder: bytes) -> Collection[object]:
        if self._documents is None:
            return ()
        return (await self._documents.known(self._upload.name, [folder])).get(folder, ())

    async def _open_rows(self) -> dict[bytes, Row]:
        """Return the documents of the mapping that are neither sent nor gone, by path."""
        found: dict[bytes, Row] = {}
        after, more = 0, self._reports is not None
        while more and self._reports is not None:
            rows = await self._reports.rows(mapping=self._upload.name, states=list(_ACTIONS), limit=_CHUNK, after=after)
            found |= {row.path: row for row in rows}
            more = len(rows) == _CHUNK
            after = rows[-1].id if rows else after
        return found

    def _queued(self, seen_file: SeenFile, row: Row) -> DryRunRow:
        reason = ": ".join(part for part in (row.reason, row.detail) if part) or None
        verdict = validate(self._upload, seen_file, RULES)
        if row.state == State.WAITING and isinstance(verdict, Planned):  # a retry by a person changes no rule
            return self._row(seen_file, "held", name=row.remote_name, reason=verdict.detail)
        return self._row(seen_file, _ACTIONS[row.state], name=row.remote_name, reason=reason)

    async def _new(self, seen_file: SeenFile) -> list[DryRunRow]:
        """Return the row of a file that is new or changed; None if the file vanished."""
        if not self._debouncer.offer(self._upload.name, seen_file, self._upload.settle):
            return [self._row(seen_file, "still being written")]
        verdict = validate(self._upload, seen_file, RULES)
        if isinstance(verdict, Planned) and verdict.reason is not Reason.EMPTY:
            return [self._row(seen_file, "held", reason=verdict.detail)]
        try:
            read = partial(hash_file, Root.of(self._upload), seen_file.path, inspect=inspector(self._upload))
            found = await run_in_folder(Root.of(self._upload), read)
        except SourceVanished:
            return []
        except SourceUnreadable as error:
            return [self._row(seen_file, "held", reason=str(error))]
        except SourceError:
            return [self._row(seen_file, "still being written")]
        if found.digests is None or found.no_writer is False:
            return [self._row(seen_file, "still being written", reason="a program has it open for writing")]
        if isinstance(verdict, Planned):
            return [self._row(seen_file, "held", reason=verdict.detail)]
        as_read = SeenFile(seen_file.folder, seen_file.name, found.stamp)
        planned = plan(self._upload, as_read, verdict, found.digests, time.time())
        screened = Screening(SystemClock()).screen(self._upload, planned, found.fault)
        if screened is None:
            return [self._row(seen_file, "still being written", reason="it is cut short")]
        return [await self._planned(screened)]

    async def _planned(self, planned: Planned) -> DryRunRow:
        to = planned.target.lane if planned.target else ""
        documents = self._documents
        if documents is not None and await documents.is_queued(to, planned.dedupe_key, planned.sha256):
            return self._row(planned.seen_file, "unchanged", to=to)
        if planned.reason is not None:
            return self._row(planned.seen_file, "held", reason=planned.detail)
        return self._row(planned.seen_file, "upload", to=to, name=planned.remote_name)

    def _row(
        self, seen_file: SeenFile, would: str, *, to: str = "", name: str = "", reason: str | None = None
    ) -> DryRunRow:
        upload = self._upload
        return DryRunRow(upload.name, seen_file.path, seen_file.stamp.size, would, to or upload.to, name, reason)
