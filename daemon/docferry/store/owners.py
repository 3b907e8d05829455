"""Track lease owners: the processes that share a queue, and the rules to declare one dead.

On SQLite a process is alive while the kernel holds the lock of its file, see `locks`. On PostgreSQL each process stamps
a row with the server's clock, so that the clocks of hosts may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol

import anyio
from msgspec import Struct

from docferry import __version__
from docferry.clock import ServerClock
from docferry.errors import DatabaseBusy
from docferry.store import locks
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.server_clock import SERVER_NOW
from docferry.store.statement import Sql

#: The interval between two heartbeats of a process, seconds.
HEARTBEAT_INTERVAL_S: Final = 5.0
#: The time without a confirmed heartbeat after which a process starts nothing and cancels its requests, seconds.
UNCONFIRMED_AFTER_S: Final = 15.0
#: The time after which others take over its leases, seconds.
DEAD_AFTER_S: Final = 30.0

#: The time after which the row of a host that never returned is removed, seconds.
FORGOTTEN_AFTER_S: Final = 30 * 86_400.0

# A restarted host is no longer missing: remove the rows of its dead processes.
_JOIN = Sql(f"""
DELETE FROM process WHERE host = :host AND heartbeat <= {SERVER_NOW} - {DEAD_AFTER_S}
  OR heartbeat <= {SERVER_NOW} - {FORGOTTEN_AFTER_S}
""")
_BEAT = Sql(f"""
INSERT INTO process (owner, host, pid, version, started, heartbeat, clock_offset, unreadable)
VALUES (:owner, :host, :pid, :version, {SERVER_NOW}, {SERVER_NOW}, :clock_offset, :unreadable)
ON CONFLICT (owner) DO UPDATE SET heartbeat = excluded.heartbeat, clock_offset = excluded.clock_offset,
  unreadable = excluded.unreadable
RETURNING heartbeat, (SELECT count(DISTINCT host) FROM process other WHERE other.host <> process.host
  AND other.heartbeat > {SERVER_NOW} - {DEAD_AFTER_S})
""")
_LEAVE = Sql("DELETE FROM process WHERE owner = :owner")
_ALIVE = Sql(f"SELECT owner FROM process WHERE heartbeat > {SERVER_NOW} - {DEAD_AFTER_S}")
_PROCESSES = Sql(f"""
SELECT owner, host, pid, version, started, heartbeat, {SERVER_NOW} - heartbeat, clock_offset, unreadable FROM process
ORDER BY 2, 5
""")
_HELD = Sql("""
SELECT lease_owner, state, count(*) FROM transfer WHERE state IN ('leased', 'sending', 'asking') GROUP BY 1, 2
""")
_SCANS = Sql("SELECT owner, mapping FROM scan_lease ORDER BY mapping")


class Process(Struct, frozen=True):
    """Describe a process that shares the queue. Times are seconds of the server's clock."""

    owner: str
    host: str
    pid: int
    version: str
    started: float
    heartbeat: float
    age: float  # seconds since the heartbeat
    clock_offset: float | None  # seconds by which its host's clock is ahead of the server's
    unreadable: tuple[str, ...]  # shared mappings that its host cannot read
    held: dict[str, int]  # transfers under its leases, by state
    scans: tuple[str, ...]  # shared mappings that it scans

    @property
    def is_alive(self) -> bool:
        """Return whether no other process may take over its leases."""
        return self.age < DEAD_AFTER_S


class Owners(Protocol):
    """Tell running processes of a queue from dead ones. Implemented for one host and for several hosts."""

    is_local: bool  # whether all of them are on this host
    others: int  # other running hosts
    unreadable: set[str]  # shared mappings that this process cannot read

    @property
    def is_confirmed(self) -> bool:
        """Return whether this process may send, because no other process considers it dead."""

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return the given owners whose process has ended, except this process."""

    async def remove(self, owners: Collection[str]) -> None:
        """Record that the leases of dead owners were reclaimed."""


class LocalOwners:
    """Track processes of one host by the locks of their files."""

    is_local = True
    is_confirmed = True
    others = 0

    def __init__(self, state_dir: Path, owner: str) -> None:
        self.unreadable: set[str] = set()
        self._state_dir = state_dir
        self._owner = owner

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return the given owners whose process has ended, except this process."""
        return locks.dead_owners(self._state_dir, owners, self._owner)

    async def remove(self, owners: Collection[str]) -> None:
        """Remove the lock files of dead owners."""
        locks.remove_files(self._state_dir, owners)


