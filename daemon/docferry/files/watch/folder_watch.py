"""Run one call of watchfiles over a fixed list of folders, in its own thread.

The call is not recursive: a recursive watchfiles follows links, and a customer could lead it anywhere. So docferry
lists the folders itself, without links.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection
from typing import Any, Final

import watchfiles
from msgspec import Struct, field

from docferry.clock import Clock

#: A step of 100 ms costs 0.06 % of a core when idle (40 ms: 0.15 %, 5 ms: 0.6 %). `settle` hides the delay. Polling and
#: permissions are passed explicitly, because watchfiles would otherwise read variables of the environment.
OPTIONS: Final[dict[str, Any]] = {
    "watch_filter": None,
    "debounce": 100,
    "step": 100,
    "rust_timeout": 2000,
    "yield_on_timeout": True,
    "debug": False,
    "raise_interrupt": False,
    "force_polling": False,
    "recursive": False,
    "ignore_permission_denied": False,
}


class WatchReport(Struct, frozen=True):
    """Report news of a FolderWatch: it is armed, it saw changes, or it has ended with an error."""

    watch: FolderWatch
    changes: set[tuple[Any, str]] = field(default_factory=set)
    error: Exception | None = None
    is_end: bool = False


class FolderWatch:
    """Watch folders until `stop`. As its own stop event, it notices every step of watchfiles as a sign of progress."""

    def __init__(self, folders: Collection[str], inbox: queue.SimpleQueue[object], clock: Clock) -> None:
        self.folders = frozenset(folders)
        self._inbox = inbox  # receives the reports
        self._clock = clock
        self.is_armed = False
        self.is_stopped = False
        self.beat = clock.steady()

    def start(self) -> None:
        """Start a daemon thread: a thread that hangs in the kernel must not delay the end of the program."""
        threading.Thread(target=self._run, name="docferry watch folders", daemon=True).start()

    def stop(self) -> None:
        """Make the thread end at its next step, without further reports."""
        self.is_stopped = True

    def is_set(self) -> bool:
        """Return whether watchfiles must stop. The first call shows that the folders are watched."""
        self.beat = self._clock.steady()
        if not self.is_armed and not self.is_stopped:
            self.is_armed = True
            self._inbox.put(WatchReport(self))
        return self.is_stopped

    def _run(self) -> None:
        error: Exception | None = None
        try:
            for changes in watchfiles.watch(*sorted(self.folders), stop_event=self, **OPTIONS):
                if self.is_stopped:
                    return
                if changes:
                    self._inbox.put(WatchReport(self, changes))
        except Exception as ended:  # noqa: BLE001 - any error ends the watch, and the session starts it again
            error = ended
        if not self.is_stopped:
            self._inbox.put(WatchReport(self, error=error or RuntimeError("it ended"), is_end=True))
