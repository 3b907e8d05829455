"""Start, merge and stop the watches of one thread, and index their folders."""

from __future__ import annotations

import queue
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from docferry.clock import Clock
from docferry.files.watch.folder_watch import FolderWatch
from docferry.files.watch.places import FolderIndex, Group, Place, Purpose
from docferry.files.watch.tree import LONGEST_RETRY_S, WatchedRoot, top_of

MOST_WATCHES: Final = 6  # calls of watchfiles, each an inotify instance and two threads, before they are merged


class Watches:
    """Start, merge and stop watches. `roots` are the watched roots; `inbox` receives the reports."""

    def __init__(self, clock: Clock, roots: Sequence[WatchedRoot], inbox: queue.SimpleQueue[object]) -> None:
        self._clock = clock
        self._roots = roots
        self._inbox = inbox
        self._purposes: dict[FolderWatch, Purpose] = {}
        self._merge_at = 0.0
        self.index = FolderIndex()

    def __contains__(self, watch: FolderWatch) -> bool:
        return watch in self._purposes

    def __getitem__(self, watch: FolderWatch) -> Purpose:
        return self._purposes[watch]

    def __iter__(self) -> Iterator[FolderWatch]:
        return iter(list(self._purposes))

    def start(self, purpose: Purpose) -> None:
        """Start watching folders; a report follows when the watch is armed or has ended."""
        purpose.places = [place for place in purpose.places if place[0] in self._roots]
        if not purpose.places:
            return
        for root, folder in purpose.places:
            self.index.add(root, folder)
        folders = {root.path(folder) for root, folder in purpose.places}
        watch = FolderWatch(folders, self._inbox, self._clock)
        self._purposes[watch] = purpose
        watch.start()

    def start_apart(self, places: Sequence[Place], groups: Collection[Group]) -> None:
        """Watch some top-level folders separately, so that their errors do not end the watch of others."""
        apart = [(root, folder) for root, folder in places if (root, top_of(folder)) in groups]
        rest = [(root, folder) for root, folder in places if (root, top_of(folder)) not in groups]
        for group, is_apart in ((rest, False), (apart, True)):
            if group:
                roots = list(dict.fromkeys(root for root, _ in group))
                self.start(Purpose(group, armed_roots=roots, is_apart=is_apart))

    def merge(self) -> None:
        """Replace all watches except the largest by one, if there are many. No change is missed."""
        if len(self._purposes) <= MOST_WATCHES or self._clock.steady() < self._merge_at:
            return
        candidates = [watch for watch, purpose in self._purposes.items() if watch.is_armed and not purpose.is_apart]
        old = sorted(candidates, key=lambda watch: len(watch.folders))[:-1]
        if not old:
            return
        paths = {path for watch in old for path in watch.folders}
        places = [place for path in paths for place in self.index.at(path)]
        self.start(Purpose(places, replaces=old))

    def postpone_merge(self) -> None:
        """Keep separate watches for a time, because old and new ones together exceed the kernel's limit."""
        self._merge_at = self._clock.steady() + LONGEST_RETRY_S

    def remove(self, watch: FolderWatch) -> Purpose:
        """Remove a watch that has ended, and return its purpose."""
        return self._purposes.pop(watch)

    def stop(self, watch: FolderWatch) -> None:
        """Stop a watch; its later reports are ignored."""
        self._purposes.pop(watch, None)
        watch.stop()

    def stop_all(self) -> None:
        """Stop every watch."""
        for watch in self:
            self.stop(watch)

    def wanted(self, purpose: Purpose) -> list[Place]:
        """Return the places of a watch that are still to be watched."""
        return [place for place in purpose.places if place[0] in self._roots and place[1] in place[0].folders]

    def forget(self, root: WatchedRoot) -> None:
        """Remove all folders of a root, and stop the watches that have no other folder."""
        self.index.drop(root, list(root.folders))
        for watch in self:
            if not any(path in self.index for path in watch.folders):
                self.stop(watch)
