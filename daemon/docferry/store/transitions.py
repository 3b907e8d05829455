"""Change states with guards. All transitions that wait for the writer share one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import anyio

from docferry.errors import LeaseLost
from docferry.model import State, joined
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.receipts import ReceiptWriter
from docferry.store.recordset import as_json, recordset
from docferry.store.refusals import Refusals
from docferry.store.statement import Sql
from docferry.wakeups import Wakeups

# Every statement is guarded by lease, owner and state: no changed row means that the lease was lost. The mark before
# the first byte has its own statement, because every document needs it and it writes no attempt.
_MARK_SENDING = Sql("""
UPDATE transfer SET state = :state, reason = NULL, detail = NULL, next_attempt = :at,
  first_sent = coalesce(first_sent, :at), last_sent = :at, updated = :at
WHERE id = :id AND lease = :lease AND lease_owner = :lease_owner AND state = :from
""")
_INSERT_ATTEMPT = Sql("""
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
SELECT id, lease, CASE state WHEN 'sending' THEN last_sent ELSE :at END, :at, :state, :detail,
  CAST(:status AS INTEGER), :correlation_id, :etag, :proof
FROM transfer WHERE id = :id AND lease = :lease AND lease_owner = :lease_owner AND state = :from
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
  detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id, etag = excluded.etag,
  proof = excluded.proof
""")
_SETTLE = Sql("""
UPDATE transfer SET state = :state, reason = :reason, detail = :detail, next_attempt = :next_attempt,
  tries = tries + :tried, key_version = key_version + :fresh_key,
  first_sent = CASE WHEN :not_taken THEN :first_sent ELSE first_sent END,
  last_sent = CASE WHEN :not_taken THEN :last_sent ELSE coalesce(:last_sent, last_sent) END,
  lease_owner = NULL, updated = :at
WHERE id = :id
""")
# The same three statements for many rows. PostgreSQL reads the rows from a JSON array.
_COLUMNS = {
    "id": "bigint",
    "lease": "bigint",
    "lease_owner": 'text COLLATE "C"',
    "from": 'text COLLATE "C"',
    "state": "text",
    "at": "double precision",
    "reason": "text",
    "detail": "text",
    "next_attempt": "double precision",
    "tried": "bigint",
    "fresh_key": "bigint",
    "not_taken": "boolean",
    "first_sent": "double precision",
    "last_sent": "double precision",
    "status": "bigint",
    "correlation_id": "text",
    "etag": "text",
    "proof": "text",
}
_MARK_COLUMNS = dict(islice(_COLUMNS.items(), 6))
_GUARD = "t.id = r.id AND t.lease = r.lease AND t.lease_owner = r.lease_owner AND t.state = r.from"
_MARK_SENDING_TOGETHER = Sql(f"""
UPDATE transfer AS t SET state = r.state, reason = NULL, detail = NULL, next_attempt = r.at,
  first_sent = coalesce(t.first_sent, r.at), last_sent = r.at, updated = r.at
FROM {recordset(_MARK_COLUMNS)} WHERE {_GUARD} RETURNING r.id, r.lease
""")
# The rows are selected first, because settling them changes columns of the guard.
_SETTLE_TOGETHER = Sql(f"""
WITH ended AS MATERIALIZED (
  SELECT t.state AS was, t.last_sent AS was_sent, r.*
  FROM {recordset(_COLUMNS)} JOIN transfer AS t ON {_GUARD}
), ends AS (
  INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
  SELECT id, lease, CASE was WHEN 'sending' THEN was_sent ELSE at END, at, state, detail, status, correlation_id, etag,
    proof
  FROM ended
  ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
    detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id,
    etag = excluded.etag, proof = excluded.proof
)
UPDATE transfer AS t SET state = r.state, reason = r.reason, detail = r.detail, next_attempt = r.next_attempt,
  tries = t.tries + r.tried, key_version = t.key_version + r.fresh_key,
  first_sent = CASE WHEN r.not_taken THEN r.first_sent ELSE t.first_sent END,
  last_sent = CASE WHEN r.not_taken THEN r.last_sent ELSE coalesce(r.last_sent, t.last_sent) END,
  lease_owner = NULL, updated = r.at
