"""Read the log of receipts for people and auditors, and store its heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from docferry.clock import Clock, iso
from docferry.errors import StateError
from docferry.receipts.audit import Audit, AuditedReceipt, Deliveries, Findings, NamedHead
from docferry.receipts.heads import Head, SignedHead, Signer, parse_note
from docferry.receipts.merkle import Frontier
from docferry.store.connection import NO_PARAMETERS, Transaction
from docferry.store.database import Database
from docferry.store.receipts import LOG_CAPACITY, read_edge
from docferry.store.statement import Sql


class StoredReceipt(Struct, frozen=True):
    """Hold a row of the log; `body` is None after `retain` erased it."""

    index: int
    transfer_id: int | None
    kind: str
    body: str | None
    leaf: bytes
    log: int = 0  # number of its log


class StoredHead(Struct, frozen=True):
    """Hold an anchored head with its `time` (wall seconds), perhaps with an RFC 3161 time stamp."""

    id: int
    time: float
    signed: SignedHead
    timestamp: bytes | None


class LogState(Struct, frozen=True):
    """Describe one log: its number, name, host and size."""

    number: int
    origin: str
    host: str | None  # None: SQLite, or a log from before hosts had separate logs
    size: int


class AuditReport(Struct, frozen=True):
    """Hold the result of an audit."""

    origin: str
    receipts: int
    erased: int
    heads: int
    other_keys: int  # heads signed by another key
    problems: Sequence[str]  # the first problems
    problem_count: int
    logs: Sequence[str] = ()  # names of all logs

    def with_log(self, log: _Log, audit: Audit, findings: Findings, heads: int, *, is_one_of_many: bool) -> AuditReport:
        """Return the report with one more log added. With several logs, each problem names its host."""
        host = f"{log.host or log.origin}: " if is_one_of_many else ""
        return AuditReport(
            origin=self.origin,
            receipts=self.receipts + audit.next_index,
            erased=self.erased + audit.erased,
            heads=self.heads + heads,
            other_keys=self.other_keys + audit.other_keys,
            problems=(*self.problems, *(host + problem for problem in findings.named)),
            problem_count=self.problem_count + findings.count,
            logs=(*self.logs, log.origin),
        )

    def with_strays(self, numbers: Sequence[int]) -> AuditReport:
        """Return the report with the logs added that have receipts but no row."""
        lost = [f"log {number} has receipts, and its row in receipt_log was removed" for number in numbers]
        return replace(self, problems=(*self.problems, *lost), problem_count=self.problem_count + len(lost))


class ReceiptFilter(Protocol):
    """Select receipts by their bodies."""

    def wants(self, body: str) -> bool:
        """Return whether the receipt with this body is selected."""


class ReceiptLog:
    """Read the log; store heads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def state(self) -> LogState:
        """Return the log of this host. Raises StateError if its row is missing."""
        return await self._database.read(lambda transaction: self._own(transaction).state)

    async def logs(self) -> list[LogState]:
        """Return the logs that have receipts, and that of this host."""

        def work(transaction: Transaction) -> list[LogState]:
            own = self._own(transaction).number
            return [log.state for log in _logs(transaction) if log.size or log.number == own]

        return await self._database.read(work)

    def _own(self, transaction: Transaction) -> _Log:
        number = read_edge(transaction, self._database.receipts.host).number
        return next(log for log in _logs(transaction) if log.number == number)

    # -- receipts ------------------------------------------------------------------------------------------------------

    async def of_document(self, document_id: int) -> list[StoredReceipt]:
        """Return the receipts of a document's transfer, the oldest first."""
        return await self._database.read(lambda transaction: _receipts(transaction, _OF_DOCUMENT, {"id": document_id}))

    async def at_index(self, index: int, host: str | None = None) -> StoredReceipt | None:
        """Return the receipt at an index of a host's log, by default of this host's."""

        def work(transaction: Transaction) -> list[StoredReceipt]:
            own = self._own(transaction).number
            found = [
                log.number for log in _logs(transaction) if (log.number == own if host is None else log.host == host)
            ]
            if not found or index >= LOG_CAPACITY:
                return []
            return _receipts(transaction, _AT_INDEX, {"idx": found[0] * LOG_CAPACITY + index})

        receipts = await self._database.read(work)
        return receipts[0] if receipts else None

    async def select(self, receipts: ReceiptFilter) -> list[StoredReceipt]:
        """Return the receipts that the filter selects; reads all bodies that are not erased."""

        def work(transaction: Transaction) -> list[StoredReceipt]:
            rows = transaction.fetch_pieces(_ALL)
            found = (_stored(row) for chunk in rows for row in chunk)
            return [each for each in found if each.body is not None and receipts.wants(each.body)]

        return await self._database.read(work)

    async def leaves(self, size: int, log: int = 0) -> list[bytes]:
        """Return the first `size` leaf hashes of a log, in order."""
        parameters = {"first": log * LOG_CAPACITY, "end": log * LOG_CAPACITY + size}

        def work(transaction: Transaction) -> list[bytes]:
            return [row[0] for chunk in transaction.fetch_pieces(_LEAVES, parameters) for row in chunk]

        return await self._database.read(work)

    # -- heads ---------------------------------------------------------------------------------------------------------

    async def take_head(self, signer: Signer | None = None, log: int | None = None) -> StoredHead:
        """Store and return the head of a log, by default of this host's; the stored one if nothing was added."""
        now = self._clock.now()

        def work(transaction: Transaction) -> StoredHead:
            own = self._own(transaction)
            found = own if log is None else next(each for each in _logs(transaction) if each.number == log)
            tree = Frontier(found.size, found.frontier)
            head = Head(found.origin, tree.size, tree.root())
            newest = _heads(transaction, _NEWEST_HEAD, {"log": found.number})
            if newest and newest[0].signed.head == head and bool(newest[0].signed.signatures) == (signer is not None):
                return newest[0]
            note = (signer.sign(head) if signer is not None else SignedHead(head)).note()
            transaction.execute(_ADD_HEAD, {"time": now, "size": tree.size, "note": note, "log": found.number})
            return _heads(transaction, _NEWEST_HEAD, {"log": found.number})[0]

        return await self._database.write(work)

    async def heads(self, log: int = 0) -> list[StoredHead]:
        """Return every stored head of a log, the oldest first."""
        return await self._database.read(lambda transaction: _heads(transaction, _HEADS, {"log": log}))

    async def knows(self, head: Head) -> bool:
        """Return whether this head was stored here; otherwise the database is older than the head, or another one."""

        def work(transaction: Transaction) -> bool:
            stored = _heads(transaction, _HEADS_OF_SIZE, {"size": head.size})
            return any(each.signed.head == head for each in stored)

        return await self._database.read(work)

    async def set_timestamp(self, head: StoredHead, timestamp: bytes) -> None:
        """Store an RFC 3161 time stamp with its head."""
        parameters = {"id": head.id, "timestamp": timestamp}
        await self._database.execute(_STAMP_HEAD, parameters)

    # -- audit ---------------------------------------------------------------------------------------------------------

    async def audit(
        self,
        anchored: Sequence[NamedHead] = (),
        public_key: bytes | None = None,
    ) -> AuditReport:
        """Rebuild the tree from all receipts and compare it with the queue, the stored heads and the anchored ones."""

        def work(transaction: Transaction) -> AuditReport:
            own, logs = self._own(transaction), _logs(transaction)
            old = max(logs, key=lambda log: log.transfers_old)
            waiting = {"done": old.transfers_done, "old": old.transfers_old}
            deliveries = Deliveries()
            origins = {log.origin for log in logs}
            report = AuditReport(own.origin, 0, 0, 0, 0, (), 0)
            for log in logs:
                stored = [
                    NamedHead(f"the head of {iso(h.time)}", h.signed) for h in _heads(transaction, _HEADS, log.key)
                ]
                heads = [*stored, *(h for h in anchored if _is_of(h, log, own, origins))]
                audit = Audit(log.origin, heads, public_key, deliveries)
                for chunk in transaction.fetch_pieces(_AUDITED, log.span):
                    audit.add(map(AuditedReceipt._make, chunk))
                sent = transaction.fetch_pieces(_SENT, waiting) if log is logs[-1] else ()
                findings = audit.finish(log.size, log.frontier, (row[0] for chunk in sent for row in chunk))
                if log is logs[-1]:
                    deliveries.finish(findings)
                report = report.with_log(log, audit, findings, len(heads), is_one_of_many=len(logs) > 1)
            return report.with_strays(_strays(transaction, {log.number for log in logs}))

        return await self._database.read(work)


