"""The log of receipts as people and auditors read it, and its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sqlalchemy import TextClause, text

from docferry.clock import Clock, iso
from docferry.errors import StateError
from docferry.receipts.audit import Audit, AuditedReceipt, NamedHead
from docferry.receipts.heads import Head, SignedHead, Signer, parse_note
from docferry.store.connection import NO_PARAMETERS, Transaction
from docferry.store.database import Database
from docferry.store.receipts import read_frontier


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A row of the log; `body` is None when `retain` erased it."""

    index: int
    transfer_id: int | None
    kind: str
    body: str | None
    leaf: bytes


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head that was anchored, at `time` (wall seconds), perhaps with an RFC 3161 time stamp."""

    id: int
    time: float
    signed: SignedHead
    timestamp: bytes | None


@dataclass(frozen=True, slots=True)
class LogState:
    """The log's name and size, and how many transfers and downloads from before it may still lack a receipt."""

    origin: str
    size: int
    old: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found."""

    origin: str
    receipts: int
    erased: int
    heads: int
    other_keys: int  # heads that another key signed
    problems: Sequence[str]  # the first ones
    problem_count: int


class ReceiptFilter(Protocol):
    """Chooses receipts by their bodies."""

    def wants(self, body: str) -> bool:
        """Whether the receipt with this body is chosen."""


class ReceiptLog:
    """Reads the log; stores heads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def state(self) -> LogState:
        """Return name, size and what is still to be reconstructed; StateError when the log's row is gone."""

        def work(transaction: Transaction) -> LogState:
            log = _log(transaction)
            old = max(log.transfers_old - log.transfers_done, 0) + max(log.downloads_old - log.downloads_done, 0)
            return LogState(log.origin, log.size, old)

        return await self._database.read(work)

    # -- receipts ------------------------------------------------------------------------------------------------------

    async def of_document(self, document_id: int) -> list[StoredReceipt]:
        """Return the receipts of a document's transfer, the oldest first."""
        return await self._database.read(lambda transaction: _receipts(transaction, _OF_DOCUMENT, {"id": document_id}))

    async def at_index(self, index: int) -> StoredReceipt | None:
        """Return the receipt at an index."""
        found = await self._database.read(lambda transaction: _receipts(transaction, _AT_INDEX, {"idx": index}))
        return found[0] if found else None

    async def select(self, receipts: ReceiptFilter) -> list[StoredReceipt]:
        """Return the receipts with a body that the filter wants; reads all that are not erased."""

        def work(transaction: Transaction) -> list[StoredReceipt]:
            rows = transaction.fetch_pieces(_ALL)
            found = (StoredReceipt(*row) for chunk in rows for row in chunk)
            return [each for each in found if each.body is not None and receipts.wants(each.body)]

        return await self._database.read(work)

    async def leaves(self, size: int) -> list[bytes]:
        """Return the first `size` leaf hashes, in order."""

        def work(transaction: Transaction) -> list[bytes]:
            return [row[0] for chunk in transaction.fetch_pieces(_LEAVES, {"size": size}) for row in chunk]

        return await self._database.read(work)

    # -- heads ---------------------------------------------------------------------------------------------------------

    async def take_head(self, signer: Signer | None = None) -> StoredHead:
        """Store and return the head of the log as it is now; the newest stored one when nothing was added since."""
        now = self._clock.now()

        def work(transaction: Transaction) -> StoredHead:
            origin, tree = _log(transaction).origin, read_frontier(transaction)
            head = Head(origin, tree.size, tree.root())
            newest = _heads(transaction, _NEWEST_HEAD)
            if newest and newest[0].signed.head == head and bool(newest[0].signed.signatures) == (signer is not None):
                return newest[0]
            note = (signer.sign(head) if signer is not None else SignedHead(head)).note()
            transaction.execute(_ADD_HEAD, {"time": now, "size": tree.size, "note": note})
            return _heads(transaction, _NEWEST_HEAD)[0]

        return await self._database.write(work)

    async def heads(self) -> list[StoredHead]:
        """Return every stored head, the oldest first."""
        return await self._database.read(lambda transaction: _heads(transaction, _HEADS))

    async def knows(self, head: Head) -> bool:
        """Whether this head was stored here: else the database is older than the head, or another one."""

        def work(transaction: Transaction) -> bool:
            stored = _heads(transaction, _HEADS_OF_SIZE, {"size": head.size})
            return any(each.signed.head == head for each in stored)

        return await self._database.read(work)

    async def set_timestamp(self, head: StoredHead, timestamp: bytes) -> None:
        """Keep an RFC 3161 time stamp with its head."""
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
            log = _log(transaction)
            stored = [NamedHead(f"the head of {iso(each.time)}", each.signed) for each in _heads(transaction, _HEADS)]
            audit = Audit(log.origin, [*stored, *anchored], public_key)
            for chunk in transaction.fetch_pieces(_AUDITED):
                audit.add(map(AuditedReceipt._make, chunk))
            waiting = {"done": log.transfers_done, "old": log.transfers_old}
            sent = (row[0] for chunk in transaction.fetch_pieces(_SENT, waiting) for row in chunk)
            findings = audit.finish(log.size, log.frontier, sent)
            heads = len(stored) + len(anchored)
            return AuditReport(
                origin=log.origin,
                receipts=audit.next_index,
                erased=audit.erased,
                heads=heads,
                other_keys=audit.other_keys,
                problems=tuple(findings.named),
                problem_count=findings.count,
            )

        return await self._database.read(work)


