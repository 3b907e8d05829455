"""One thread that watches a group of folders, and gets up again after everything that ends a watch."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docferry.clock import Clock
from docferry.files.ailments import diagnosis, is_undecodable, is_watch_limit

log = logging.getLogger(__name__)

CHECK = 2.0  # seconds between two looks at whether the roots are still what they were
GATHER = 0.02  # seconds in which folders that come together are armed together
QUICK, QUICK_DEATHS = 10.0, 5  # so many deaths, each within so many seconds of arming, and a folder is left alone
RETRY, RETRY_MOST = 60.0, 900.0  # seconds until it is tried again, twice as long each time

#: 100 ms a step: 0.06 % of a core when idle (40 ms: 0.15 %, 5 ms: 0.6 %). What it adds is hidden in `settle`, which
#: runs from the file's own stamp. Polling and permissions are said outright, or variables of the environment would
#: decide.
OPTIONS: dict[str, Any] = {
    "watch_filter": None,
    "debounce": 100,
    "step": 100,
    "rust_timeout": 1000,
    "yield_on_timeout": True,
    "debug": False,
    "raise_interrupt": False,
    "force_polling": False,
    "ignore_permission_denied": False,
}


@dataclass(frozen=True, slots=True)
class Hint:
    """These paths, relative to the root, may have changed."""

    paths: set[bytes]


@dataclass(frozen=True, slots=True)
class Armed:
    """Watched from now on; what happened before is for a scan to find."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Changes may have gone unreported. `Armed` follows when they are reported again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Degraded:
    """Changes go unreported until `Armed`: only scans find them. The reason says what to do about it."""

    reason: str


WatchEvent = Hint | Armed | Lost | Degraded
Lookout = Callable[..., Iterable[set[tuple[Any, str]]]]  # watchfiles.watch, or what a test puts in its place


@dataclass(slots=True, eq=False)
class Post:
    """One root, and whom to tell about it from whatever thread."""

    root: Path
    tell: Callable[[WatchEvent], None]
    place: str = ""  # the root with links resolved: watched under one name, however many lead there
    identity: tuple[int, int] | None = None  # None: it was missing when last looked at
    missing: bool = False  # and that was said
    began: float = 0.0  # when it was last set about
    deaths: int = 0
    failures: int = 0
    retry_at: float = 0.0


