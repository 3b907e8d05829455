"""Guarded changes of state. All transitions that wait for the writer share one commit."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
from sqlalchemy import text

from docferry.errors import LeaseLost
from docferry.model import State, joined
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.receipts import ReceiptWriter
from docferry.wakeups import Wakeups

# Every statement is guarded by lease, owner and state: no changed row means that the lease was lost. The mark before
# the first byte has a statement of its own, because every document needs it and it writes no attempt.
_MARK_SENDING = text("""
UPDATE transfer SET state = :state, reason = NULL, detail = NULL, next_attempt = :at,
  first_sent = coalesce(first_sent, :at), last_sent = :at, updated = :at
WHERE id = :id AND lease = :lease AND lease_owner = :lease_owner AND state = :from
""")
_INSERT_ATTEMPT = text("""
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
SELECT id, lease, CASE state WHEN 'sending' THEN last_sent ELSE :at END, :at, :state, :detail,
  CAST(:status AS INTEGER), :correlation_id, :etag, :proof
FROM transfer WHERE id = :id AND lease = :lease AND lease_owner = :lease_owner AND state = :from
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
  detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id, etag = excluded.etag,
  proof = excluded.proof
""")
_SETTLE = text("""
UPDATE transfer SET state = :state, reason = :reason, detail = :detail, next_attempt = :next_attempt,
  tries = tries + :tried, key_version = key_version + :fresh_key,
  first_sent = CASE WHEN :not_taken THEN :first_sent ELSE first_sent END,
  last_sent = CASE WHEN :not_taken THEN :last_sent ELSE coalesce(:last_sent, last_sent) END,
  lease_owner = NULL, updated = :at
WHERE id = :id
""")
# Free the dedupe keys of gone transfers.
_FREE_KEYS = text("UPDATE transfer SET dedupe_key = 'gone:' || id WHERE id = ANY(:gone)")
# A path whose transfer is gone becomes unknown again, and the next scan plans the file that lies there now.
_MARK_ABSENT = text("""
UPDATE document SET present = false WHERE present AND transfer_id = ANY(:gone) RETURNING mapping, folder, name
""")

Rows = list[dict[str, Any]]
Paths = list[tuple[str, bytes]]


class TransitionWriter:
    """Commit transitions together with those that arrive while the writer is busy."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self._database = database
        self._wakeups = wakeups  # told of every path whose transfer is gone
        self._batch: _Batch | None = None

    async def make(self, rows: Rows) -> None:
        """Commit transitions. Raises LeaseLost if one of them was not possible; the others are made."""
        batch, leads = self._batch, False
        if batch is None or batch.sealed:
            batch = self._batch = _Batch()
            leads = True
        batch.rows += rows
        if leads:
            await batch.commit(self._database)
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
    """Transitions of one commit, and their results."""

    def __init__(self) -> None:
        self.rows: Rows = []
        self.sealed = False
        self.orphans: Paths = []
        self.made: frozenset[tuple[int, int]] = frozenset()
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def commit(self, database: Database) -> None:
        try:
            await database.write(partial(self._work, database), self._seal)
        except Exception as error:  # noqa: BLE001 - raised in every task whose transition was part of it
            self.error = error
        finally:
            self.done.set()

    def _seal(self) -> None:
        self.sealed = True

    def _work(self, database: Database, transaction: Transaction) -> None:
        # After a commit with an unknown result the leases of its time are given up, and others may reclaim them.
        rows = [row for row in self.rows if row["unknown_commits"] == database.unknown_commits]
        self.made, self.orphans = apply(transaction, rows, database.receipts)


def apply(transaction: Transaction, rows: Rows, receipts: ReceiptWriter) -> tuple[frozenset[tuple[int, int]], Paths]:
    """Make transitions. Return `(id, lease)` of those that were made, and the paths that now have no transfer."""
    made, gone, ended = set[tuple[int, int]](), list[int](), Rows()
    for row in rows:
        ends = row["state"] is not State.SENDING
        if not transaction.execute(_INSERT_ATTEMPT if ends else _MARK_SENDING, row):
            continue
        if ends:
            transaction.execute(_SETTLE, row)
            ended.append(row)
        made.add((row["id"], row["lease"]))
        gone += [row["id"]] if row["state"] is State.GONE else []
    receipts.append_ended(transaction, ended)
    if not gone:
        return frozenset(made), []
    transaction.execute(_FREE_KEYS, {"gone": gone})
    orphans = transaction.fetch_all(_MARK_ABSENT, {"gone": gone})
    return frozenset(made), [(mapping, joined(folder, name)) for mapping, folder, name in orphans]
