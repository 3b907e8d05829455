"""What ended a watch, or keeps one from beginning: which folder is to be left out, and for how long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from docferry.clock import Clock
from docferry.files.watch.failures import diagnosis, is_undecodable, is_watch_limit
from docferry.files.watch.roots import Degraded, Lost, WatchedRoot

log = logging.getLogger(__name__)

QUICK, QUICK_DEATHS = 10.0, 5  # so many deaths, each within so many seconds of arming, and a folder is left alone
RETRY, RETRY_MOST = 60.0, 900.0  # seconds until it is tried again, twice as long each time

WatchFunction = Callable[..., Iterable[set[tuple[Any, str]]]]  # watchfiles.watch, or what a test puts in its place

#: 100 ms a step: 0.06 % of a core when idle (40 ms: 0.15 %, 5 ms: 0.6 %). What it adds is hidden in `settle`, which
#: runs from the file's own stamp. Polling and permissions are said outright, or variables of the environment would
#: decide.
OPTIONS: dict[str, Any] = {
    "watch_filter": None,
    "debounce": 100,
    "step": 100,
    "rust_timeout": 2000,
    "yield_on_timeout": True,
    "debug": False,
    "raise_interrupt": False,
    "force_polling": False,
    "ignore_permission_denied": False,
}


class WatchDiagnosis:
    """Tries folders alone, and tells their posts what came of it. Lives in a sentry's thread."""

    def __init__(self, clock: Clock, watch_function: WatchFunction) -> None:
        self._clock = clock
        self._look_out = watch_function

    def trial(self, root: WatchedRoot, *, recursive: bool = True) -> Exception | None:
        """What is wrong with watching this one alone, if anything."""
        stop = threading.Event()
        stop.set()
        try:
            for _ in self._look_out(root.place, stop_event=stop, recursive=recursive, **{**OPTIONS, "step": 1}):
                break
        except Exception as error:  # noqa: BLE001 - the question is what is wrong, if anything
            return None if is_undecodable(error) else error  # it was armed, and heard of a name already
        return None

    def can_be_armed(self, root: WatchedRoot) -> bool:
        """Tried alone, so that the others' watch is not torn down for nothing."""
        error = self.trial(root)
        if error is None:
            return True
        if not isinstance(error, FileNotFoundError):
            self._degrade(root, diagnosis(error))
        return False

    def died(self, roots: Sequence[WatchedRoot], error: Exception) -> None:
        """It ended while watching: again at once, unless one folder ends it time after time."""
        now = self._clock.steady()
        log.debug("a watch ended: %s", error)
        culprits = [root for root in roots if f'"{root.place}/' in str(error)] or roots
        for root in roots:
            root.tell(Lost(diagnosis(error)))
        for root in culprits:
            root.deaths = root.deaths + 1 if now - root.began < QUICK else 1
            if root.deaths > QUICK_DEATHS:
                self._degrade(root, diagnosis(error))
            else:
                root.failures = 0

    def unarmed(self, roots: Sequence[WatchedRoot], error: Exception) -> None:
        """It ended before it first stirred: leave out those that stand in the way, each tried alone."""
        if isinstance(error, FileNotFoundError):
            return
        trials = [(root, self.trial(root)) for root in roots]
        guilty = [(root, trial) for root, trial in trials if trial is not None]
        if is_watch_limit(error) and not guilty:  # too many together
            guilty = [(root, error) for root in roots]
        for root, trial in guilty:
            self._degrade(root, diagnosis(trial))
        if not guilty:
            self.died(roots, error)

    def _degrade(self, root: WatchedRoot, reason: str) -> None:
        root.retry_at = self._clock.steady() + min(RETRY * 2**root.failures, RETRY_MOST)
        root.failures += 1
        root.deaths = 0
        root.tell(Degraded(reason))
