"""Keep the queue of one process in order: reclaim leases of dead owners, and follow jumps of the wall clock."""

from __future__ import annotations

from docferry import logs
from docferry.clock import Clock
from docferry.store.clock_jumps import JUMP_S
from docferry.store.owners import Owners
from docferry.store.refusals import refusal_logged
from docferry.store.transfers import Transfers

log = logs.get("maintenance")

#: The interval at which leases of dead owners are reclaimed, seconds.
RECLAIM_INTERVAL_S = 5.0


class Maintenance:
    """Run periodic work of the scheduler between claims."""

    def __init__(self, transfers: Transfers, clock: Clock, owners: Owners) -> None:
        self._transfers = transfers
        self._clock = clock
        self._owners = owners
        self._drift = clock.now() - clock.steady()
        self._reclaimed_at = -RECLAIM_INTERVAL_S

    async def prepare(self) -> None:
        """Reclaim the leases of dead owners and correct times, before anything is claimed."""
        with refusal_logged("times are corrected"):
            if self._owners.is_local:
                await self._transfers.shift_times(self._drift)
            await self._transfers.reset_future_rows()
        await self._reclaim()

    async def run_due(self) -> None:
        """Run all due work."""
        steady = self._clock.steady()
        if steady - self._reclaimed_at >= RECLAIM_INTERVAL_S:
            self._reclaimed_at = steady
            await self._reclaim()
            await self._transfers.retry_refused()
        drift = self._clock.now() - steady
        # In a shared queue the server's clock is used, which does not jump with this machine's.
        if self._owners.is_local and abs(drift - self._drift) > JUMP_S:
            seconds = round(drift - self._drift)
            log.warning("clock_jumped", "the times of all waiting documents were shifted with it", seconds=seconds)
            await self._transfers.shift_times(drift)
            self._drift = drift
        elif not self._owners.is_local:
            self._drift = drift  # the clocks of two machines drift apart without a jump

    async def _reclaim(self) -> None:
        dead = await self._owners.dead(await self._transfers.lease_owners())
        if dead:
            reclaimed = await self._transfers.reclaim(dead)
            await self._owners.remove(dead)
            log.info("leases_reclaimed", transfers=reclaimed)
