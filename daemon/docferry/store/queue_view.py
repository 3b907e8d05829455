"""Read one consistent snapshot of the whole queue, for `status`, the metrics, the status page and the alerts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import anyio
from msgspec import Struct, field
from msgspec.structs import replace

from docferry.errors import DatabaseBusy
from docferry.model import Gate, joined
from docferry.store.connection import Transaction, as_bytes
from docferry.store.database import Database
from docferry.store.owners import Process, processes, read_processes
from docferry.store.statement import Sql

#: The smallest age of a snapshot as a multiple of its duration: a large queue is not read constantly.
COST_FACTOR: Final = 20.0
OLDEST_LOOK_S: Final = 60.0
#: Documents counted by one statement.
COUNTED_AT_ONCE: Final = 50_000
#: The longest duration of a read that a caller waits for, seconds.
QUICK_S: Final = 0.25

# Each part repeats the condition of a partial index exactly: otherwise SQLite reads every transfer.
_OPEN_STATES: Final = ("state = 'waiting'", "state = 'doubtful'", "state IN ('leased', 'sending', 'asking')")


class Due(Struct, frozen=True):
    """Count the due documents of one mapping at one remote, with the oldest due time; wall seconds."""

    mapping: str
    remote: str
    documents: int
    since: float


class OldestDue(Struct, frozen=True):
    """Describe the document that has been due for longest at one remote."""

    id: int
    mapping: str
    path: bytes
    since: float


class QueueSnapshot(Struct, frozen=True):
    """Hold the state of the queue at one moment."""

    documents: dict[str, dict[str, int]] = field(default_factory=dict)  # by mapping and state
    held: list[tuple[str, str, int]] = field(default_factory=list)  # mapping, reason, documents
    arrivals: dict[str, int] = field(default_factory=dict)  # files from downloads, by mapping
    gates: dict[str, Gate] = field(default_factory=dict)  # by key
    due: list[Due] = field(default_factory=list)
    oldest: dict[str, OldestDue] = field(default_factory=dict)  # by remote
    hosts: list[Process] = field(default_factory=list)  # the processes of a shared queue; empty on SQLite


#: The longest wait of people and monitoring for the database, seconds.
SNAPSHOT_TIMEOUT_S: Final = 5.0


class QueueView:
    """Take snapshots. For a large queue, return the last one while `refresh_when_asked` takes the next."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = anyio.Lock()
        self._asked = anyio.Event()
        self._kept: QueueSnapshot | None = None
        self._took = 0.0  # seconds
        self._fresh_until = 0.0

    async def snapshot(self) -> QueueSnapshot:
        """Return the present state of the queue; for a large one, a state at most about `OLDEST_LOOK_S` old.

        While the database does not answer, return the last snapshot. Raises DatabaseBusy if there is none.
        """
        if self._kept is not None and self._database.trouble is not None:
            return self._kept
        with anyio.move_on_after(SNAPSHOT_TIMEOUT_S):
            return await self._current()
        if self._kept is None:
            raise DatabaseBusy(self._database.trouble or "the database has not answered yet; see the log")
        return self._kept

    async def _current(self) -> QueueSnapshot:
        if self._kept is not None and self._took > QUICK_S:
            if time.monotonic() >= self._fresh_until:
                self._asked.set()
            return replace(self._kept, hosts=await processes(self._database))  # heartbeats are fast to read
        return await self._refresh()

    def outdate(self) -> None:
        """Take a new snapshot at the next call, because the queue was just changed."""
        self._fresh_until = 0.0

    async def refresh_when_asked(self) -> None:
        """Take snapshots in the background until cancelled."""
        while True:
            await self._asked.wait()
            await self._refresh()
            self._asked = anyio.Event()

    async def _refresh(self) -> QueueSnapshot:
        async with self._lock:
            began = time.monotonic()
            if self._kept is None or began >= self._fresh_until:
                self._kept = await self._database.read(queue_snapshot)
                self._took = time.monotonic() - began
                self._fresh_until = time.monotonic() + min(self._took * COST_FACTOR, OLDEST_LOOK_S)
            return self._kept


