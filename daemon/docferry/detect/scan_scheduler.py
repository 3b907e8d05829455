"""Schedule the reconciler: hinted paths at once, quiet files when due, and every folder at regular intervals."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup

from docferry import logs
from docferry.clock import Clock
from docferry.detect.reconciler import FolderState, Reconciler
from docferry.detect.shared_folders import SHARE_LOOK_S, SharedFolders
from docferry.detect.work_queue import PathBatch, WorkQueue
from docferry.errors import FolderError, StatementRefused
from docferry.files.safe_open import Root
from docferry.files.share import ShareLook
from docferry.settings import Upload
from docferry.settings.outbox import Outbox
from docferry.wakeups import Wakeups

log = logs.get("scan_scheduler")

#: Errors that were logged, and that `status` shows.
_REPORTED: Final = (FolderError, StatementRefused)
#: Folders that are scanned at once: a hanging share occupies one of these.
SCANS_AT_ONCE: Final = 4
#: Batches of hinted paths that are checked at once.
CHECKS_AT_ONCE: Final = 6
#: Large files that are checked at once, each of another mapping; only one is read at a time.
LARGE_AT_ONCE: Final = 4
#: The longest interval between scans of a folder that has no watch or has a problem, seconds.
UNWATCHED_S: Final = 10.0
#: The interval after a fast scan of such a folder: the largest of UNREAD times its duration, SOONEST_S, and SHARED_S
#: for each mapping.
UNREAD: Final = 50
SOONEST_S: Final = 1.0
SHARED_S: Final = 0.02
#: The pause after a scan of some top-level folders, as a multiple of the previous duration.
PARTIAL_REST: Final = 3
#: The delay between a request for a scan and the scan, so that many requests cause one scan.
GATHER_S: Final = 0.2


class ScanScheduler:
    """Run the tasks between the watcher and the reconciler."""

    def __init__(
        self,
        reconciler: Reconciler,
        uploads: Mapping[str, Upload],
        clock: Clock,
        wakeups: Wakeups,
        rescan: float,
        shares: SharedFolders,
    ) -> None:
        self._reconciler = reconciler
        self._uploads = uploads
        self._clock = clock
        self._wakeups = wakeups
        self._rescan = rescan
        self._shares = shares
        self._elected = {name: anyio.Event() for name, upload in uploads.items() if upload.shared}
        self._queue = WorkQueue()
        self._large_queue = WorkQueue(batch=1, per_mapping=1)
        self._scan_now = {name: anyio.Event() for name in uploads}
        self._scanning = anyio.CapacityLimiter(SCANS_AT_ONCE)
        self._unscanned = set(uploads)
        self._share_problems: dict[str, str] = {}
        self.first_round = anyio.Event()  # set once every folder was scanned or proved unreadable
        self.beat = clock.steady()
        if not uploads:
            self.first_round.set()

    def scan_soon(self, mapping: str) -> None:
        """Request a scan, because hints may have been lost."""
        self._scan_now[mapping].set()

    async def run(self) -> None:
        """Watch, scan, and continue until cancelled."""
        async with anyio.create_task_group() as group:
            for upload in self._uploads.values():
                self._start(group, upload)
            await self._serve()

    async def round(self) -> list[str]:
        """Scan every folder once; return one sentence for each folder that cannot be read."""
        problems: list[str] = []

        async def one(upload: Upload) -> None:
            async with self._scanning:
                try:
                    if upload.shared:
                        await self._look_at_share(upload)
                    await self._reconciler.scan(upload)
                except (FolderError, StatementRefused) as error:
                    problems.append(f"{upload.name}: {error}")
                subfolders = self._reconciler.state(upload.name).subfolders
                problems.extend(f"{upload.name}: {text}" for text in subfolders.values())

        async with anyio.create_task_group() as group:
            for upload in self._uploads.values():
                group.start_soon(one, upload)
        return problems

    async def serve_hints(self, *, large: bool = True) -> None:
        """Check all known paths: hinted ones, due files, then `large` files."""
        while True:
            self._gather()
            if (batch := self._queue.take()) is not None:
                await self._check(batch)
            elif large and (batch := self._large_queue.take()) is not None:
                await self._check(batch, large=True)
            else:
                return

    def _gather(self) -> None:
        """Move hinted paths and due files into the queue of paths to check.

        A file that changes constantly is checked once in each `settle`, however many hints arrive.
        """
        debouncer = self._reconciler.debouncer
        for mapping, paths in self._wakeups.take_paths().items():
            if mapping in self._uploads and self._shares.is_readable(mapping):
                self._queue.add(mapping, [path for path in paths if not debouncer.will_look_at(mapping, path)])
        for mapping, path in debouncer.due():
            if mapping in self._uploads:
                self._queue.add(mapping, [path])
        for mapping, paths in self._wakeups.take_large_paths().items():
            self._large_queue.add(mapping, paths)

    async def _check(self, batch: PathBatch, *, large: bool = False) -> None:
        try:
            await self._reconciler.check_paths(self._uploads[batch.mapping], batch.paths, large=large)
        except (FolderError, StatementRefused):
            self._drop(batch)
            self.scan_soon(batch.mapping)  # the scan reports the problem of the folder
        finally:
            (self._large_queue if large else self._queue).done(batch)

    def _drop(self, batch: PathBatch) -> None:
        for path in batch.paths:
            self._reconciler.debouncer.forget(batch.mapping, path)

    async def _serve(self) -> None:
        free, free_large = anyio.Semaphore(CHECKS_AT_ONCE), anyio.Semaphore(LARGE_AT_ONCE)

        async def check(batch: PathBatch, *, large: bool = False) -> None:
            try:
                await self._check(batch, large=large)
            finally:
                (free_large if large else free).release()
                self._wakeups.detection.set()

        async with anyio.create_task_group() as group:
            while True:
                self._wakeups.detection.clear()
                self.beat = self._clock.steady()
                self._gather()
                while self._queue and free.value and (batch := self._queue.take()) is not None:
                    free.acquire_nowait()
                    group.start_soon(check, batch, name=f"check {batch.mapping}")
                while free_large.value and (batch := self._large_queue.take()) is not None:
                    free_large.acquire_nowait()
                    group.start_soon(partial(check, batch, large=True), name=f"check large {batch.mapping}")
                due = self._reconciler.debouncer.next_due()
                wait = UNWATCHED_S if due is None else max(0.0, due - self._clock.steady())
                with anyio.move_on_after(min(wait, UNWATCHED_S)):
                    await self._wakeups.detection.wait()

    def _start(self, group: TaskGroup, upload: Upload) -> None:
        if isinstance(upload, Outbox):
            # The process that puts a document also plans it; the schedule finds documents after a crash.
            self._reconciler.state(upload.name).watch = "scanned on a schedule"
        else:
            group.start_soon(self._watch, upload, name=f"watch {upload.name}")
        if upload.shared:
            group.start_soon(self.follow_share, upload, name=f"share {upload.name}")
        group.start_soon(self._scans, upload, name=f"scan {upload.name}")

    async def _watch(self, upload: Upload) -> None:
        """Request checks and scans for the events of a mapping's folder, until cancelled."""
        # Imported here, because a single pass watches nothing and must not wait for the import.
        from docferry.files.watch.watcher import Armed, Degraded, Hint, Lost, watch

        state = self._reconciler.state(upload.name)
        if upload.unanswered is not None:
            return  # the mapping is watched after the folder has answered and the application was built again
        if upload.poll:  # the kernel reports no changes of a share, and polling by watchfiles would duplicate the scan
            state.watch = f"scanning every {self._pace:g} s, as `poll` asks"
            return
        async with watch(Root.of(upload), upload, self._clock) as events:
            async for event in events:
                if isinstance(event, Hint):
                    self._wakeups.check_paths(upload.name, event.paths)
                    continue
                if isinstance(event, Degraded):
                    self._degraded(upload.name, state, event.folders, event.reason)
                elif isinstance(event, Armed):
                    state.watch, state.unwatched = "watching", {}
                elif isinstance(event, Lost):
                    log.info("watch_lost", event.reason, mapping=upload.name)
                self.scan_soon(upload.name)

    async def follow_share(self, upload: Upload, *, elects: bool = True) -> None:
        """Check a shared folder repeatedly, and join the election of the host that scans it.

        Without `elects` this process scans no folders.
        """
        while True:
            scanned, looked = self._shares.scans(upload.name), None
            with contextlib.suppress(*_REPORTED):
                looked = await self._look_at_share(upload)
            if elects:
                with contextlib.suppress(*_REPORTED):
                    await self._shares.elect(upload, looked)
            self._elected[upload.name].set()
            if self._shares.scans(upload.name) and not scanned:
                log.info("scans_share", "this host scans the shared folder from now on", mapping=upload.name)
                self.scan_soon(upload.name)
            await self._clock.sleep(SHARE_LOOK_S)

    async def _look_at_share(self, upload: Upload) -> ShareLook:
        """Check whether this host can read a shared folder. Raises FolderError."""
        state = self._reconciler.state(upload.name)
        try:
            looked = await self._shares.look(upload)
        except FolderError as error:
            state.root = None
            if state.problem is None:
                log.error("folder_unavailable", str(error), mapping=upload.name)
            self._share_problems[upload.name] = state.problem = str(error)
            raise
        state.root = looked.identity
        if state.problem is not None and state.problem == self._share_problems.pop(upload.name, None):
            log.info("folder_available", "the folder can be read again", mapping=upload.name)
            state.problem = None
        return looked

    async def _is_scanned_elsewhere(self, upload: Upload) -> bool:
        """Return whether another host scans a shared mapping, or this host cannot read it."""
        if not upload.shared:
            return False
        await self._elected[upload.name].wait()
        return not self._shares.scans(upload.name)

    def _degraded(self, mapping: str, state: FolderState, folders: frozenset[bytes], reason: str) -> None:
        """Record that changes of these top-level folders (b"": of all) are not reported: they are scanned often."""
        if state.unwatched.keys() != folders:
            log.warning("watch_degraded", reason, mapping=mapping, folders=len(folders))
        state.unwatched = dict.fromkeys(folders, reason)
        if b"" in folders:
            state.watch = f"scanning every {self._pace:g} s or sooner: {reason}"
        else:
            state.watch = f"watching; {len(folders)} folders are scanned every {self._pace:g} s: {reason}"

    @property
    def _pace(self) -> float:
        """Return the longest time between two scans of folders without a watch, seconds."""
        return min(self._rescan, UNWATCHED_S)

    async def _scans(self, upload: Upload) -> None:
        """Scan a folder until cancelled: all of it every `rescan` or on request, unwatched parts more often."""
        state = self._reconciler.state(upload.name)
        last_whole = float("-inf")
        folders: set[bytes] = {b""}
        while True:
            asked = self._scan_now[upload.name] = anyio.Event()
            if await self._is_scanned_elsewhere(upload):
                self._scanned_once(upload)
                await asked.wait()
                continue
            began = self._clock.steady()
            async with self._scanning:
                with contextlib.suppress(*_REPORTED):  # the reconciler has logged it, and `status` shows it
                    if b"" in folders:
                        await self._reconciler.scan(upload)
                        last_whole = self._clock.steady()
                    else:
                        await self._reconciler.scan_folders(upload, folders)
            self._scanned_once(upload)
            dropped = self._reconciler.debouncer.take_overflow(upload.name)
            wait, folders = self._next_scan(upload, state, dropped, last_whole)
            wait = max(wait, PARTIAL_REST * (self._clock.steady() - began) if b"" not in folders else 0.0)
            with anyio.move_on_after(wait):
                await asked.wait()
            await anyio.sleep(GATHER_S)
            if asked.is_set():
                folders = {b""}

    def _scanned_once(self, upload: Upload) -> None:
        """Record that a folder was scanned, is unreadable, or is scanned by another host."""
        self._unscanned.discard(upload.name)
        if not self._unscanned:
            self.first_round.set()

    def _next_scan(
        self, upload: Upload, state: FolderState, dropped: set[bytes], last_whole: float
    ) -> tuple[float, set[bytes]]:
        """Return the seconds until the next scan, and its top-level folders (b"": all)."""
        whole = max(0.0, last_whole + self._rescan - self._clock.steady())
        if state.problem is not None or state.watch == "not watched yet" or b"" in state.unwatched:
            sooner = max(UNREAD * state.reading, SHARED_S * len(self._uploads), SOONEST_S)
            return min(self._pace, sooner), {b""}
        if upload.poll:
            return self._pace, {b""}
        partly = dropped | state.unwatched.keys()
        if partly and self._pace < whole:
            return self._pace, partly
        return whole, {b""}
