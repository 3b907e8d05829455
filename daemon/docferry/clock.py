"""Read the time: wall seconds for people and remotes, steady seconds for waiting."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID, uuid4

import anyio
from anyio.lowlevel import checkpoint

#: The boot id where the system gives none. It differs in each process, so that none compares steady clocks.
_UNKNOWN_BOOT: Final = str(uuid4())


def boot_id() -> str:
    """Return the UUID of this boot of the machine; the steady clock begins anew with each.

    The systemd units hide /proc/sys and name the boot in SYSTEMD_BOOT_ID.
    """
    with suppress(ValueError):
        return str(UUID(os.environ.get("SYSTEMD_BOOT_ID", "")))
    with suppress(OSError, ValueError):
        return str(UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()))
    return _UNKNOWN_BOOT


class Clock(Protocol):
    """The clocks of the machine; tests pass one that they control."""

    def now(self) -> float:
        """Return the seconds since 1970, UTC. They may jump."""

    def steady(self) -> float:
        """Return the seconds since some start. They never jump, and count while the machine sleeps."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return the wall time."""
        return time.time()

    def steady(self) -> float:
        """Return the steady time."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await anyio.sleep(seconds)


class SharedClock(SystemClock):
    """The clock of a queue that several hosts share: the wall time of its server.

    A jump of this machine's wall clock changes nothing, because the time passes with the steady clock.
    """

    #: A smaller difference may come from the delay of an answer, seconds.
    TOLERANCE_S: Final = 0.5

    def __init__(self) -> None:
        self._offset = time.time() - self.steady()

    def now(self) -> float:
        """Return the wall time of the server."""
        return self._offset + self.steady()

    def follow(self, server_time: float, asked: float) -> None:
        """Follow the server, whose time lies between `asked`, in steady seconds, and now."""
        answered = self.steady()
        offset, error = server_time - (asked + answered) / 2, (answered - asked) / 2
        if abs(offset - self._offset) > error + self.TOLERANCE_S:
            self._offset = offset


@dataclass(slots=True)
class TurnableClock:
    """A clock that moves only when `turn` is called, so that simulations and tests reach any time at once."""

    wall: float = 1_790_000_000.0
    running: float = field(default=1_000.0)

    def now(self) -> float:
        """Return the wall time."""
        return self.wall

    def steady(self) -> float:
        """Return the steady time."""
        return self.running

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once; other tasks run first."""
        await checkpoint()
        self.turn(seconds)

    def turn(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.wall += seconds
        self.running += seconds


def iso(seconds: float | None) -> str | None:
    """Return wall seconds as `2026-11-21T04:26:54.123Z`; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
