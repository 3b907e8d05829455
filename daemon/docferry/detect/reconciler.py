"""From the disk to the planner: compare with what is known, and wait for quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from docferry import logs
from docferry.clock import Clock
from docferry.detect.debounce import Debouncer
from docferry.detect.planner import Planner
from docferry.errors import FolderError, SourceUnreadable
from docferry.files import scan
from docferry.files.scan import Listing
from docferry.model import SeenFile, joined, parted
from docferry.remotes.protocol import Rules
from docferry.settings import Upload
from docferry.store.cursors import Cursors
from docferry.store.documents import Documents
from docferry.wakeups import Wakeups

log = logs.get("intake")

#: Files of a scan that are compared together: enough that their way to the database's thread counts for nothing.
COMPARED_AT_ONCE = 4000


@dataclass(slots=True)
class FolderState:
    """What is known of one mapping's folder, for `status`."""

    problem: str | None = None
    watch: str = "not watched yet"
    last_scan: float | None = None
    reading: float = 0.0  # seconds that the last scan took to read and compare, without what it planned
    known: int = 0  # files of the last scan that were known as they are
    subfolders: dict[bytes, str] = field(default_factory=dict)  # unreadable ones


@dataclass(slots=True)
class WalkResult:
    """What one walk met."""

    folders: set[bytes] = field(default_factory=set)  # read whole
    broken: set[bytes] = field(default_factory=set)  # read in part, or not at all
    known: int = 0  # files that were known as they are
    seconds: float = 0.0  # of reading and comparing


class Reconciler:
    """Brings what lies in the mapped folders into the queue. Nothing here touches a remote."""

    def __init__(
        self,
        *,
        documents: Documents,
        cursors: Cursors,
        rules: Mapping[str, Rules],
        clock: Clock,
        wakeups: Wakeups,
        adopt: float = 0.0,
    ) -> None:
        self._documents = documents
        self._cursors = cursors
        self._clock = clock
        self._wakeups = wakeups
        self.debouncer = Debouncer(clock)
        self.planner = Planner(
            documents=documents,
            cursors=cursors,
            rules=rules,
            clock=clock,
            wakeups=wakeups,
            wait=self._wait,
            adopt=adopt,
        )
        self.folders: dict[str, FolderState] = {}

    def state(self, mapping: str) -> FolderState:
        return self.folders.setdefault(mapping, FolderState())

    async def follow(self, upload: Upload) -> None:
        """Where a mapping leads is part of what was planned: when it leads elsewhere, everything is planned again."""
        subject = f"mapping/{upload.name}"
        leads = f"{upload.to} {upload.folder} {upload.company_id} {upload.connection_id}"
        known = await self._cursors.mark(subject)
        if known is not None and known != leads:
            await self._documents.forget_stamps(upload.name)
        if known != leads:
            await self._cursors.note(subject, leads)

    # -- the truth: a scan ---------------------------------------------------------------------------------------

    async def scan(self, upload: Upload) -> None:
        """Walk a mapping's folder and plan what is new. FolderError stops this mapping."""
        state = self.state(upload.name)
        try:
            walked = await self._walk(upload, scan.WHOLE, state)
            await self._forget_folders(upload, walked)
        except FolderError as error:
            if state.problem is None:
                log.error("folder_stopped", str(error), mapping=upload.name)
            state.problem = str(error)
            raise
        if state.problem is not None:
            log.info("folder_back", mapping=upload.name)
        state.problem = None
        state.known, state.reading = walked.known, walked.seconds
        state.subfolders = {folder: why for folder, why in state.subfolders.items() if folder in walked.broken}
        state.last_scan = self._clock.now()

    async def _walk(self, upload: Upload, starts: Sequence[bytes], state: FolderState) -> WalkResult:
        steps = scan.walk(upload.root, enters=upload.enters, starts=starts, chunk=COMPARED_AT_ONCE)
        walked = WalkResult()
        began = self._clock.steady()
        while chunk := await anyio.to_thread.run_sync(next, steps, None):
            if starts is scan.WHOLE and not (walked.folders or walked.broken):
                await self._assert_not_emptied(upload, chunk[0])
            self._report(upload, chunk, state)
            whole = [(listing.folder, listing.files) for listing in chunk if listing.problem is None]
            walked.broken.update(listing.folder for listing in chunk if listing.problem is not None)
            walked.folders.update(folder for folder, _ in whole)
            found = await self._documents.differences(upload.name, whole)
            walked.known += found.known
            if found.gone:
                gone = await anyio.to_thread.run_sync(_still_absent, upload.root, found.gone)
                await self._documents.vanished(upload.name, gone)
            walked.seconds += self._clock.steady() - began
            whole.clear()
            chunk.clear()  # the walk has it, too; planning takes its time, and a large folder would stay in memory
            while found.fresh:
                await self.sighted(upload, found.fresh[-COMPARED_AT_ONCE:])
                del found.fresh[-COMPARED_AT_ONCE:]
            began = self._clock.steady()
        return walked

    async def _assert_not_emptied(self, upload: Upload, root: Listing) -> None:
        if not root.files and not root.folders and await self._documents.any_present(upload.name):
            raise FolderError(
                f"{upload.root} is suddenly empty: is it mounted? If you emptied it yourself, "
                f"`docferry retry --mapping {upload.name}` says so"
            )

    def _report(self, upload: Upload, chunk: Sequence[Listing], state: FolderState) -> None:
        for listing in chunk:
            if listing.problem is None:
                state.subfolders.pop(listing.folder, None)
            elif state.subfolders.get(listing.folder) != listing.problem:
                state.subfolders[listing.folder] = listing.problem
                log.warning("subfolder_unreadable", listing.problem, mapping=upload.name)

    async def _forget_folders(self, upload: Upload, walked: WalkResult) -> None:
        """What lay in folders that are no longer there went with them; what can't be read is not touched."""
        for folder in await self._documents.folders(upload.name) - walked.folders:
            if any(folder == b or folder.startswith(b + b"/") or b == b"" for b in walked.broken):
                continue
            if await anyio.to_thread.run_sync(_is_walked, upload, folder):
                continue  # it came after the walk had been there
            known = (await self._documents.known(upload.name, [folder])).get(folder, set())
            await self._documents.vanished(upload.name, [joined(folder, look[0]) for look in known])

    # -- the hint: some paths ------------------------------------------------------------------------------------

    async def look(self, upload: Upload, paths: Iterable[bytes]) -> None:
        """Look at these paths now: what vanished first, so that a renamed file is followed."""
        seen, folders, absent = await anyio.to_thread.run_sync(_look_at, upload, list(paths))
        known = await self._documents.looks(upload.name, [*(s.path for s in seen), *absent])
        await self._documents.vanished(upload.name, [path for path in absent if path in known])
        fresh = [s for s in seen if known.get(s.path) != s.stamp]
        await self.sighted(upload, fresh)
        if folders:
            await self._walk(upload, folders, self.state(upload.name))

    # -- quiet ---------------------------------------------------------------------------------------------------

    async def sighted(self, upload: Upload, seen_files: Iterable[SeenFile]) -> None:
        """Plan those that are quiet; the others are watched until they are."""
        wanted = [s for s in seen_files if upload.wanted(s.path)]
        ready = [s for s in wanted if self.debouncer.offer(upload.name, s, upload.settle, by_watching=upload.poll)]
        if len(ready) < len(wanted):
            self._wakeups.debounce_changed()
        await self.planner.admit(upload, ready)

    async def ripen(self, uploads: Mapping[str, Upload]) -> None:
        """Look again at files whose time has come."""
        due = self.debouncer.due()
        if not due:
            return
        by_mapping: dict[str, list[SeenFile]] = {}
        looked = await anyio.to_thread.run_sync(
            lambda: [_seen(uploads[w.mapping].root, w.path) if w.mapping in uploads else None for w in due]
        )
        for watched, seen_file in zip(due, looked, strict=True):
            if (
                self.debouncer.recheck(watched, None if seen_file is None else seen_file.stamp)
                and seen_file is not None
            ):
                by_mapping.setdefault(watched.mapping, []).append(seen_file)
        for mapping, seen_files in by_mapping.items():
            with contextlib.suppress(FolderError):  # the next scan says what is wrong, and finds them when it is over
                await self.planner.admit(uploads[mapping], seen_files)

    def _wait(self, upload: Upload, seen_file: SeenFile) -> None:
        """It is not complete yet, whatever its stamps say: look at it again later."""
        self.debouncer.postpone(upload.name, seen_file, upload.settle, by_watching=upload.poll)
        self._wakeups.debounce_changed()


