"""Wait until a file is quiet: unchanged for `settle` by its stamp, or by observation where the stamp proves nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from docferry.clock import Clock
from docferry.files.scan import top_level
from docferry.model import SeenFile, Stamp

_CLOCK_JUMP_S: Final = 1.0  # the largest drift between wall and steady clock during one interval
_SHORTEST_POSTPONEMENT_S: Final = 0.2
_LONGEST_POSTPONEMENT_S: Final = 60.0

#: Mapping, and path relative to its root.
Key = tuple[str, bytes]
#: Mapping, and a top-level folder of its root: the area of one customer.
Group = tuple[str, bytes]


class WatchedFile(Struct, eq=False):
    """Hold a file that is not quiet yet."""

    mapping: str
    path: bytes
    stamp: Stamp
    settle: float
    first: float  # wall seconds: since when it has been unsettled
    since: float  # steady seconds: when this stamp was first seen
    due: float  # steady seconds: the next check; its entry in the heap may be earlier
    by_watching: bool = False
    in_heap: bool = False

    @property
    def key(self) -> Key:
        """Return mapping and path."""
        return self.mapping, self.path


class Debouncer:
    """Hold at most `limit` unsettled files, shared fairly between top-level folders.

    `offer` takes files from a scan or a hint. `due` returns the files to examine; the caller then passes each to
    `offer` again, or to `forget`.
    """

    def __init__(self, clock: Clock, limit: int = 10_000) -> None:
        self._clock = clock
        self._limit = limit
        self._files: dict[Key, WatchedFile] = {}
        self._groups: dict[Group, dict[Key, WatchedFile]] = {}
        self._heap: list[tuple[float, int, WatchedFile]] = []
        self._count = 0
        self._released: dict[Key, float] = {}  # the start of the unsettled time of files that were just reported quiet
        self._overflowed: set[Group] = set()
        self._skew = clock.now() - clock.steady()
        self._jumped_at = float("-inf")  # steady seconds of the latest jump of the wall clock

    def __len__(self) -> int:
        return len(self._files)

    def offer(self, mapping: str, seen_file: SeenFile, settle: float, *, by_watching: bool = False) -> bool:
        """Return whether the file is quiet now. Otherwise keep it until `due` returns it.

        A file may be dropped if there are too many; `take_overflow` reports the folders. `by_watching` is for shares,
        whose clock may differ.
        """
        watched = self._files.get((mapping, seen_file.path))
        now = self._clock.steady()
        if watched is not None:
            watched.settle, watched.by_watching = settle, by_watching
            return self._observe(watched, seen_file.stamp, now)
        wait = self._wait(seen_file.stamp, settle, by_watching)
        if wait <= 0:
            return True
        self._keep(mapping, seen_file, settle, now + wait, by_watching)
        return False

    def due(self) -> list[Key]:
        """Return the due files, each once until it is offered again."""
        now = self._clock.steady()
        found: list[Key] = []
        while self._heap and self._heap[0][0] <= now:
            watched = heapq.heappop(self._heap)[2]
            watched.in_heap = False
            if self._files.get(watched.key) is not watched:
                continue
            if watched.due > now:
                self._push(watched)
            else:
                found.append(watched.key)
        return found

    def postpone(self, mapping: str, seen_file: SeenFile, settle: float, *, by_watching: bool = False) -> None:
        """Keep a quiet but incomplete file, such as one that a program has open for writing.

        The interval grows with the unsettled time, up to a minute. Closing the file causes a hint anyway.
        """
        key = (mapping, seen_file.path)
        if key in self._files:
            return
        waited = self._clock.now() - self._released.get(key, self._clock.now())
        wait = min(max(settle, _SHORTEST_POSTPONEMENT_S, waited / 10), max(settle, _LONGEST_POSTPONEMENT_S))
        self._keep(mapping, seen_file, settle, self._clock.steady() + wait, by_watching)

    def keep(self, mapping: str, path: bytes) -> None:
        """Keep a due file for later, because the disk did not answer."""
        watched = self._files.get((mapping, path))
        if watched is not None and not watched.in_heap:
            watched.due = self._clock.steady() + max(watched.settle, _SHORTEST_POSTPONEMENT_S)
            self._push(watched)

    def will_look_at(self, mapping: str, path: bytes) -> bool:
        """Return whether `due` returns this file within its `settle` anyway, so that a hint is unnecessary."""
        watched = self._files.get((mapping, path))
        return watched is not None and watched.in_heap and watched.due - self._clock.steady() <= watched.settle

    def forget(self, mapping: str, path: bytes) -> None:
        """Drop a file that is gone or no longer a document."""
        watched = self._files.get((mapping, path))
        if watched is not None:
            self._remove(watched)

    def next_due(self) -> float | None:
        """Return the steady seconds at which a file is due, None if none is kept."""
        while self._heap and self._files.get(self._heap[0][2].key) is not self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def unsettled(self, mapping: str, at_least: float = 0.0) -> list[tuple[bytes, float]]:
        """Return `(path, since)` of the files that have been unsettled for `at_least` seconds, the oldest first.

        `since` is in wall seconds.
        """
        until = self._clock.now() - at_least
        pairs = ((each.path, each.first) for each in self._of(mapping) if each.first <= until)
        return sorted(pairs, key=lambda pair: pair[1])

    def take_overflow(self, mapping: str) -> set[bytes]:
        """Return and clear the top-level folders whose files were dropped: scan these folders again."""
        groups = {group for group in self._overflowed if group[0] == mapping}
        self._overflowed -= groups
        return {top for _, top in groups}

    def _of(self, mapping: str) -> Iterator[WatchedFile]:
        for (name, _), files in self._groups.items():
            if name == mapping:
                yield from files.values()

    def _observe(self, watched: WatchedFile, stamp: Stamp, now: float) -> bool:
        """Release a kept file if it is quiet, else set its next check."""
        if stamp != watched.stamp:
            watched.stamp, watched.since = stamp, now
        wait = self._wait(stamp, watched.settle, watched.by_watching)
        wait = min(wait, watched.since + watched.settle - now)
        if wait > 0:
            watched.due = now + wait
            if not watched.in_heap:
                self._push(watched)
            return False
        self._remove(watched)
        self._release(watched)
        return True

    def _wait(self, stamp: Stamp, settle: float, by_watching: bool) -> float:
        """Return the seconds until the stamp alone proves that the file is quiet.

        Return `settle` if the stamp proves nothing: if it lies in the future, is older than a clock jump, or comes from
        another clock.
        """
        wall, steady = self._clock.now(), self._clock.steady()
        if abs(wall - steady - self._skew) > _CLOCK_JUMP_S:
            self._jumped_at = steady
        self._skew = wall - steady
        newest = max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        if by_watching or newest > wall or steady < self._jumped_at + settle:
            return settle
        return newest + settle - wall

    def _keep(self, mapping: str, seen_file: SeenFile, settle: float, due: float, by_watching: bool) -> None:
        group = (mapping, top_level(seen_file.path))
        if len(self._files) >= self._limit and not self._make_room(group):
            self._overflowed.add(group)
            return
        key = (mapping, seen_file.path)
        first = self._released.pop(key, self._clock.now())
        watched = WatchedFile(*key, seen_file.stamp, settle, first, self._clock.steady(), due, by_watching=by_watching)
        self._files[key] = watched
        self._groups.setdefault(group, {})[key] = watched
        self._push(watched)

    def _make_room(self, group: Group) -> bool:
        """Drop a file of the largest group to make room for a group below its share."""
        share = self._limit / (len(self._groups) + (group not in self._groups))
        if len(self._groups.get(group, ())) + 1 > share:
            return False
        largest = max(self._groups, key=lambda each: len(self._groups[each]))
        self._overflowed.add(largest)
        self._remove(next(reversed(self._groups[largest].values())))
        return True

    def _remove(self, watched: WatchedFile) -> None:
        del self._files[watched.key]
        group = (watched.mapping, top_level(watched.path))
        del self._groups[group][watched.key]
        if not self._groups[group]:
            del self._groups[group]

    def _push(self, watched: WatchedFile) -> None:
        self._count += 1  # breaks ties, so that the heap never compares two files
        watched.in_heap = True
        heapq.heappush(self._heap, (watched.due, self._count, watched))

    def _release(self, watched: WatchedFile) -> None:
        if len(self._released) >= self._limit:
            del self._released[next(iter(self._released))]
        self._released[watched.key] = watched.first
