"""Run a thread that watches a group of roots, and replace the thread when it hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from docferry.clock import Clock
from docferry.files.watch import tree
from docferry.files.watch.events import Degraded, Lost
from docferry.files.watch.session import Session
from docferry.files.watch.tree import WatchedRoot


class WatchThread:
    """Run a thread while there are roots. `guard` and `leave` may be called from any thread."""

    def __init__(self, clock: Clock, hung: float) -> None:
        self._clock = clock
        self._hung = hung
        self._lock = threading.Lock()
        self._roots: list[WatchedRoot] = []
        self._session: Session | None = None
        self._replaced = 0

    def __len__(self) -> int:
        return len(self._roots)

    @property
    def beat(self) -> float:
        """Return the steady seconds of the thread's last progress."""
        return self._session.beat if self._session else self._clock.steady()

    @property
    def patience(self) -> int:
        """Return the factor of the time limit without progress. It grows, so that hanging threads do not accumulate."""
        return int(2 ** min(self._replaced, 7))

    def guard(self, root: WatchedRoot) -> None:
        """Add a root to the watch."""
        with self._lock:
            self._roots.append(root)
            if self._session is None:
                self._start([])
            if self._session is not None:
                self._session.add(root)

    def leave(self, root: WatchedRoot) -> threading.Thread | None:
        """Remove a root from the watch. Return the thread to be joined if no root is left."""
        with self._lock:
            self._roots.remove(root)
            session = self._session
            if session is None:
                return None
            session.drop(root)
            if self._roots:
                return None
            self._session = None
            session.stop()
            return session.thread

    def replace(self, beat: float) -> None:
        """Abandon a thread without progress since `beat`, and start another."""
        with self._lock:
            if not self._roots or self._session is None or self._session.beat != beat:
                return
            hanging = self._session.at_work
            self._session.stop()
            roots = list(self._roots)
            for root in roots:
                root.is_armed, root.folders = False, set()
            if hanging is not None:
                hanging.retry_at = self._clock.steady() + tree.WATCH_RETRY_S * self.patience
            self._replaced += 1
            self._start(roots)
        for root in roots:
            root.tell(Lost("the watcher hung and was started again"))
        if hanging is not None:
            hanging.tell(Degraded("its file system does not answer"))

    def _start(self, roots: Iterable[WatchedRoot]) -> None:
        self._session = Session(self._clock, self._hung)
        for root in roots:
            self._session.add(root)
        self._session.thread.start()