class Pulse:
    """What the watcher asks at every step whether to stop: so it shows that the thread is alive and armed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.beat = clock.steady()
        self.stopped = False  # for good: the thread was given up, or nobody wants it any more
        self.changed = threading.Event()  # posts came or went
        self.on_armed: Callable[[], None] | None = None

    def is_set(self) -> bool:
        self.beat = self._clock.steady()
        armed, self.on_armed = self.on_armed, None
        if armed is not None and not self.stopped:
            armed()
        return self.stopped or self.changed.is_set()


class Sentry:
    """A thread that exists while there are posts. `guard` and `leave` may be called from any thread."""

    def __init__(self, clock: Clock, look_out: Lookout) -> None:
        self._clock = clock
        self._look_out = look_out
        self._lock = threading.Lock()
        self._posts: list[Post] = []
        self._pulse = Pulse(clock)
        self._thread: threading.Thread | None = None
        self._next_check = 0.0
        self._limit_reached = False
        self._replaced = 0

    def __len__(self) -> int:
        return len(self._posts)

    @property
    def beat(self) -> float:
        """Steady seconds of its latest sign of life."""
        return self._pulse.beat

    @property
    def patience(self) -> int:
        """How many times longer than usual to wait for one: threads that hang on a dead share must not pile up."""
        return int(2 ** min(self._replaced, 7))

    def guard(self, post: Post) -> None:
        """Watch this too."""
        with self._lock:
            self._posts.append(post)
            self._pulse.changed.set()
            if self._thread is None:
                self._start()

    def leave(self, post: Post) -> threading.Thread | None:
        """No longer watch this; the thread when it ends for want of posts, to be joined."""
        with self._lock:
            self._posts.remove(post)
            self._pulse.changed.set()
            return None if self._posts else self._thread

    def replace(self, beat: float) -> None:
        """Give up a thread that has shown no life since `beat`, and start another."""
        with self._lock:
            if not self._posts or self._pulse.beat != beat:
                return
            self._pulse.stopped = True
            self._replaced += 1
            self._pulse = Pulse(self._clock)
            posts = list(self._posts)
            self._start()
        for post in posts:
            post.tell(Lost("the watcher hung and was started again"))

    def _start(self) -> None:
        """A daemon thread: one that hangs in the kernel must not hold up the end of the program."""
        self._thread = threading.Thread(target=self._run, args=(self._pulse,), name="docferry watch", daemon=True)
        self._thread.start()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self, pulse: Pulse) -> None:
        while True:
            time.sleep(GATHER)  # mappings start together, and arming one by one would walk them all each time
            with self._lock:
                if pulse.stopped:
                    return
                if not self._posts:
                    self._thread = None
                    return
                pulse.changed.clear()
                posts = list(self._posts)
            ready = [post for post in posts if self._is_ready(post)]
            if ready:
                self._watch(posts, ready, pulse)
            else:
                pulse.is_set()
                pulse.changed.wait(CHECK / 2)

    def _is_ready(self, post: Post) -> bool:
        """Whether it can be armed now; a missing root is said once."""
        if self._clock.steady() < post.retry_at:
            return False
        post.identity = identity(post.root)
        if post.identity is None:
            if not post.missing:
                post.missing = True
                post.tell(Lost("the folder is missing; it is watched again as soon as it is there"))
            return False
        post.missing = False
        post.place = os.path.realpath(post.root)
        return True

    def _watch(self, posts: Sequence[Post], ready: Sequence[Post], pulse: Pulse) -> None:
        armed = False

        def on_armed() -> None:
            nonlocal armed
            armed = True
            self._replaced = 0
            for post in ready:
                post.tell(Armed())

        pulse.on_armed = on_armed
        for post in ready:
            post.began = self._clock.steady()
        self._next_check = self._clock.steady() + CHECK
        self._limit_reached = False
        by_place = _by_place(ready)
        try:
            for changes in self._look_out(*by_place, stop_event=pulse, **OPTIONS):
                if pulse.stopped:
                    return
                _report(by_place, changes)
                if self._is_disturbed(posts, ready, changes):
                    return
        except Exception as error:  # noqa: BLE001 - whatever ended the watch, it must be taken up again
            if pulse.stopped:
                return
            if armed:
                self._died(ready, error)
            else:
                if self._unarmed(ready, error):
                    pulse.on_armed = None  # it never was, and the next sign of life is another's

    def _is_disturbed(self, posts: Sequence[Post], ready: Sequence[Post], changes: set[tuple[Any, str]]) -> bool:
        """Whether the watch must be set up anew: a root is not what it was, or another one can be watched now."""
        places = {post.place for post in ready}
        if any(kind == 3 and path in places for kind, path in changes):  # 3: deleted, or renamed away
            return True
        now = self._clock.steady()
        if now < self._next_check:
            return False
        self._next_check = now + CHECK
        replaced = [post for post in ready if identity(post.root) != post.identity]
        for post in replaced:
            post.tell(Lost("another folder stands in its place, or none"))
        return bool(replaced) or self._gains(posts, ready, now) or self._frees_up(ready)

    def _gains(self, posts: Sequence[Post], ready: Sequence[Post], now: float) -> bool:
        out = (post for post in posts if post not in ready and now >= post.retry_at and identity(post.root))
        return any(self._can_be_armed(post) for post in out)

    def _can_be_armed(self, post: Post) -> bool:
        """Tried alone, so that the others' watch is not torn down for nothing."""
        if not self._is_ready(post):
            return False
        error = self._trial(post)
        if error is None:
            return True
        if not isinstance(error, FileNotFoundError):
            self._degrade(post, diagnosis(error))
        return False

    def _frees_up(self, ready: Sequence[Post]) -> bool:
        """When the kernel has no watch left, a new folder goes unwatched without a word: so one is asked for."""
        error = self._trial(ready[0], recursive=False)
        reached = error is not None and is_watch_limit(error)
        if reached and error is not None and not self._limit_reached:
            for post in ready:
                post.tell(Degraded(diagnosis(error)))
        freed = self._limit_reached and not reached
        self._limit_reached = reached
        return freed

    def _died(self, ready: Sequence[Post], error: Exception) -> None:
        """It ended while watching: again at once, unless one folder ends it time after time."""
        now = self._clock.steady()
        log.debug("a watch ended: %s", error)
        culprits = [post for post in ready if f'"{post.place}/' in str(error)] or ready
        for post in ready:
            post.tell(Lost(diagnosis(error)))
        for post in culprits:
            post.deaths = post.deaths + 1 if now - post.began < QUICK else 1
            if post.deaths > QUICK_DEATHS:
                self._degrade(post, diagnosis(error))
            else:
                post.failures = 0

    def _unarmed(self, ready: Sequence[Post], error: Exception) -> bool:
        """It ended before it first stirred: leave out those that stand in the way, each tried alone. Whether there
        were any."""
        if isinstance(error, FileNotFoundError):
            return False
        trials = [(post, self._trial(post)) for post in ready]
        guilty = [(post, trial) for post, trial in trials if trial is not None]
        if is_watch_limit(error) and not guilty:  # too many together
            guilty = [(post, error) for post in ready]
        for post, trial in guilty:
            self._degrade(post, diagnosis(trial))
        if not guilty:
            self._died(ready, error)
        return bool(guilty)

    def _degrade(self, post: Post, reason: str) -> None:
        post.retry_at = self._clock.steady() + min(RETRY * 2**post.failures, RETRY_MOST)
        post.failures += 1
        post.deaths = 0
        post.tell(Degraded(reason))

    def _trial(self, post: Post, *, recursive: bool = True) -> Exception | None:
        stop = threading.Event()
        stop.set()
        try:
            for _ in self._look_out(post.place, stop_event=stop, recursive=recursive, **{**OPTIONS, "step": 1}):
                break
        except Exception as error:  # noqa: BLE001 - the question is what is wrong, if anything
            return None if is_undecodable(error) else error  # it was armed, and heard of a name already
        return None


def identity(root: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, None when there is none to be reached."""
    try:
        found = os.stat(root / ".")  # noqa: PTH116 - the dot makes the kernel refuse what is not a folder
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _by_place(posts: Iterable[Post]) -> dict[str, list[Post]]:
    places: dict[str, list[Post]] = {}
    for post in posts:
        places.setdefault(post.place, []).append(post)
    return places


def _report(by_place: dict[str, list[Post]], changes: set[tuple[Any, str]]) -> None:
    """Hand every path to all posts above it: one mapping's folder may lie inside another's."""
    hints: dict[int, tuple[Post, set[bytes]]] = {}
    for _kind, path in changes:
        for place in _above(path):
            for post in by_place.get(place, ()):
                inner = path[len(place.rstrip("/")) + 1 :]
                hints.setdefault(id(post), (post, set()))[1].add(os.fsencode(inner))
    for post, paths in hints.values():
        post.tell(Hint(paths))


def _above(path: str) -> Iterator[str]:
    while path and path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
