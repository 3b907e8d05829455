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
from docferry.files.judge import Lookout
from docferry.files.posts import Armed, Degraded, Hint, Lost, Post, WatchEvent
from docferry.files.sentry import Sentry

__all__ = ["Armed", "Degraded", "Hint", "Lost", "WatchEvent", "Watcher", "watch"]

SENTRIES = 2  # each is a thread, an inotify instance and 0.06 % of a core
HUNG = 30.0  # seconds without a sign of life
LOOK = 5.0  # seconds between two looks for one


class Watcher:
    """Shares a few threads between all mappings of a run."""

    def __init__(self, clock: Clock, *, look_out: Lookout = watchfiles.watch, hung: float = HUNG) -> None:
        self._clock = clock
        self._hung = hung
        self._sentries = [Sentry(clock, look_out) for _ in range(SENTRIES)]

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

        sentry = min(self._sentries, key=len)
        post = Post(root, tell)
        sentry.guard(post)
        try:
            await self._oversee(sentry)
        finally:
            active = False
            await _relieve(sentry, post)

    async def _oversee(self, sentry: Sentry) -> None:
        while True:
            await anyio.sleep(min(LOOK, self._hung / 2))
            seen = sentry.beat
            if self._clock.steady() - seen < self._hung * sentry.patience:
                continue
            await anyio.sleep(min(1.0, self._hung / 2))  # after a standstill of all, it gets to say something first
            sentry.replace(seen)


async def watch(root: Path, on_event: Callable[[WatchEvent], None], *, poll: bool = False, clock: Clock) -> None:
    """Watch one root until cancelled, together with all others of this run. With `poll` nothing is reported at all:
    on a share only scans find anything, and polling by watchfiles would be a second scan that keeps every path in
    memory."""
    if poll:
        await anyio.sleep_forever()
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = Watcher(clock)
        _watcher.set(watcher)
    await watcher.watch(root, on_event)


async def _relieve(sentry: Sentry, post: Post) -> None:
    ending = sentry.leave(post)
    if ending is not None:
        with anyio.CancelScope(shield=True):  # it sees within a step that it is no longer wanted
            await to_thread.run_sync(ending.join, 1.0)


_watcher: RunVar[Watcher] = RunVar("docferry.watcher")
