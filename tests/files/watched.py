"""Record the events of watched roots."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio

from docferry.clock import SystemClock
from docferry.files.safe_open import Root
from docferry.files.watch.events import WatchEvents
from docferry.files.watch.watcher import Hint, Watcher, WatchEvent


class Ear:
    """Records the events of one root's watch."""

    def __init__(self) -> None:
        self.events: list[WatchEvent] = []
        self._news = anyio.Event()

    async def listen(self, watch: AbstractAsyncContextManager[WatchEvents]) -> None:
        """Record all events of a watch, until cancelled."""
        async with watch as events:
            async for event in events:
                self.events.append(event)
                self._news.set()

    @property
    def hinted(self) -> set[bytes]:
        return {path for event in self.events if isinstance(event, Hint) for path in event.paths}

    def clear(self) -> None:
        self.events.clear()

    async def until(self, told: Callable[[Ear], object], seconds: float = 60) -> None:
        with anyio.fail_after(seconds):
            while not told(self):
                self._news = anyio.Event()
                await self._news.wait()

    async def hints(self, *paths: bytes) -> None:
        await self.until(lambda ear: ear.hinted >= set(paths))

    async def kinds(self, *kinds: type[WatchEvent], seconds: float = 60) -> None:
        """Wait for these events in this order, among any others."""

        def told(ear: Ear) -> bool:
            rest = iter(ear.events)
            return all(any(isinstance(event, kind) for event in rest) for kind in kinds)

        await self.until(told, seconds)


@asynccontextmanager
async def watching(*roots: Path, watcher: Watcher | None = None) -> AsyncIterator[list[Ear]]:
    watcher = watcher or Watcher(SystemClock())
    ears = [Ear() for _ in roots]
    async with anyio.create_task_group() as group:
        for root, ear in zip(roots, ears, strict=True):
            group.start_soon(ear.listen, watcher.watch(Root(root)))
        yield ears
        group.cancel_scope.cancel()


async def write_until_hinted(ear: Ear, path: Path, seconds: float = 60) -> None:
    """Write files until one is reported; a scan covers the time before."""
    with anyio.fail_after(seconds):
        while os.fsencode(path.name) not in {name.rpartition(b"/")[2] for name in ear.hinted}:
            touch(path)
            await anyio.sleep(0.1)  # the time a watcher has for one report


def touch(path: Path | bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write(b"x")


def watch_threads() -> int:
    return sum(thread.name == "docferry watch" for thread in threading.enumerate())


def folder_watches() -> int:
    return sum(thread.name == "docferry watch folders" for thread in threading.enumerate())
