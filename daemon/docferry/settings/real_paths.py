"""Resolve the links of configured paths with a time limit: a network share whose server is gone never answers."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Final

from msgspec import Struct

#: The time limit of all paths together, seconds. An automounted share needs some of it.
ANSWER_S: Final = 4.0
#: The time after which the paths behind a slow one get threads of their own, seconds.
SLOW_S: Final = 0.5
#: The largest number of such threads.
MOST_THREADS: Final = 64


class RealPath(Struct, frozen=True):
    """Describe the target of a configured path. A path without an answer is kept as configured."""

    path: Path  # with its links resolved
    identity: tuple[int, int] | None = None  # device and inode; None if there is no such file
    answers: bool = True

    def is_same(self, other: RealPath) -> bool:
        """Return whether both are one file or folder, for instance through a bind mount."""
        return self.path == other.path or (self.identity is not None and self.identity == other.identity)


class RealPaths:
    """Hold the targets of some paths.

    They are read in daemon threads, which do not delay the end of the process. A thread that hangs in a share stays
    until the share answers.
    """

    def __init__(self, paths: Iterable[Path], limit: float = ANSWER_S) -> None:
        wanted = list(dict.fromkeys(paths))
        self._ahead = deque(wanted)
        self._found: dict[Path, RealPath] = {}
        self._late = self._run(limit) if wanted else []
        answered = self._found.copy()  # the threads continue to write into `_found`
        self._known = {path: answered.get(path) or RealPath(path, answers=False) for path in wanted}

    def __getitem__(self, path: Path) -> RealPath:
        """Return the target of a path. Raises KeyError for a path that was not given."""
        return self._known[path]

    def unanswered(self, paths: Iterable[Path]) -> Path | None:
        """Return the first of these paths that did not answer; None if all did."""
        return next((path for path in paths if not self._known[path].answers), None)

    @property
    def has_late_answer(self) -> bool:
        """Return whether a path answered after the time limit, or failed."""
        return any(not thread.is_alive() for thread in self._late)

    def _run(self, limit: float) -> list[Thread]:
        """Resolve all paths within the time limit, and return the threads that still hang."""
        end = time.monotonic() + limit
        threads = [self._start()]
        threads[0].join(min(SLOW_S, limit))
        if threads[0].is_alive():
            threads += [self._start() for _ in range(min(len(self._ahead), MOST_THREADS))]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return [thread for thread in threads if thread.is_alive()]

    def _start(self) -> Thread:
        thread = Thread(target=self._work, name="real paths", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        with suppress(IndexError):  # no path is left
            while True:
                path = self._ahead.popleft()
                self._found[path] = _resolve(path)


def _resolve(path: Path) -> RealPath:
    real = path
    try:
        real = Path(os.path.realpath(path))
        status = real.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path, which no file can have
        return RealPath(real)
    return RealPath(real, (status.st_dev, status.st_ino))
