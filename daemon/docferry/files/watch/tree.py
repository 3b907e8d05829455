"""Find the folders of one root to watch."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field

from docferry.errors import FolderError
from docferry.files import scan
from docferry.files.safe_open import OpenRoot, Root
from docferry.files.watch.events import Armed, Degraded, WatchEvent, WatchEvents
from docferry.files.watch.failures import NOT_UTF8

WATCH_RETRY_S, LONGEST_RETRY_S = 10.0, 900.0  # before a folder is tried again, doubled each time


class WatchedRoot(Struct, eq=False):
    """Hold one root, the state of its watch, and its events."""

    root: Root
    filter: scan.FolderFilter
    events: WatchEvents
    place: str = ""  # the root with links resolved: watched under one name, even if several paths lead to it
    identity: tuple[int, int] | None = None
    is_armed: bool = False
    is_missing: bool = False  # and this was reported
    folders: set[bytes] = field(default_factory=set)  # watched now, or soon
    unwatched: dict[bytes, str] = field(default_factory=dict)  # unwatched top-level folders, with the reason
    deaths: Counter[bytes] = field(default_factory=Counter)  # ends soon after the start, by top-level folder
    failures: int = 0
    retry_at: float = 0.0

    def resolve(self) -> bool:
        """Resolve the root's path. Return False if the root is missing or cannot be watched."""
        self.identity = identity(self.root)
        try:
            self.place = os.path.realpath(self.root.raw).decode("utf-8")
        except UnicodeDecodeError:
            self.unwatched = {b"": "its own path is not UTF-8, which the watcher cannot take"}
            return False
        return self.identity is not None

    def path(self, folder: bytes) -> str:
        """Return the absolute path of a folder."""
        return f"{self.place.rstrip('/')}/{folder.decode('utf-8')}" if folder else self.place

    def find_folders(self, start: bytes = b"", most: float = math.inf) -> set[bytes]:
        """Return the watchable folders from `start` down. Raises FolderError.

        Folders that are unwatchable by name or permissions make their top-level folder unwatched. So does a walk of
        more than `most` seconds of processor time, which returns no folder.
        """
        found = set[bytes]()
        began = time.thread_time()
        for chunk in scan.walk(self.root, self, starts=[start], chunk=200):
            if time.thread_time() - began > most:
                self.unwatched.setdefault(top_of(start), "its folders change faster than they can be watched")
                return set()
            for listing in chunk:
                if listing.problem is None:
                    found.add(listing.folder)
                elif "disappeared" not in listing.problem:
                    self.unwatched.setdefault(top_of(listing.folder), listing.problem)
        return found

    def are_folders(self, paths: Iterable[bytes]) -> set[bytes]:
        """Return the paths that are watchable folders now."""
        try:
            with OpenRoot(self.root) as opened:
                return {path for path in paths if self.enters(path) and opened.is_folder(path)}
        except FolderError:
            return set()

    def enters(self, folder: bytes) -> bool:
        """Return whether a folder is wanted and watchable: this root is the filter of its own walk."""
        return self._is_watchable(folder) and self.filter.enters(folder)

    def plan_retry(self, now: float) -> None:
        """Set the next attempt to watch the unwatched top-level folders."""
        if now > self.retry_at + LONGEST_RETRY_S:
            self.failures = 0  # no error for long enough
        self.retry_at = now + min(WATCH_RETRY_S * 2**self.failures, LONGEST_RETRY_S)
        if self.unwatched:
            self.failures += 1

    def tell(self, event: WatchEvent) -> None:
        """Add an event, from any thread."""
        self.events.tell(event)

    def tell_state(self) -> None:
        """Report that all is watched, and then the top-level folders that are not."""
        self.is_armed = True
        self.tell(Armed())
        if self.unwatched:
            self.tell(Degraded(next(iter(self.unwatched.values())), frozenset(self.unwatched)))

    def _is_watchable(self, folder: bytes) -> bool:
        try:
            folder.decode("utf-8")
        except UnicodeDecodeError:
            self.unwatched.setdefault(top_of(folder), NOT_UTF8)
            return False
        top = top_of(folder)
        return top == b"" or top not in self.unwatched


def top_of(folder: bytes) -> bytes:
    """Return the top-level folder of a folder; b"" is the root itself."""
    return folder.partition(b"/")[0]


def identity(root: Root) -> tuple[int, int] | None:
    """Return device and inode of a root, None if it cannot be opened."""
    try:
        with OpenRoot(root) as opened:
            found = os.fstat(opened.descriptor)
    except FolderError:
        return None
    return found.st_dev, found.st_ino