class _Log(NamedTuple):
    number: int
    origin: str
    host: str | None
    size: int
    frontier: bytes
    transfers_done: int
    transfers_old: int

    @property
    def state(self) -> LogState:
        return LogState(self.number, self.origin, self.host, self.size)

    @property
    def key(self) -> Mapping[str, int]:
        return {"log": self.number}

    @property
    def span(self) -> Mapping[str, int]:
        """Return the range of `receipt.idx`."""
        return {"first": self.number * LOG_CAPACITY, "end": (self.number + 1) * LOG_CAPACITY}


def _logs(transaction: Transaction) -> list[_Log]:
    return [_Log._make(row) for row in transaction.fetch_all(_LOGS)]


def _is_of(head: NamedHead, log: _Log, own: _Log, origins: Collection[str]) -> bool:
    """Return whether a head is compared with this log; a head of an unknown log belongs to this host's log."""
    origin = head.signed.head.origin
    return origin == log.origin or (log.number == own.number and origin not in origins)


def _strays(transaction: Transaction, numbers: Collection[int]) -> list[int]:
    """Return the numbers of logs that have receipts but no row."""
    found: list[int] = []
    at: int | None = 0
    while (at := transaction.fetch_one(_NEXT, {"idx": at})[0]) is not None:
        number = at // LOG_CAPACITY
        if number not in numbers:
            found.append(number)
        at = (number + 1) * LOG_CAPACITY
    return found