FROM ended AS r WHERE t.id = r.id RETURNING r.id, r.lease
""")
# Free the dedupe keys of gone transfers.
_FREE_KEYS = Sql("UPDATE transfer SET dedupe_key = 'gone:' || id WHERE id = ANY(:gone)")
# A path whose transfer is gone becomes unknown, and the next scan plans the file that exists there.
_MARK_ABSENT = Sql("""
UPDATE document SET present = false WHERE present AND transfer_id = ANY(:gone) RETURNING mapping, folder, name
""")

Rows = list[dict[str, Any]]
Paths = list[tuple[str, bytes]]
#: `(id, lease)` of the transitions that were made, and the paths that now have no transfer.
Made = tuple[frozenset[tuple[int, int]], Paths]


class TransitionWriter:
    """Commit transitions together with others that arrive while the writer is busy."""

    def __init__(self, database: Database, wakeups: Wakeups, refusals: Refusals) -> None:
        self._database = database
        self._wakeups = wakeups  # gets the paths whose transfer is gone, to check them again
        self._refusals = refusals
        self._batch: _Batch | None = None

    async def make(self, rows: Rows) -> None:
        """Commit transitions. Raises LeaseLost if one of them was impossible; the others are made.

        A transition that the database refuses ends the lease too: its transfer is held.
        """
        batch, leads = self._batch, False
        if batch is None or batch.sealed:
            batch = self._batch = _Batch()
            leads = True
        batch.rows += rows
        if leads:
            await batch.commit(self._database, self._refusals)
            for mapping, path in batch.orphans:
                self._wakeups.check_paths(mapping, [path])
        else:
            with anyio.CancelScope(shield=True):
                await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        lost = [row["id"] for row in rows if (row["id"], row["lease"]) not in batch.made]
        if lost:
            raise LeaseLost(f"transfer {lost[0]} is no longer leased to this process")


class _Batch:
    """Hold the transitions of one commit, and their results."""

    def __init__(self) -> None:
        self.rows: Rows = []
        self.sealed = False
        self.orphans: Paths = []
        self.made: set[tuple[int, int]] = set()
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def commit(self, database: Database, refusals: Refusals) -> None:
        try:
            results, refused = await database.write_each(self.rows, partial(self._work, database), self._seal)
            for made, orphans in results:
                self.made |= made
                self.orphans += orphans
            for row, error in refused:
                await refusals.hold(row["id"], row["from"], row["lease_owner"], error)
            if refusals.has_any:
                sent = [row for row in self.rows if row["state"] is State.SENT]
                recorded = [row for row in sent if (row["id"], row["lease"]) in self.made]
                refusals.succeeded({(row["mapping"], row["lane"]) for row in recorded})
        except Exception as error:  # noqa: BLE001 - raised in every task with a transition in this commit
            self.error = error
        finally:
            self.done.set()

    def _seal(self) -> None:
        self.sealed = True

    @staticmethod
    def _work(database: Database, transaction: Transaction, rows: Sequence[dict[str, Any]]) -> Made:
        # After a commit with an unknown result, its leases are given up, and others may reclaim them.
        current = [row for row in rows if row["unknown_commits"] == database.unknown_commits]
        return apply(transaction, current, database.receipts)


def apply(transaction: Transaction, rows: Rows, receipts: ReceiptWriter) -> Made:
    """Make transitions. Return `(id, lease)` of the successful ones, and the paths without a transfer."""
    results = (_start_together if transaction.has_recordsets else _make_singly)(transaction, rows)
    started = receipts.start_ended(transaction, rows)
    made = frozenset(results)
    rows = [row for row in rows if (row["id"], row["lease"]) in made]
    if started is not None:
        receipts.append_ended(transaction, rows, started)
    gone = [row["id"] for row in rows if row["state"] is State.GONE]
    if not gone:
        return made, []
    transaction.start(_FREE_KEYS, {"gone": gone})
    orphans = transaction.fetch_all(_MARK_ABSENT, {"gone": gone})
    return made, [(mapping, joined(folder, name)) for mapping, folder, name in orphans]


def _make_singly(transaction: Transaction, rows: Rows) -> list[tuple[int, int]]:
    """Make transitions row by row, because in SQLite a statement costs microseconds."""
    made = []
    for row in rows:
        ends = row["state"] is not State.SENDING
        if transaction.execute(_INSERT_ATTEMPT if ends else _MARK_SENDING, row):
            if ends:
                transaction.execute(_SETTLE, row)
            made.append((row["id"], row["lease"]))
    return made


def _start_together(transaction: Transaction, rows: Rows) -> Iterator[tuple[int, int]]:
    """Start transitions in two statements, because to a server each one is a message. The results are read later."""
    marks = [row for row in rows if row["state"] is State.SENDING]
    ends = [row for row in rows if row["state"] is not State.SENDING]
    kinds = ((_MARK_SENDING_TOGETHER, marks), (_SETTLE_TOGETHER, ends))
    cursors = [transaction.start(statement, {"rows": as_json(some)}) for statement, some in kinds if some]
    return (row for cursor in cursors for row in cursor.fetchall())