class _Log(NamedTuple):
    origin: str
    size: int
    frontier: bytes
    transfers_done: int
    transfers_old: int
    downloads_done: int
    downloads_old: int


def _log(transaction: Transaction) -> _Log:
    read_frontier(transaction)  # StateError when the row is gone
    return _Log._make(transaction.fetch_all(_LOG)[0])


def _receipts(transaction: Transaction, statement: TextClause, parameters: Mapping[str, object]) -> list[StoredReceipt]:
    return [StoredReceipt(*row) for row in transaction.fetch_all(statement, parameters)]


def _heads(
    transaction: Transaction, statement: TextClause, parameters: Mapping[str, object] = NO_PARAMETERS
) -> list[StoredHead]:
    rows = transaction.fetch_all(statement, parameters)
    try:
        return [StoredHead(row[0], row[1], parse_note(row[2]), row[3]) for row in rows]
    except ValueError as error:
        raise StateError(f"a row of receipt_head was changed: {error}; restore the database from a copy") from error


_LOG = text("""
SELECT origin, size, frontier, transfers_done, transfers_old, downloads_done, downloads_old FROM receipt_log
""")
_OF_DOCUMENT = text("""
SELECT r.idx, r.transfer_id, r.kind, r.body, r.leaf FROM document d JOIN receipt r ON r.transfer_id = d.transfer_id
WHERE d.id = :id ORDER BY r.idx
""")
_AT_INDEX = text("SELECT idx, transfer_id, kind, body, leaf FROM receipt WHERE idx = :idx")
_ALL = text("SELECT idx, transfer_id, kind, body, leaf FROM receipt ORDER BY idx")
_LEAVES = text("SELECT leaf FROM receipt WHERE idx < :size ORDER BY idx")
_HEADS = text("SELECT id, time, note, timestamp FROM receipt_head ORDER BY id")
_NEWEST_HEAD = text("SELECT id, time, note, timestamp FROM receipt_head ORDER BY id DESC LIMIT 1")
_HEADS_OF_SIZE = text("SELECT id, time, note, timestamp FROM receipt_head WHERE size = :size ORDER BY id")
_ADD_HEAD = text("INSERT INTO receipt_head (time, size, note) VALUES (:time, :size, :note)")
_STAMP_HEAD = text("UPDATE receipt_head SET timestamp = :timestamp WHERE id = :id")
_AUDITED = text("""
SELECT r.idx, r.transfer_id, r.kind, r.body, r.leaf, t.uid, t.state, t.remote, t.company_id, t.connection_id,
  t.remote_name, t.sha256, t.size
FROM receipt r LEFT JOIN transfer t ON t.id = r.transfer_id ORDER BY r.idx
""")
# What is from before the log and waits for its receipt lacks none.
_SENT = text("SELECT id FROM transfer WHERE state = 'sent' AND NOT (id > :done AND id <= :old)")