def _stored(row: Sequence[Any]) -> StoredReceipt:
    (log, index), (transfer_id, kind, body, leaf) = divmod(row[0], LOG_CAPACITY), row[1:]
    return StoredReceipt(index, transfer_id, kind, body, leaf, log)


def _receipts(transaction: Transaction, statement: Sql, parameters: Mapping[str, object]) -> list[StoredReceipt]:
    return [_stored(row) for row in transaction.fetch_all(statement, parameters)]


def _heads(
    transaction: Transaction, statement: Sql, parameters: Mapping[str, object] = NO_PARAMETERS
) -> list[StoredHead]:
    rows = transaction.fetch_all(statement, parameters)
    try:
        return [StoredHead(row[0], row[1], parse_note(row[2]), row[3]) for row in rows]
    except ValueError as error:
        raise StateError(f"a row of receipt_head was changed: {error}; restore the database from a copy") from error


_LOGS = Sql("""
SELECT number, origin, host, size, frontier, transfers_done, transfers_old FROM receipt_log ORDER BY number
""")
_NEXT = Sql("SELECT min(idx) FROM receipt WHERE idx >= :idx")
_OF_DOCUMENT = Sql("""
SELECT r.idx, r.transfer_id, r.kind, r.body, r.leaf FROM document d JOIN receipt r ON r.transfer_id = d.transfer_id
WHERE d.id = :id ORDER BY r.idx
""")
_AT_INDEX = Sql("SELECT idx, transfer_id, kind, body, leaf FROM receipt WHERE idx = :idx")
_ALL = Sql("SELECT idx, transfer_id, kind, body, leaf FROM receipt ORDER BY idx")
_LEAVES = Sql("SELECT leaf FROM receipt WHERE idx >= :first AND idx < :end ORDER BY idx")
_HEADS = Sql("SELECT id, time, note, timestamp FROM receipt_head WHERE log = :log ORDER BY id")
_NEWEST_HEAD = Sql("SELECT id, time, note, timestamp FROM receipt_head WHERE log = :log ORDER BY id DESC LIMIT 1")
_HEADS_OF_SIZE = Sql("SELECT id, time, note, timestamp FROM receipt_head WHERE size = :size ORDER BY id")
_ADD_HEAD = Sql("INSERT INTO receipt_head (time, size, note, log) VALUES (:time, :size, :note, :log)")
_STAMP_HEAD = Sql("UPDATE receipt_head SET timestamp = :timestamp WHERE id = :id")
_AUDITED = Sql("""
SELECT r.idx - CAST(:first AS BIGINT), r.transfer_id, r.kind, r.body, r.leaf, t.uid, t.state, t.remote, t.company_id,
  t.connection_id, t.remote_name, t.sha256, t.size
FROM receipt r LEFT JOIN transfer t ON t.id = r.transfer_id WHERE r.idx >= :first AND r.idx < :end ORDER BY r.idx
""")
# Transfers from before the log that wait for reconstruction do not lack a receipt.
_SENT = Sql("SELECT id FROM transfer WHERE state = 'sent' AND NOT (id > :done AND id <= :old)")
