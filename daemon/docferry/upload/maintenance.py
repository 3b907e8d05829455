"""What the queue needs beside its carriers: leases of the dead are taken back, and a turned clock is followed."""

from __future__ import annotations

from pathlib import Path

from docferry import logs
from docferry.clock import Clock
from docferry.store import locks
from docferry.store.clock_jumps import JUMP
from docferry.store.transfers import Transfers

log = logs.get("runner")

#: How often leases of dead owners are taken back, seconds.
SWEEP = 5.0


class Maintenance:
    """Looks after the queue of one process, whenever its runner comes round."""

    def __init__(self, transfers: Transfers, clock: Clock, state_dir: Path) -> None:
        self._transfers = transfers
        self._clock = clock
        self._state_dir = state_dir
        self._drift = clock.now() - clock.steady()
        self._swept = -SWEEP

    async def prepare(self) -> None:
        """Take back what dead processes left, before anything is claimed."""
        await self._transfers.turned(self._drift)
        await self._transfers.reset_future_rows()
        await self._sweep()

    async def turn(self) -> None:
        steady = self._clock.steady()
        if steady - self._swept >= SWEEP:
            self._swept = steady
            await self._sweep()
        drift = self._clock.now() - steady
        if abs(drift - self._drift) > JUMP:
            seconds = round(drift - self._drift)
            log.warning("clock_jumped", "what is due stays due in as long as before", seconds=seconds)
            await self._transfers.turned(drift)
            self._drift = drift

    async def _sweep(self) -> None:
        owners = await self._transfers.owners()
        dead = locks.dead(self._state_dir, owners, self._transfers.owner)
        if dead:
            swept = await self._transfers.sweep(dead)
            locks.forget(self._state_dir, dead)
            log.info("leases_taken_back", transfers=swept)
