"""Watch mapped folders for changes, which hurry the scan; tell when changes go unreported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
import watchfiles
from anyio import to_thread
from anyio.lowlevel import RunVar

from docferry.clock import Clock
from docferry.files.safe_open import Root
from docferry.files.watch.events import Armed, Degraded, Hint, Lost, WatchEvent
from docferry.files.watch.folder_watch import WatchFunction
from docferry.files.watch.thread import WatchThread
from docferry.files.watch.tree import WatchedRoot

__all__ = ["Armed", "Degraded", "Hint", "Lost", "WatchEvent", "Watcher", "watch"]

THREADS: Final = 2
HUNG_S: Final = 30.0  # without a sign of life
LOOK_S: Final = 5.0  # between two looks for one


def everything(_folder: bytes) -> bool:
    """Enter every folder."""
    return True


class Watcher:
    """Shares a few threads between all mappings of a run."""

    def __init__(self, clock: Clock, *, watch_function: WatchFunction = watchfiles.watch, hung: float = HUNG_S) -> None:
        self._clock = clock
        self._hung = hung
        self._threads = [WatchThread(clock, watch_function, hung) for _ in range(THREADS)]

    async def watch(
        self,
        root: Root,
        on_event: Callable[[WatchEvent], None],
        enters: Callable[[bytes], bool] = everything,
    ) -> None:
        """Call `on_event`, on the event loop, with the events of one root until cancelled.

        Folders that `enters` refuses are not watched.
        """
        loop = asyncio.get_running_loop()
        active = True

        def deliver(event: WatchEvent) -> None:
            if active:
                on_event(event)

        def tell(event: WatchEvent) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(deliver, event)

        thread = min(self._threads, key=len)
        watched = WatchedRoot(root, enters, tell)
        thread.guard(watched)
        try:
            await self._oversee(thread)
        finally:
            active = False
            await _leave(thread, watched)

    async def _oversee(self, thread: WatchThread) -> None:
        """Replace a thread that hangs."""
        while True:
            await anyio.sleep(min(LOOK_S, self._hung / 2))
            seen = thread.beat
            if self._clock.steady() - seen < 2 * self._hung * thread.patience:
                continue
            await anyio.sleep(min(1.0, self._hung / 2))  # after the whole machine stood still, the thread comes first
            thread.replace(seen)


async def watch(
    root: Root,
    on_event: Callable[[WatchEvent], None],
    enters: Callable[[bytes], bool] = everything,
    *,
    poll: bool = False,
    clock: Clock,
) -> None:
    """Watch one root until cancelled, together with all others of this run.

    With `poll` nothing is reported: on a share only scans find changes, and polling by watchfiles would be a second
    scan that keeps every path in memory.
    """
    if poll:
        await anyio.sleep_forever()
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = Watcher(clock)
        _watcher.set(watcher)
    await watcher.watch(root, on_event, enters)


async def _leave(thread: WatchThread, root: WatchedRoot) -> None:
    ending = thread.leave(root)
    if ending is not None:
        with anyio.CancelScope(shield=True):  # it ends within a step
            await to_thread.run_sync(ending.join, 1.0)


_watcher: RunVar[Watcher] = RunVar("docferry.watcher")
