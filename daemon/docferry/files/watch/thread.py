"""A thread that watches a group of roots, and is replaced when it hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from docferry.clock import Clock
from docferry.files.watch import tree
from docferry.files.watch.events import Degraded, Lost
from docferry.files.watch.session import Session
from docferry.files.watch.tree import WatchedRoot


class WatchThread:
    """A thread that exists while there are roots. `guard` and `leave` may be called from any thread."""

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
        """Steady seconds of the thread's latest sign of life."""
        return self._session.beat if self._session else self._clock.steady()

    @property
    def patience(self) -> int:
        """The factor of the time limit for a sign of life: threads that hang on a dead share must not pile up."""
        return int(2 ** min(self._replaced, 7))

    def guard(self, root: WatchedRoot) -> None:
        """Watch this root too."""
        with self._lock:
            self._roots.append(root)
            if self._session is None:
                self._start([])
            if self._session is not None:
                self._session.add(root)

    def leave(self, root: WatchedRoot) -> threading.Thread | None:
        """Stop watching this root. Returns the thread when it ends because no root is left, to be joined."""
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
        """Give up a thread that has shown no life since `beat`, and start another."""
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
