"""When may a file be read? When it has held still for `settle`: by its own stamps, or, where those cannot be
believed, by watching it for so long."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from docferry.clock import Clock
from docferry.model import SeenFile, Stamp

_JUMP = 1.0  # seconds by which wall and steady clock may drift apart between two looks

Key = tuple[str, bytes]


@dataclass(slots=True, eq=False)
class Watched:
    """A file that is not quiet yet."""

    mapping: str
    path: bytes
    stamp: Stamp
    settle: float
    first: float  # wall seconds: since when it has been unsettled
    since: float  # steady seconds: when this stamp was first seen
    due: float  # steady seconds: when to look again; its place in the heap may be an earlier one
    by_watching: bool = False

    @property
    def key(self) -> Key:
        return self.mapping, self.path


class Debouncer:
    """Keeps at most `limit` unsettled files. `offer` takes what a scan or a hint saw; `ripe` gives out those
    whose time has come, and each is then looked at afresh and given to `again`."""

    def __init__(self, clock: Clock, limit: int = 10_000) -> None:
        self._clock = clock
        self._limit = limit
        self._kept: dict[Key, Watched] = {}
        self._heap: list[tuple[float, int, Watched]] = []
        self._count = 0
        self._released: dict[Key, float] = {}  # since when those were unsettled that were just said to be quiet
        self._overflowed: set[str] = set()
        self._skew = clock.now() - clock.steady()
        self._distrust = float("-inf")  # steady seconds of the latest jump of the wall clock

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, mapping: str, seen_file: SeenFile, settle: float, *, by_watching: bool = False) -> bool:
        """Is it quiet right now? If not it is kept and comes back from `ripe`; or it is dropped because there are
        too many, and `take_overflow` tells. `by_watching` is for shares whose clock is not ours."""
        key = (mapping, seen_file.path)
        watched = self._kept.get(key)
        now = self._clock.steady()
        if watched is not None:
            watched.settle, watched.by_watching = settle, by_watching
            return self._observe(watched, seen_file.stamp, now)
        wait = self._wait(seen_file.stamp, settle, by_watching)
        if wait <= 0:
            return True
        self._keep(key, seen_file.stamp, settle, now + wait, by_watching)
        return False

    def due(self) -> list[Watched]:
        """Those whose time has come, each once; they are kept until `again` or `forget`."""
        now = self._clock.steady()
        found: list[Watched] = []
        while self._heap and self._heap[0][0] <= now:
            watched = heapq.heappop(self._heap)[2]
            if self._kept.get(watched.key) is not watched:
                continue
            if watched.due > now:
                self._push(watched)
            else:
                found.append(watched)
        return found

    def recheck(self, watched: Watched, stamp: Stamp | None) -> bool:
        """What a fresh look at one of `ripe` saw (None: it is gone). True when it is quiet now; else its timer
        runs again."""
        if self._kept.get(watched.key) is not watched:
            return False
        if stamp is None:
            del self._kept[watched.key]
            return False
        if self._observe(watched, stamp, self._clock.steady()):
            return True
        self._push(watched)
        return False

    def postpone(self, mapping: str, seen_file: SeenFile, settle: float, *, by_watching: bool = False) -> None:
        """It was quiet, but somebody has it open for writing: look again later. The longer it has been so, the
        more seldom, up to a minute; closing it makes an event anyway."""
        key = (mapping, seen_file.path)
        now = self._clock.steady()
        if key in self._kept:
            return
        first = self._released.get(key, self._clock.now())
        wait = min(max(settle, 0.2, (self._clock.now() - first) / 10), max(settle, 60.0))
        self._keep(key, seen_file.stamp, settle, now + wait, by_watching)

    def forget(self, mapping: str, path: bytes | None = None) -> None:
        """No longer of interest: one file, or a whole mapping."""
        if path is not None:
            self._kept.pop((mapping, path), None)
            self._released.pop((mapping, path), None)
            return
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != mapping}
        self._released = {key: first for key, first in self._released.items() if key[0] != mapping}
        self._overflowed.discard(mapping)

    def next_due(self) -> float | None:
        """Steady seconds at which `ripe` has something to say."""
        while self._heap and self._kept.get(self._heap[0][2].key) is not self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def unsettled(self, mapping: str, at_least: float = 0.0) -> list[tuple[bytes, float]]:
        """`(path, since)` of those that have been unsettled for `at_least` seconds; `since` in wall seconds."""
        until = self._clock.now() - at_least
        kept = (watched for watched in self._kept.values() if watched.mapping == mapping)
        return sorted(((each.path, each.first) for each in kept if each.first <= until), key=lambda pair: pair[1])

    def take_overflow(self, mapping: str) -> bool:
        """Whether files of this mapping were dropped since this was last asked: then scan it soon."""
        if mapping in self._overflowed:
            self._overflowed.discard(mapping)
            return True
        return False

    def _observe(self, watched: Watched, stamp: Stamp, now: float) -> bool:
        """A fresh look at a kept file: release it if it is quiet, else set when to look again."""
        if stamp != watched.stamp:
            watched.stamp, watched.since = stamp, now
        wait = self._wait(stamp, watched.settle, watched.by_watching)
        wait = min(wait, watched.since + watched.settle - now)
        if wait > 0:
            watched.due = now + wait
            return False
        del self._kept[watched.key]
        self._release(watched)
        return True

    def _wait(self, stamp: Stamp, settle: float, by_watching: bool) -> float:
        """Seconds until its stamps alone prove that it is quiet; `settle` where they prove nothing: in the
        future, written before the wall clock jumped, or by a clock that is not ours."""
        wall, steady = self._clock.now(), self._clock.steady()
        if abs(wall - steady - self._skew) > _JUMP:
            self._distrust = steady
        self._skew = wall - steady
        newest = max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        if by_watching or newest > wall or steady < self._distrust + settle:
            return settle
        return newest + settle - wall

    def _keep(self, key: Key, stamp: Stamp, settle: float, due: float, by_watching: bool) -> None:
        if len(self._kept) >= self._limit:
            self._overflowed.add(key[0])
            return
        first = self._released.pop(key, self._clock.now())
        watched = Watched(*key, stamp, settle, first, self._clock.steady(), due, by_watching=by_watching)
        self._kept[key] = watched
        self._push(watched)

    def _push(self, watched: Watched) -> None:
        self._count += 1  # breaks ties, so that the heap never compares two files
        heapq.heappush(self._heap, (watched.due, self._count, watched))

    def _release(self, watched: Watched) -> None:
        if len(self._released) >= self._limit:
            del self._released[next(iter(self._released))]
        self._released[watched.key] = watched.first
