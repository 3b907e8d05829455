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


class ServerClock:
    """The clock of a database server, as a distance to this machine's steady clock.

    Hosts of a shared queue use it, because their own clocks may differ by minutes.

    Every heartbeat bounds the distance anew. It changes only where the bounds contradict it: the time is smooth.
    """

    def __init__(self, local: Clock, server_now: float, began: float, ended: float) -> None:
        self._local = local
        self._distance = server_now - (began + ended) / 2  # seconds

    def now(self) -> float:
        """Return the server's wall time, seconds."""
        return self._local.steady() + self._distance

    def steady(self) -> float:
        """Return this machine's steady time, seconds."""
        return self._local.steady()

    async def sleep(self, seconds: float) -> None:
        """Wait by this machine's steady clock."""
        await self._local.sleep(seconds)

    def local(self) -> float:
        """Return this machine's wall time, seconds."""
        return self._local.now()

    def correct(self, server_now: float, began: float, ended: float) -> None:
        """Take a server's time into account that was read between two moments of the steady clock."""
        self._distance = min(max(self._distance, server_now - ended), server_now - began)


def iso(seconds: float | None) -> str | None:
    """Return wall seconds as `2026-11-21T04:26:54.123Z`; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
