"""What was dropped, what of it is found, and how long that took: the figures that docs/reliability.md reports."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from app_env import digest, until
from faults.conftest import FULL, Terrain

#: Seconds between two lines about how far a long run is.
SAY_EVERY = 5.0


def progress(count: Callable[[], int], of: int, seconds: float, what: str) -> None:
    """Wait until there are so many, and say now and then how far it is. Looks seldom where there are many: counting
    would cost more than what is counted.
    """
    said = time.monotonic()

    def enough() -> bool:
        nonlocal said
        if FULL:
            time.sleep(0.1)  # between two looks at what takes minutes
        found = count()
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            print(f"  {found:,} of {of:,} {what}", flush=True)
        return found >= of

    until(enough, seconds, f"{of:,} {what}")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long each of those that were found took, in seconds, shortest first."""

    sought: int
    seconds: list[float]

    @property
    def all_found(self) -> bool:
        return len(self.seconds) == self.sought

    def within(self, percent: float) -> float:
        """So many seconds did it take for this part of them."""
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * percent / 100))]

    def __str__(self) -> str:
        found = f"{len(self.seconds):,} of {self.sought:,}"
        if not self.seconds:
            return found
        return f"{found}; p50 {self.within(50):.2f} s, p99 {self.within(99):.2f} s, longest {self.seconds[-1]:.2f} s"


@dataclass
class Drops:
    """Documents of which no two have the same bytes, so that each can be told by its digest."""

    terrain: Terrain
    at: dict[str, float] = field(default_factory=dict)  # digest → wall seconds since when it could be found

    def drop(self, path: Path | bytes, content: bytes) -> None:
        """Write it in one go."""
        with open(path, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
            file.write(content)
        self.note(content)

    def note(self, content: bytes) -> None:
        """It lies there from now on."""
        self.at[digest(content)] = time.time()

    def since_now(self) -> None:
        """None of them could be found before."""
        self.at = dict.fromkeys(self.at, time.time())

    def arrive(self, seconds: float) -> Waits:
        """Until the remotes have all of them."""
        stored = self.terrain.simulator.recorder.stored
        others = sum(each.sha256 not in self.at for each in list(stored))
        progress(lambda: len(stored) - others, len(self.at), seconds, "arrived")
        return self._waits({each.sha256: each.at for each in list(stored)})

    def found(self) -> Waits:
        """When each of them was in the queue, by the queue's own word."""
        first: dict[str, float] = {}
        for row in self.terrain.rows():
            seen = datetime.fromisoformat(row["first_seen"]).timestamp()
            first[row["sha256"]] = min(seen, first.get(row["sha256"], seen))
        return self._waits(first)

    def _waits(self, when: Mapping[str, float]) -> Waits:
        return Waits(len(self.at), sorted(when[sha] - at for sha, at in self.at.items() if sha in when))


def report(row: str, what: str, waits: Waits, most: float) -> None:
    """Say the figures; all must be found, and at full size 99 of 100 within `most` seconds. Beside other tests the
    machine decides how long things take, not docferry.
    """
    print(f"  {row}: {what}: {waits}", flush=True)
    assert waits.all_found, f"{row}: {waits}"
    if FULL:
        assert waits.within(99) <= most, f"{row}: {waits}"


def peak_memory(pid: int) -> int:
    """The most that a program ever had in memory, in bytes."""
    return 1024 * int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


def odd_path(folder: Path, number: int) -> bytes:
    """A path whose last part is no UTF-8."""
    return os.fsencode(folder) + b"/\xff%d\xe4.pdf" % number
