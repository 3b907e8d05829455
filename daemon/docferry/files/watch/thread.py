"""One thread that watches a group of folders, and gets up again after everything that ends a watch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from docferry.clock import Clock
from docferry.files.watch.assessment import OPTIONS, WatchDiagnosis, WatchFunction
from docferry.files.watch.failures import diagnosis, is_watch_limit
from docferry.files.watch.roots import Armed, Degraded, Lost, WatchedRoot, by_place, identity, report

CHECK = 2.0  # seconds between two looks at whether the roots are still what they were
TRIAL = 10.0  # seconds between two questions to the kernel whether it has watches left: each is a thread and an inotify
GATHER = 0.02  # seconds in which folders that come together are armed together


class StopEvent:
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


class WatchThread:
    """A thread that exists while there are posts. `guard` and `leave` may be called from any thread."""

    def __init__(self, clock: Clock, watch_function: WatchFunction) -> None:
        self._clock = clock
        self._look_out = watch_function
        self._diagnosis = WatchDiagnosis(clock, watch_function)
        self._lock = threading.Lock()
        self._roots: list[WatchedRoot] = []
        self._stop = StopEvent(clock)
        self._thread: threading.Thread | None = None
        self._next_check = 0.0
        self._next_trial = 0.0
        self._limit_reached = False
        self._replaced = 0

    def __len__(self) -> int:
        return len(self._roots)

    @property
    def beat(self) -> float:
        """Steady seconds of its latest sign of life."""
        return self._stop.beat

    @property
    def patience(self) -> int:
        """How many times longer than usual to wait for one: threads that hang on a dead share must not pile up."""
        return int(2 ** min(self._replaced, 7))

    def guard(self, root: WatchedRoot) -> None:
        """Watch this too."""
        with self._lock:
            self._roots.append(root)
            self._stop.changed.set()
            if self._thread is None:
                self._start()

    def leave(self, root: WatchedRoot) -> threading.Thread | None:
        """No longer watch this; the thread when it ends for want of posts, to be joined."""
        with self._lock:
            self._roots.remove(root)
            self._stop.changed.set()
            return None if self._roots else self._thread

    def replace(self, beat: float) -> None:
        """Give up a thread that has shown no life since `beat`, and start another."""
        with self._lock:
            if not self._roots or self._stop.beat != beat:
                return
            self._stop.stopped = True
            self._replaced += 1
            self._stop = StopEvent(self._clock)
            roots = list(self._roots)
            self._start()
        for root in roots:
            root.tell(Lost("the watcher hung and was started again"))

    def _start(self) -> None:
        """A daemon thread: one that hangs in the kernel must not hold up the end of the program."""
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="docferry watch", daemon=True)
        self._thread.start()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self, status_file: StopEvent) -> None:
        while True:
            time.sleep(GATHER)  # mappings start together, and arming one by one would walk them all each time
            with self._lock:
                if status_file.stopped:
                    return
                if not self._roots:
                    self._thread = None
                    return
                status_file.changed.clear()
                roots = list(self._roots)
            ready = [root for root in roots if self._is_ready(root)]
            if ready:
                self._watch(roots, ready, status_file)
            else:
                status_file.is_set()
                status_file.changed.wait(CHECK / 2)

    def _is_ready(self, root: WatchedRoot) -> bool:
        """Whether it can be armed now; a missing root is said once."""
        if self._clock.steady() < root.retry_at:
            return False
        root.identity = identity(root.root)
        if root.identity is None:
            if not root.missing:
                root.missing = True
                root.tell(Lost("the folder is missing; it is watched again as soon as it is there"))
            return False
        root.missing = False
        root.place = os.path.realpath(root.root)
        return True

    def _watch(self, roots: Sequence[WatchedRoot], ready: Sequence[WatchedRoot], status_file: StopEvent) -> None:
        armed = False

        def on_armed() -> None:
            nonlocal armed
            armed = True
            self._replaced = 0
            for root in ready:
                root.tell(Armed())

        status_file.on_armed = on_armed
        for root in ready:
            root.began = self._clock.steady()
        self._next_check = self._clock.steady() + CHECK
        self._next_trial = self._next_check  # a tree just armed may have taken the last
        self._limit_reached = False
        places = by_place(ready)
        try:
            for changes in self._look_out(*places, stop_event=status_file, **OPTIONS):
                if status_file.stopped:
                    return
                report(places, changes)
                if self._is_disturbed(roots, ready, changes):
                    return
        except Exception as error:  # noqa: BLE001 - whatever ended the watch, it must be taken up again
            if status_file.stopped:
                return
            status_file.on_armed = None  # if it never was, the next sign of life is another's
            if armed:
                self._diagnosis.died(ready, error)
            else:
                self._diagnosis.unarmed(ready, error)

    def _is_disturbed(
        self, roots: Sequence[WatchedRoot], ready: Sequence[WatchedRoot], changes: set[tuple[Any, str]]
    ) -> bool:
        """Whether the watch must be set up anew: a root is not what it was, or another one can be watched now."""
        places = {root.place for root in ready}
        if any(kind == 3 and path in places for kind, path in changes):  # 3: deleted, or renamed away
            return True
        now = self._clock.steady()
        if changes:
            self._next_trial = now  # a new folder among them may have gone without a watch
        if now < self._next_check:
            return False
        self._next_check = now + CHECK
        replaced = [root for root in ready if identity(root.root) != root.identity]
        for root in replaced:
            root.tell(Lost("another folder stands in its place, or none"))
        if replaced or self._gains(roots, ready, now):
            return True
        if now < self._next_trial:
            return False
        self._next_trial = now + TRIAL
        return self._frees_up(ready)

    def _gains(self, roots: Sequence[WatchedRoot], ready: Sequence[WatchedRoot], now: float) -> bool:
        out = (root for root in roots if root not in ready and now >= root.retry_at and identity(root.root))
        return any(self._is_ready(root) and self._diagnosis.can_be_armed(root) for root in out)

    def _frees_up(self, ready: Sequence[WatchedRoot]) -> bool:
        """When the kernel has no watch left, a new folder goes unwatched without a word: so one is asked for."""
        error = self._diagnosis.trial(ready[0], recursive=False)
        reached = error is not None and is_watch_limit(error)
        if reached and error is not None and not self._limit_reached:
            for root in ready:
                root.tell(Degraded(diagnosis(error)))
        freed = self._limit_reached and not reached
        self._limit_reached = reached
        return freed
