"""Read the time: wall seconds for people and remotes, steady seconds for waiting."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID, uuid4

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct, field

#: The boot id if the system gives none. It is unique for each process, so that steady clocks are never compared.
_UNKNOWN_BOOT: Final = str(uuid4())


def boot_id() -> str:
    """Return the UUID of this boot of the machine; the steady clock restarts at each boot.

    The systemd units hide /proc/sys and pass the boot id in SYSTEMD_BOOT_ID.
    """
    with suppress(ValueError):
        return str(UUID(os.environ.get("SYSTEMD_BOOT_ID", "")))
    with suppress(OSError, ValueError):
        return str(UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()))
    return _UNKNOWN_BOOT


class Clock(Protocol):
    """Define the clocks of the machine; tests pass a clock that they control."""

    def now(self) -> float:
        """Return the wall time in seconds since 1970, UTC, which may jump."""

    def steady(self) -> float:
        """Return the seconds since a fixed start. This time never jumps, and includes sleep of the machine."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


class SystemClock:
    """Read the machine's clocks."""

    def now(self) -> float:
        """Return the wall time."""
        return time.time()

    def steady(self) -> float:
        """Return the steady time."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await anyio.sleep(seconds)


class TurnableClock(Struct):
    """Provide a clock that moves only when `turn` is called, so that simulations and tests reach any time at once."""

    wall: float = 1_790_000_000.0
    running: float = field(default=1_000.0)

    def now(self) -> float:
        """Return the wall time."""
        return self.wall

    def steady(self) -> float:
        """Return the steady time."""
        return self.running

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once, after other tasks have run."""
        await checkpoint()
        self.turn(seconds)

    def turn(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.wall += seconds
        self.running += seconds


class ServerClock:
    """Estimate the clock of a database server by its distance to this machine's steady clock.

    Hosts of a shared queue use this clock, because their own clocks may differ by minutes.

    Every heartbeat bounds the distance again. The distance changes only if it contradicts the bounds, so that the time
    is smooth.
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
        """Use a server's time that was read between two moments of the steady clock."""
        self._distance = min(max(self._distance, server_now - ended), server_now - began)


def iso(seconds: float | None) -> str | None:
    """Return wall seconds as `2026-11-21T04:26:54.123Z`; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
