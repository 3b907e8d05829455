"""Measure which documents are found and how long that takes, for docs/reliability.md."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from app_env import digest, until
from faults.conftest import FULL, FaultEnv

#: Interval of progress lines, seconds.
SAY_EVERY = 5.0


def progress(count: Callable[[], int], of: int, seconds: float, what: str) -> None:
    """Wait until `count` reaches `of`, and print the progress of long runs.

    Polls slowly at full size, as counting many documents is expensive.
    """
    said = time.monotonic()

    def enough() -> bool:
        nonlocal said
        if FULL:
            time.sleep(0.1)  # polling interval of a run that takes minutes
        found = count()
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            print(f"  {found:,} of {of:,} {what}", flush=True)
        return found >= of

    until(enough, seconds, f"{of:,} {what}")


@dataclass(frozen=True, slots=True)
class Waits:
    """Hold the waiting times of the found documents in seconds, shortest first."""

    sought: int
    seconds: list[float]

    @property
    def all_found(self) -> bool:
        return len(self.seconds) == self.sought

    def within(self, percent: float) -> float:
        """Return the percentile `percent` in seconds."""
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * percent / 100))]

    def __str__(self) -> str:
        found = f"{len(self.seconds):,} of {self.sought:,}"
        if not self.seconds:
            return found
        return f"{found}; p50 {self.within(50):.2f} s, p99 {self.within(99):.2f} s, longest {self.seconds[-1]:.2f} s"


@dataclass
class Drops:
    """Documents with distinct content, so that each is identified by its digest."""

    fault_env: FaultEnv
    at: dict[str, float] = field(default_factory=dict)  # digest → wall seconds since when it exists

    def drop(self, path: Path | bytes, content: bytes) -> None:
        """Write a file at once."""
        with open(path, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
            file.write(content)
        self.note(content)

    def note(self, content: bytes) -> None:
        """Record that a document exists from now on."""
        self.at[digest(content)] = time.time()

    def since_now(self) -> None:
        """Measure all documents from now on."""
        self.at = dict.fromkeys(self.at, time.time())

    def arrive(self, seconds: float) -> Waits:
        """Wait until the remotes have all documents."""
        stored = self.fault_env.simulator.recorder.stored
        others = sum(each.sha256 not in self.at for each in list(stored))
        progress(lambda: len(stored) - others, len(self.at), seconds, "arrived")
        return self._waits({each.sha256: each.at for each in list(stored)})

    def found(self) -> Waits:
        """Return the times until the documents were in the queue."""
        first: dict[str, float] = {}
        for row in self.fault_env.rows():
            seen = datetime.fromisoformat(row["first_seen"]).timestamp()
            first[row["sha256"]] = min(seen, first.get(row["sha256"], seen))
        return self._waits(first)

    def _waits(self, when: Mapping[str, float]) -> Waits:
        return Waits(len(self.at), sorted(when[sha] - at for sha, at in self.at.items() if sha in when))


def report(row: str, what: str, waits: Waits, most: float) -> None:
    """Print the figures and check them: all are found and, at full size, 99 of 100 within `most` seconds.

    In a run of all tests the load of the machine decides the times.
    """
    print(f"  {row}: {what}: {waits}", flush=True)
    assert waits.all_found, f"{row}: {waits}"
    if FULL:
        assert waits.within(99) <= most, f"{row}: {waits}"


def peak_memory(pid: int) -> int:
    """Return the peak memory of a process in bytes."""
    return 1024 * int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


def odd_path(folder: Path, number: int) -> bytes:
    """Return a path whose last part is not UTF-8."""
    return os.fsencode(folder) + b"/\xff%d\xe4.pdf" % number
