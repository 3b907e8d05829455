"""What the kernel says about changes: hints that hurry the scan, and word when there are none to be had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import watchfiles
from anyio import to_thread
from anyio.lowlevel import RunVar

from docferry.clock import Clock
from docferry.files.safe_open import Root
from docferry.files.watch.assessment import WatchFunction
from docferry.files.watch.roots import Armed, Degraded, Hint, Lost, WatchedRoot, WatchEvent
from docferry.files.watch.thread import WatchThread

__all__ = ["Armed", "Degraded", "Hint", "Lost", "WatchEvent", "Watcher", "watch"]

SENTRIES = 2  # each is a thread, an inotify instance and 0.06 % of a core
HUNG = 30.0  # seconds without a sign of life
LOOK = 5.0  # seconds between two looks for one


class Watcher:
    """Shares a few threads between all mappings of a run."""

    def __init__(self, clock: Clock, *, watch_function: WatchFunction = watchfiles.watch, hung: float = HUNG) -> None:
        self._clock = clock
        self._hung = hung
        self._sentries = [WatchThread(clock, watch_function) for _ in range(SENTRIES)]

    async def watch(self, root: Path, on_event: Callable[[WatchEvent], None]) -> None:
        """Tell `on_event`, on the event loop, about one root until cancelled."""
        loop = asyncio.get_running_loop()
        active = True

        def deliver(event: WatchEvent) -> None:
            if active:
                on_event(event)

        def tell(event: WatchEvent) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody is there to be told
                loop.call_soon_threadsafe(deliver, event)

        watch_thread = min(self._sentries, key=len)
        watched = WatchedRoot(root, tell)
        watch_thread.guard(watched)
        try:
            await self._oversee(watch_thread)
        finally:
            active = False
            await _relieve(watch_thread, watched)

    async def _oversee(self, watch_thread: WatchThread) -> None:
        while True:
            await anyio.sleep(min(LOOK, self._hung / 2))
            seen = watch_thread.beat
            if self._clock.steady() - seen < self._hung * watch_thread.patience:
                continue
            await anyio.sleep(min(1.0, self._hung / 2))  # after a standstill of all, it gets to say something first
            watch_thread.replace(seen)


async def watch(root: Root, on_event: Callable[[WatchEvent], None], *, poll: bool = False, clock: Clock) -> None:
    """Watch one root until cancelled, together with all others of this run. With `poll` nothing is reported at all:
    on a share only scans find anything, and polling by watchfiles would be a second scan that keeps every path in
    memory.
    """
    if poll:
        await anyio.sleep_forever()
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = Watcher(clock)
        _watcher.set(watcher)
    await watcher.watch(root.path, on_event)


async def _relieve(watch_thread: WatchThread, root: WatchedRoot) -> None:
    ending = watch_thread.leave(root)
    if ending is not None:
        with anyio.CancelScope(shield=True):  # it sees within a step that it is no longer wanted
            await to_thread.run_sync(ending.join, 1.0)


_watcher: RunVar[Watcher] = RunVar("docferry.watcher")