def queue_snapshot(transaction: Transaction) -> QueueSnapshot:
    """Read everything in one transaction."""
    documents = _documents(transaction)
    due = [Due(*row) for row in transaction.fetch_all(_DUE)]
    return QueueSnapshot(
        documents=documents,
        held=[(row[0], row[1], row[2]) for row in transaction.fetch_all(_HELD)],
        arrivals={row[0]: row[1] for row in transaction.fetch_all(_ARRIVALS)},
        gates={r[0]: Gate(r[0], r[1], r[2], r[3], r[4], r[5], bool(r[6])) for r in transaction.fetch_all(_GATES)},
        due=_merged(due),
        oldest=_oldest(transaction, due),
        hosts=read_processes(transaction),
    )


def _documents(transaction: Transaction) -> dict[str, dict[str, int]]:
    """Count documents by mapping and state, piece by piece: grouping a million rows at once takes SQLite 60 MB."""
    found: dict[str, dict[str, int]] = {}
    first, last = transaction.fetch_one(_ENDS)
    for start in range(first, last + 1, COUNTED_AT_ONCE) if first is not None else ():
        for mapping, state, count in transaction.fetch_all(_COUNTS, {"start": start, "end": start + COUNTED_AT_ONCE}):
            states = found.setdefault(mapping, {})
            states[state] = states.get(state, 0) + count
    return found


def _merged(due: Iterable[Due]) -> list[Due]:
    """Return one entry for each mapping and remote, with all states added up."""
    found: dict[tuple[str, str], Due] = {}
    for each in due:
        key = each.mapping, each.remote
        known = found.get(key, Due(*key, 0, each.since))
        found[key] = Due(*key, known.documents + each.documents, min(known.since, each.since))
    return list(found.values())


def _oldest(transaction: Transaction, due: Iterable[Due]) -> dict[str, OldestDue]:
    first: dict[str, Due] = {}
    for each in due:
        if each.remote not in first or each.since < first[each.remote].since:
            first[each.remote] = each
    found = {}
    for remote, each in first.items():
        query = {"mapping": each.mapping, "remote": remote, "since": each.since}
        row = transaction.fetch_one(_OLDEST, query)
        if row is not None:
            found[remote] = OldestDue(row[0], each.mapping, joined(as_bytes(row[1]), as_bytes(row[2])), each.since)
    return found


# Two queries: with a condition on both ends, SQLite reads the whole table.
_ENDS = Sql("SELECT (SELECT min(id) FROM document), (SELECT max(id) FROM document)")
_COUNTS = Sql(
    "SELECT d.mapping, t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id "
    "WHERE d.id >= :start AND d.id < :end GROUP BY 1, 2"
)
_HELD = Sql(
    "SELECT d.mapping, t.reason, count(*) FROM transfer t "
    "CROSS JOIN document d "  # CROSS makes SQLite begin with the few held transfers
    "WHERE t.state = 'held' AND d.transfer_id = t.id AND d.present GROUP BY 1, 2 ORDER BY 1, 2"
)
_ARRIVALS = Sql("SELECT mapping, count(*) FROM download WHERE published AND path IS NOT NULL GROUP BY 1")
_GATES = Sql("SELECT key, reason, detail, until, tries, since, lets_doubts_pass FROM gate ORDER BY key")
_DUE = Sql(
    " UNION ALL ".join(
        f"SELECT mapping, remote, count(*), min(due_since) FROM transfer WHERE {states} GROUP BY 1, 2"
        for states in _OPEN_STATES
    )
)
_CANDIDATES = " UNION ALL ".join(
    f"SELECT id FROM transfer WHERE {states} AND mapping = :mapping AND remote = :remote AND due_since = :since"
    for states in _OPEN_STATES
)
_OLDEST = Sql(
    f"SELECT d.id, d.folder, d.name FROM ({_CANDIDATES}) t JOIN document d ON d.transfer_id = t.id "
    "ORDER BY d.present DESC, d.id LIMIT 1"
)
