"""Maintain the log of receipts in steps: reconstruct receipts of older transfers, and erase old bodies."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from docferry.clock import iso
from docferry.receipts.record import ReceiptKind
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.receipts import LOG_CAPACITY, about_transfer, downloaded, read_edge
from docferry.store.statement import Sql

#: The proofs of attempts that were lookups: their documents get receipts of kind `adopted`.
_ASKED: Final = frozenset({"list", "zip", "adopted"})


class ReceiptUpkeep:
    """Maintain the log; each call is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reconstruct(self, limit: int) -> bool:
        """Give receipts to the next `limit` transfers or downloads from before the log.

        Return False if all have one.
        """
        if not await self._database.read(self._has_old):
            return False  # checked without a write, because every start checks it

        def work(transaction: Transaction) -> bool:
            log = next((log for log in _logs(transaction) if log.has_old), None)
            if log is None:
                return False  # another process did it first
            if log.transfers_done < log.transfers_old:
                self._reconstruct_transfers(transaction, log, limit)
            else:
                self._reconstruct_downloads(transaction, log, limit)
            return True

        return await self._database.write(work)

    async def erase(self, before: float, limit: int) -> int:
        """Erase the bodies of the next receipts older than `before` (wall seconds); their leaves stay.

        Returns:
            The largest number of erased bodies in one log; below `limit` if no more are old enough.
        """
        cutoff = iso(before) or ""

        def work(transaction: Transaction) -> int:
            return max(_erase(transaction, log, cutoff, limit) for log in _logs(transaction))

        return await self._database.write(work)

    def _has_old(self, transaction: Transaction) -> bool:
        read_edge(transaction, self._database.receipts.host)  # raises StateError if the row is missing
        return any(log.has_old for log in _logs(transaction))

    def _reconstruct_transfers(self, transaction: Transaction, log: _Log, limit: int) -> None:
        parameters = {"done": log.transfers_done, "old": log.transfers_old, "most": limit}
        rows = transaction.fetch_all(_OLD_TRANSFERS, parameters)
        receipts = []
        for row in rows:
            state, ended, proof = row[11], row[12], row[16]
            kind = ReceiptKind.GONE if state == "gone" else ReceiptKind.ADOPTED if proof in _ASKED else ReceiptKind.SENT
            answer = dict(zip(("status", "correlation_id", "etag", "proof", "detail"), row[13:], strict=True))
            more = {**answer, "host": self._database.receipts.host, "reconstructed": True}
            receipts.append(about_transfer(row[:11], kind, ended, more))
        self._database.receipts.append(transaction, receipts)
        done = rows[-1][0] if len(rows) == limit else log.transfers_old
        transaction.execute(_SET_TRANSFERS_DONE, {"done": done, "log": log.number})

    def _reconstruct_downloads(self, transaction: Transaction, log: _Log, limit: int) -> None:
        parameters = {"done": log.downloads_done, "old": log.downloads_old, "most": limit}
        rows = transaction.fetch_all(_OLD_DOWNLOADS, parameters)
        host = self._database.receipts.host
        receipts = [downloaded(_file(row), row[6], host, reconstructed=True) for row in rows]
        self._database.receipts.append(transaction, receipts)
        done = rows[-1][0] if len(rows) == limit else log.downloads_old
        transaction.execute(_SET_DOWNLOADS_DONE, {"done": done, "log": log.number})


class _Log(NamedTuple):
    number: int
    transfers_done: int
    transfers_old: int
    downloads_done: int
    downloads_old: int
    erased: int

    @property
    def has_old(self) -> bool:
        return self.transfers_done < self.transfers_old or self.downloads_done < self.downloads_old


def _logs(transaction: Transaction) -> list[_Log]:
    return [_Log._make(row) for row in transaction.fetch_all(_LOGS)]


def _erase(transaction: Transaction, log: _Log, cutoff: str, limit: int) -> int:
    """Erase the next old bodies of one log, and return their number."""
    first = log.number * LOG_CAPACITY
    span = {"first": first + log.erased, "end": first + LOG_CAPACITY, "most": limit}
    rows = transaction.fetch_all(_NEXT_BODIES, span)
    old = 0
    while old < len(rows) and (rows[old][1] is None or _time_of(rows[old][1]) < cutoff):
        old += 1
    if old:
        until = rows[old - 1][0] + 1
        transaction.execute(_ERASE, {"start": first + log.erased, "until": until})
        transaction.execute(_SET_ERASED, {"until": until - first, "log": log.number})
    return old


def _file(row: Any) -> dict[str, Any]:
    return dict(zip(("mapping", "origin", "sha256", "path", "size"), row[1:6], strict=True))


def _time_of(body: str) -> str:
    """Return the time of a receipt; a manipulated one counts as new, so that it is not erased."""
    try:
        return str(json.loads(body)["time"])
    except (ValueError, KeyError, TypeError):
        return "9999"


_LOGS = Sql("""
SELECT number, transfers_done, transfers_old, downloads_done, downloads_old, erased FROM receipt_log ORDER BY number
""")
_OLD_TRANSFERS = Sql("""
SELECT t.id, t.uid, t.mapping, t.remote, t.company_id, t.connection_id, t.remote_name, t.sha256, t.size,
  d.folder, d.name, t.state, coalesce(a.ended, t.updated), a.status, a.correlation_id, a.etag, a.proof, t.detail
FROM transfer t
LEFT JOIN document d ON d.id = (
  SELECT id FROM document WHERE transfer_id = t.id ORDER BY present DESC, id LIMIT 1)
LEFT JOIN attempt a ON a.transfer_id = t.id AND a.lease = t.lease AND a.state = t.state
WHERE t.id > :done AND t.id <= :old AND t.state IN ('sent', 'gone')
  AND NOT EXISTS (SELECT 1 FROM receipt r WHERE r.transfer_id = t.id AND r.kind IN ('sent', 'adopted', 'gone'))
ORDER BY t.id LIMIT :most
""")
_OLD_DOWNLOADS = Sql("""
SELECT id, mapping, origin, sha256, path, size, updated FROM download
WHERE id > :done AND id <= :old AND published AND path IS NOT NULL ORDER BY id LIMIT :most
""")
_SET_TRANSFERS_DONE = Sql("UPDATE receipt_log SET transfers_done = :done WHERE number = :log")
_SET_DOWNLOADS_DONE = Sql("UPDATE receipt_log SET downloads_done = :done WHERE number = :log")
_SET_ERASED = Sql("UPDATE receipt_log SET erased = :until WHERE number = :log")
_NEXT_BODIES = Sql("SELECT idx, body FROM receipt WHERE idx >= :first AND idx < :end ORDER BY idx LIMIT :most")
_ERASE = Sql("UPDATE receipt SET body = NULL WHERE idx >= :start AND idx < :until")
