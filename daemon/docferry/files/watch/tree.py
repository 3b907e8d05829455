"""The folders of one root that are to be watched."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from docferry.errors import FolderError
from docferry.files import scan
from docferry.files.safe_open import OpenRoot, Root
from docferry.files.watch.events import Armed, Degraded, WatchEvent, WatchEvents
from docferry.files.watch.failures import NOT_UTF8

WATCH_RETRY_S, LONGEST_RETRY_S = 10.0, 900.0  # until a folder is tried again, twice as long each time


@dataclass(slots=True, eq=False)
class WatchedRoot:
    """One root, the state of its watch, and its events."""

    root: Root
    filter: scan.FolderFilter
    events: WatchEvents
    place: str = ""  # the root with links resolved: watched under one name, however many lead there
    identity: tuple[int, int] | None = None
    is_armed: bool = False
    is_missing: bool = False  # and that was told
    folders: set[bytes] = field(default_factory=set)  # that are watched, or soon will be
    unwatched: dict[bytes, str] = field(default_factory=dict)  # top-level folders, and why
    deaths: Counter[bytes] = field(default_factory=Counter)  # quick ones, by top-level folder
    failures: int = 0
    retry_at: float = 0.0

    def resolve(self) -> bool:
        """Find out what stands at the root's path. False when it is missing, or cannot be watched."""
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
        """Return the folders from `start` down that can be watched. Raises FolderError.

        Folders that cannot be, because of their name or their permissions, make their top-level folder unwatched. So
        does one whose walk takes more than `most` seconds of processor time: none is returned then.
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
        """Return those of the paths that are folders now, and can be watched."""
        try:
            with OpenRoot(self.root) as opened:
                return {path for path in paths if self.enters(path) and opened.is_folder(path)}
        except FolderError:
            return set()

    def enters(self, folder: bytes) -> bool:
        """Whether a folder is to be watched, and can be: this root is the filter of its own walk."""
        return self._is_watchable(folder) and self.filter.enters(folder)

    def plan_retry(self, now: float) -> None:
        """Set the time when the top-level folders that are not watched are tried again."""
        if now > self.retry_at + LONGEST_RETRY_S:
            self.failures = 0  # all went well for long enough
        self.retry_at = now + min(WATCH_RETRY_S * 2**self.failures, LONGEST_RETRY_S)
        if self.unwatched:
            self.failures += 1

    def tell(self, event: WatchEvent) -> None:
        """Add an event, from any thread."""
        self.events.tell(event)

    def tell_state(self) -> None:
        """Tell that all is watched, and then which top-level folders are not."""
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
    """Return device and inode of a root, None when it cannot be opened."""
    try:
        with OpenRoot(root) as opened:
            found = os.fstat(opened.descriptor)
    except FolderError:
        return None
    return found.st_dev, found.st_ino