class HeartbeatOwners:
    """Track processes of several hosts by their stamped rows."""

    is_local = False

    def __init__(self, database: Database, clock: ServerClock, owner: str, host: str) -> None:
        self.others = 0  # other hosts that were running at the last heartbeat
        self.unreadable: set[str] = set()  # shared mappings that this process cannot read; visible to other hosts
        self._database = database
        self._clock = clock
        self._owner = owner
        self._host = host
        self._confirmed_at = float("-inf")  # steady seconds

    @property
    def is_confirmed(self) -> bool:
        """Return whether the last confirmed heartbeat began less than `UNCONFIRMED_AFTER_S` ago."""
        return self._clock.steady() - self._confirmed_at < UNCONFIRMED_AFTER_S

    async def join(self) -> None:
        """Send the first heartbeat, and remove the rows of this host's dead processes."""
        await self._database.execute(_JOIN, {"host": self._host})
        await self.beat()

    async def beat(self) -> None:
        """Stamp the row of this process. The heartbeat counts from the time before the statement was sent."""
        began = self._clock.steady()
        row = {
            "owner": self._owner,
            "host": self._host,
            "pid": os.getpid(),
            "version": __version__,
            "clock_offset": round(self._clock.local() - self._clock.now(), 3),
            "unreadable": json.dumps(sorted(self.unreadable)),
        }
        server_now, others = await self._database.write(lambda transaction: transaction.fetch_one(_BEAT, row))
        self._clock.correct(server_now, began, self._clock.steady())
        self._confirmed_at = began
        self.others = others

    async def run(self) -> None:
        """Stamp the row until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT_INTERVAL_S)
            with contextlib.suppress(DatabaseBusy):  # without a confirmed heartbeat, nothing is sent
                await self.beat()

    async def leave(self) -> None:
        """Remove the row of this process, so that others take over its leases at once."""
        await self._database.execute(_LEAVE, {"owner": self._owner})

    async def dead(self, owners: Collection[str]) -> set[str]:
        """Return the given owners without a recent heartbeat. Earlier names of this process also count as dead."""
        # Read by the writer: a reader's connection may lead to a standby or an earlier primary.
        alive = {owner for (owner,) in await self._database.write(lambda transaction: transaction.fetch_all(_ALIVE))}
        current = f"{self._owner}#{self._database.unknown_commits}" if self._database.unknown_commits else self._owner
        return {
            owner
            for owner in owners
            if owner != current and (_process(owner) not in alive or _process(owner) == self._owner)
        }

    async def remove(self, owners: Collection[str]) -> None:
        """Do nothing: the row of a dead owner stays, so that its host counts as missing until it returns."""


async def processes(database: Database) -> list[Process]:
    """Return the processes that share a PostgreSQL queue, by host."""
    return await database.read(read_processes)


def read_processes(transaction: Transaction) -> list[Process]:
    """Return the processes that share the queue, by host; none on SQLite."""
    held: dict[str, dict[str, int]] = {}
    scans: dict[str, tuple[str, ...]] = {}
    if not transaction.has_recordsets:
        return []
    rows = transaction.fetch_all(_PROCESSES)
    for owner, state, count in transaction.fetch_all(_HELD) if rows else ():
        states = held.setdefault(_process(owner), {})
        states[state] = states.get(state, 0) + count
    for owner, mapping in transaction.fetch_all(_SCANS) if rows else ():
        scans[owner] = (*scans.get(owner, ()), mapping)
    found = []
    for owner, host, pid, version, started, heartbeat, age, offset, unreadable in rows:
        facts = owner, host, pid, version, started, heartbeat, age, offset
        found.append(Process(*facts, _names(unreadable), held.get(owner, {}), scans.get(owner, ())))
    return found


def _names(written: str | None) -> tuple[str, ...]:
    """Return a list of names from JSON; an empty one for invalid content."""
    try:
        found = json.loads(written or "[]")
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _process(owner: str) -> str:
    """Return the name of a process without the number of its commits with an unknown result."""
    return owner.partition("#")[0]
