"""Watch mapped folders for changes, which hurry the scan; report when changes are missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

from docferry.clock import Clock
from docferry.files.safe_open import Root
from docferry.files.scan import EVERY_FOLDER, FolderFilter
from docferry.files.watch.events import Armed, Degraded, Hint, Lost, WatchEvent, WatchEvents
from docferry.files.watch.thread import WatchThread
from docferry.files.watch.tree import WatchedRoot

__all__ = ["Armed", "Degraded", "Hint", "Lost", "WatchEvent", "Watcher", "watch"]

THREADS: Final = 2
HUNG_S: Final = 30.0  # without progress
LOOK_S: Final = 5.0  # between two checks for progress


class Watcher:
    """Share a few threads between all mappings of a run."""

    def __init__(self, clock: Clock, *, hung: float = HUNG_S) -> None:
        self._clock = clock
        self._hung = hung
        self._threads = [WatchThread(clock, hung) for _ in range(THREADS)]

    @asynccontextmanager
    async def watch(self, root: Root, folders: FolderFilter = EVERY_FOLDER) -> AsyncIterator[WatchEvents]:
        """Watch the chosen folders of a root until the context ends. Yields the events."""
        thread = min(self._threads, key=len)
        with WatchEvents() as events:
            watched = WatchedRoot(root, folders, events)
            thread.guard(watched)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._oversee, thread)
                    yield events
                    group.cancel_scope.cancel()
            finally:
                await _leave(thread, watched)

    async def _oversee(self, thread: WatchThread) -> None:
        """Replace a hanging thread."""
        while True:
            await anyio.sleep(min(LOOK_S, self._hung / 2))
            seen = thread.beat
            if self._clock.steady() - seen < 2 * self._hung * thread.patience:
                continue
            await anyio.sleep(min(1.0, self._hung / 2))  # after a pause of the whole machine, let the thread run first
            thread.replace(seen)


def watch(root: Root, folders: FolderFilter, clock: Clock) -> AbstractAsyncContextManager[WatchEvents]:
    """Watch a root with the shared watcher of this run."""
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = Watcher(clock)
        _watcher.set(watcher)
    return watcher.watch(root, folders)


async def _leave(thread: WatchThread, root: WatchedRoot) -> None:
    ending = thread.leave(root)
    if ending is not None:
        with anyio.CancelScope(shield=True):  # the thread ends within one step
            await to_thread.run_sync(ending.join, 1.0)


_watcher: RunVar[Watcher] = RunVar("docferry.watcher")
