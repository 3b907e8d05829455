"""Lease owners: the processes that share a queue, and the rules for calling one dead.

On SQLite a process is alive while the kernel holds the lock of its file, see `locks`. On PostgreSQL each process stamps
a row with the server's clock, so that the clocks of hosts may differ.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import anyio
from sqlalchemy import text

from docferry import __version__
from docferry.clock import Clock, SharedClock
from docferry.store import locks
from docferry.store.connection import Transaction
from docferry.store.database import Database

#: How often a process stamps its row, seconds.
HEARTBEAT_INTERVAL_S: Final = 5.0
#: Without a confirmed heartbeat for so long, a process starts nothing and cancels what is in flight. Seconds.
UNCONFIRMED_AFTER_S: Final = 15.0
#: After so long others take over its leases, seconds.
DEAD_AFTER_S: Final = 30.0

_NOW = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"  # the server's clock
_BEAT = text(f"""
INSERT INTO process (owner, host, pid, version, started, heartbeat)
VALUES (:owner, :host, :pid, :version, {_NOW}, {_NOW})
ON CONFLICT (owner) DO UPDATE SET heartbeat = excluded.heartbeat
RETURNING heartbeat
""")
_LEAVE = text("DELETE FROM process WHERE owner = :owner")
_ALIVE = text(f"SELECT owner FROM process WHERE heartbeat > {_NOW} - {DEAD_AFTER_S}")
_REMOVE = text(f"DELETE FROM process WHERE owner = ANY(:owners) AND heartbeat <= {_NOW} - {DEAD_AFTER_S}")
_PROCESSES = text(
    f"SELECT owner, host, pid, version, started, heartbeat, {_NOW} - heartbeat FROM process ORDER BY 2, 5"
)
_HELD = text("""
SELECT lease_owner, state, count(*) FROM transfer WHERE state IN ('leased', 'sending', 'asking') GROUP BY 1, 2
""")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that shares the queue. Times are seconds of the server's clock."""

    owner: str
    host: str
    pid: int
    version: str
    started: float
    heartbeat: float
    age: float  # of the heartbeat, seconds
    held: dict[str, int]  # transfers under its leases, by state

    @property
    def is_alive(self) -> bool:
        """Whether no other process may take over its leases."""
        return self.age < DEAD_AFTER_S


class Owners(Protocol):
    """The processes that share a queue."""

    is_local: bool  # all of them are on this host

    @property
    def is_confirmed(self) -> bool:
        """Whether this process may send: no other process takes it for dead."""

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return those of `owners` whose process has ended, without this process."""

    async def remove(self, owners: Collection[str]) -> None:
        """Forget dead owners after their leases were reclaimed."""


class LocalOwners:
    """Processes of one host, by the locks of their files."""

    is_local = True
    is_confirmed = True

    def __init__(self, state_dir: Path, owner: str) -> None:
        self._state_dir = state_dir
        self._owner = owner

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return those of `owners` whose process has ended, without this process."""
        return locks.dead_owners(self._state_dir, owners, self._owner)

    async def remove(self, owners: Collection[str]) -> None:
        """Remove the lock files of dead owners."""
        locks.remove_files(self._state_dir, owners)


class HeartbeatOwners:
    """Processes of several hosts, by the rows that they stamp."""

    is_local = False

    def __init__(self, database: Database, clock: Clock, owner: str, host: str) -> None:
        self._database = database
        self._clock = clock
        self._owner = owner
        self._host = host
        self._confirmed_at = float("-inf")  # steady seconds

    @property
    def is_confirmed(self) -> bool:
        """Whether the last confirmed heartbeat began less than `UNCONFIRMED_AFTER_S` ago."""
        return self._clock.steady() - self._confirmed_at < UNCONFIRMED_AFTER_S

    async def beat(self) -> None:
        """Stamp the row of this process. It counts from the time before the statement was sent."""
        began = self._clock.steady()
        row = {"owner": self._owner, "host": self._host, "pid": os.getpid(), "version": __version__}
        (server_time,) = await self._database.write(lambda transaction: transaction.fetch_one(_BEAT, row))
        self._confirmed_at = began
        if isinstance(self._clock, SharedClock):
            self._clock.follow(server_time, began)

    async def run(self) -> None:
        """Stamp the row until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT_INTERVAL_S)
            await self.beat()

    async def leave(self) -> None:
        """Remove the row of this process, so that others take over its leases at once."""
        await self._database.execute(_LEAVE, {"owner": self._owner})

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return those of `owners` without a recent heartbeat. Earlier names of this process are dead too."""
        # Read by the writer: a reader's connection may lead to a standby or an earlier primary.
        alive = {owner for (owner,) in await self._database.write(lambda transaction: transaction.fetch_all(_ALIVE))}
        current = f"{self._owner}#{self._database.unknown_commits}" if self._database.unknown_commits else self._owner
        return {
            owner
            for owner in owners
            if owner != current and (_process(owner) not in alive or _process(owner) == self._owner)
        }

    async def remove(self, owners: Collection[str]) -> None:
        """Remove the rows of dead owners."""
        await self._database.execute(_REMOVE, {"owners": sorted({_process(owner) for owner in owners})})


async def processes(database: Database) -> list[Process]:
    """Return the processes that share a PostgreSQL queue."""

    def work(transaction: Transaction) -> list[Process]:
        held: dict[str, dict[str, int]] = {}
        for owner, state, count in transaction.fetch_all(_HELD):
            states = held.setdefault(_process(owner), {})
            states[state] = states.get(state, 0) + count
        rows = transaction.fetch_all(_PROCESSES)
        return [
            Process(owner, host, pid, version, started, heartbeat, age, held.get(owner, {}))
            for owner, host, pid, version, started, heartbeat, age in rows
        ]

    return await database.read(work)


def _process(owner: str) -> str:
    """Return the name of a process without the number of its commits with an unknown result."""
    return owner.partition("#")[0]
