"""Keeps intake fed: hints at once, files when they have come to rest, and every folder again on a schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from docferry import logs
from docferry.clock import Clock
from docferry.detect.reconciler import FolderState, Reconciler
from docferry.errors import FolderError
from docferry.settings import Upload
from docferry.wakeups import Wakeups

if TYPE_CHECKING:
    from docferry.files.watch.watcher import WatchEvent

log = logs.get("lookout")

#: Folders read at once: a share that hangs takes one of these and no more.
SCANS_AT_ONCE = 4
#: A folder without a watch, or with a problem, is read again at least so often, seconds.
UNWATCHED = 10.0
#: And more often where it is read quickly: after so many times as long as that took, the folders sharing this pace.
UNREAD, SOONEST, SHARED = 50, 1.0, 0.02
#: A folder that asked to be read again waits so long for the storm to pass, seconds.
BREATHER = 0.2


class ScanScheduler:
    """The tasks between the watcher and intake."""

    def __init__(
        self, reconciler: Reconciler, uploads: Mapping[str, Upload], clock: Clock, wakeups: Wakeups, rescan: float
    ) -> None:
        self._reconciler = reconciler
        self._uploads = uploads
        self._clock = clock
        self._rescan = rescan
        self._wakeups = wakeups
        self._scan_now = {name: anyio.Event() for name in uploads}
        self._scanning = anyio.CapacityLimiter(SCANS_AT_ONCE)
        self._unscanned = set(uploads)
        self.first_round = anyio.Event()  # every folder was read once, or can't be
        self.beat = clock.steady()
        if not uploads:
            self.first_round.set()

    def hint(self, mapping: str, paths: set[bytes]) -> None:
        """These paths may have changed."""
        if mapping in self._uploads:
            self._wakeups.check_paths(mapping, paths)

    def scan_soon(self, mapping: str) -> None:
        """Hints may have been lost."""
        self._scan_now[mapping].set()

    async def run(self) -> None:
        """Watch, then scan, then go on until cancelled."""
        async with anyio.create_task_group() as group:
            for upload in self._uploads.values():
                self._start(group, upload)
            await self._serve()

    async def round(self) -> list[str]:
        """One scan of every folder: what can't be read, a sentence each."""
        problems: list[str] = []

        async def one(upload: Upload) -> None:
            async with self._scanning:
                try:
                    await self._reconciler.scan(upload)
                except FolderError as error:
                    problems.append(f"{upload.name}: {error}")
                problems.extend(
                    f"{upload.name}: {text}" for text in self._reconciler.state(upload.name).subfolders.values()
                )

        async with anyio.create_task_group() as group:
            for upload in self._uploads.values():
                group.start_soon(one, upload)
        return problems

    async def serve_hints(self) -> None:
        """What has gathered until now: hinted paths, and files whose time has come."""
        for mapping, paths in self._wakeups.take_paths().items():
            if mapping not in self._uploads:
                continue
            try:
                await self._reconciler.look(self._uploads[mapping], paths)
            except FolderError:
                self.scan_soon(mapping)  # the scan says what is wrong with the folder
        await self._reconciler.ripen(self._uploads)

    async def _serve(self) -> None:
        while True:
            self._wakeups.detection.clear()
            self.beat = self._clock.steady()
            await self.serve_hints()
            if self._wakeups.has_paths:
                continue
            due = self._reconciler.debouncer.next_due()
            nap = UNWATCHED if due is None else max(0.0, due - self._clock.steady())
            with anyio.move_on_after(min(nap, UNWATCHED)):
                await self._wakeups.detection.wait()

    def _start(self, group: TaskGroup, upload: Upload) -> None:
        group.start_soon(self._watch, upload, name=f"watch {upload.name}")
        group.start_soon(self._rescans, upload, name=f"scan {upload.name}")

    async def _watch(self, upload: Upload) -> None:
        # Here, as a single pass watches nothing and must not wait for it to be imported.
        from docferry.files.watch.watcher import Armed, Degraded, Hint, Lost, watch

        state = self._reconciler.state(upload.name)

        def on_event(event: WatchEvent) -> None:
            if isinstance(event, Hint):
                self.hint(upload.name, event.paths)
                return
            if isinstance(event, Degraded):
                log.warning("watch_degraded", event.reason, mapping=upload.name)
                state.watch = f"scanning every {min(self._rescan, UNWATCHED):g} s or sooner: {event.reason}"
            elif isinstance(event, Armed):
                state.watch = "watching"
            elif isinstance(event, Lost):
                log.info("watch_lost", event.reason, mapping=upload.name)
            self.scan_soon(upload.name)

        if upload.poll:
            state.watch = f"scanning every {min(self._rescan, UNWATCHED):g} s, as `poll` asks"
        await watch(upload.root, on_event, poll=upload.poll, clock=self._clock)

    async def _rescans(self, upload: Upload) -> None:
        state = self._reconciler.state(upload.name)
        while True:
            asked = self._scan_now[upload.name] = anyio.Event()
            async with self._scanning:
                with contextlib.suppress(FolderError):  # intake has said so, and status shows it
                    await self._reconciler.scan(upload)
            self._unscanned.discard(upload.name)
            if not self._unscanned:
                self.first_round.set()
            with anyio.move_on_after(self._pause(upload, state)):
                await asked.wait()
            await anyio.sleep(BREATHER)

    def _pause(self, upload: Upload, state: FolderState) -> float:
        """Seconds until a folder is to be read again. Where nothing else tells of what is new, that is its delay."""
        crowded = self._reconciler.debouncer.take_overflow(upload.name)
        if upload.poll or crowded:
            return min(self._rescan, UNWATCHED)
        if state.watch == "watching" and state.problem is None:
            return self._rescan
        sooner = max(UNREAD * state.reading, SHARED * len(self._uploads), SOONEST)
        return min(self._rescan, UNWATCHED, sooner)