def _look_at(upload: Upload, paths: Sequence[bytes]) -> tuple[list[SeenFile], list[bytes], list[bytes]]:
    """What lies at these paths: files, folders to be walked, and paths where nothing is. A tree that comes is hinted
    at folder by folder: it is walked from its topmost one, once."""
    seen, folders, absent = [], set[bytes](), []
    for path in sorted(paths):  # a folder comes before what lies in it
        above = _parents(path)
        if not all(upload.enters(folder) for folder in above):
            continue
        try:
            seen_file = scan.look(upload.root, path)
        except SourceUnreadable:
            continue  # neither there nor gone: the next scan tells
        walked = not folders.isdisjoint(above)
        if seen_file is not None:
            seen += [] if walked else [seen_file]
        elif scan.is_folder(upload.root, path):
            if upload.enters(path) and not walked:
                folders.add(path)
        else:
            absent.append(path)
    return seen, list(folders), absent


def _still_absent(root: Path, paths: Sequence[bytes]) -> list[bytes]:
    """Of what a scan did not see, what is not there now: a file may have come, and been planned, right behind it."""
    absent = []
    for path in paths:
        with contextlib.suppress(SourceUnreadable):  # neither there nor gone: the next scan tells
            if scan.look(root, path) is None:
                absent.append(path)
    return absent


def _is_walked(upload: Upload, folder: bytes) -> bool:
    """Whether a walk reaches this folder now."""
    return all(upload.enters(each) for each in (folder, *_parents(folder))) and scan.is_folder(upload.root, folder)


def _seen(root: Path, path: bytes) -> SeenFile | None:
    """How a file looks; one that cannot be looked at now is for the next scan to tell of."""
    try:
        return scan.look(root, path)
    except (FolderError, SourceUnreadable):
        return None


def _parents(path: bytes) -> list[bytes]:
    found = []
    while path := parted(path)[0]:
        found.append(path)
    return found
