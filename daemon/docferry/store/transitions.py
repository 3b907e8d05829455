"""TransitionWriter of transfers: whatever waits for the writer goes into one commit, what ends with its attempt row."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import anyio
from sqlalchemy import Connection

from docferry.errors import LeaseLost
from docferry.model import State, joined
from docferry.store.connection import driver, fetched
from docferry.store.database import Database
from docferry.store.receipts import ReceiptWriter
from docferry.wakeups import Wakeups

# A row whose lease, owner or state is another is not changed: its lease is lost. The intent has a statement of its own,
# as every document needs it; the transfer itself tells of a try that has not ended.
_MARK = """
UPDATE transfer SET state = :state, reason = NULL, detail = NULL, next_attempt = :at,
  first_sent = coalesce(first_sent, :at), last_sent = :at, updated = :at
WHERE id = :id AND lease = :lease AND owner = :owner AND state = :from
"""
_ENDED = """
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
SELECT id, lease, CASE state WHEN 'sending' THEN last_sent ELSE :at END, :at, :state, :detail, :status, :correlation_id,
  :etag, :proof
FROM transfer WHERE id = :id AND lease = :lease AND owner = :owner AND state = :from
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
  detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id, etag = excluded.etag,
  proof = excluded.proof
"""
_SETTLE = """
UPDATE transfer SET state = :state, reason = :reason, detail = :detail, next_attempt = :next_attempt,
  tries = tries + :tried, generation = generation + :fresh_key,
  first_sent = CASE WHEN :untaken THEN :first_sent ELSE first_sent END,
  last_sent = CASE WHEN :untaken THEN :last_sent ELSE coalesce(:last_sent, last_sent) END,
  owner = NULL, updated = :at
WHERE id = :id
"""

# What was gone no longer stands in the way of its like, which is found by an index that no other move touches.
_FREED = "UPDATE transfer SET once = 'gone:' || id WHERE id IN (SELECT value FROM json_each(:gone))"
_ABSENT = """
UPDATE document SET present = 0 WHERE present AND transfer_id IN (SELECT value FROM json_each(:gone))
RETURNING mapping, folder, name
"""


class TransitionWriter:
    """Takes every move to the writer, together with those that come while it is busy."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self._database = database
        self._wakeups = wakeups  # told of every path whose transfer is gone
        self._batch: _Batch | None = None

    async def make(self, rows: list[dict[str, Any]]) -> None:
        """Join the moves that wait; whoever comes first takes them there. LeaseLost when one could not be made."""
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
        lost = [row["id"] for row in rows if (row["id"], row["lease"]) not in batch.moved]
        if lost:
            raise LeaseLost(f"transfer {lost[0]} is no longer ours")


class _Batch:
    """TransitionWriter that go into one commit, and what became of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sealed = False
        self.orphans: list[tuple[str, bytes]] = []
        self.moved: frozenset[tuple[int, int]] = frozenset()
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def commit(self, database: Database) -> None:
        try:
            await database.write(partial(self._work, receipts=database.receipts), self._seal)
        except Exception as error:  # noqa: BLE001 - raised again by everyone whose move was in it
            self.error = error
        finally:
            self.done.set()

    def _seal(self) -> None:
        self.sealed = True

    def _work(self, connection: Connection, receipts: ReceiptWriter) -> None:
        self.moved, self.orphans = apply(connection, self.rows, receipts)


def apply(
    connection: Connection, rows: list[dict[str, Any]], receipts: ReceiptWriter
) -> tuple[frozenset[tuple[int, int]], list[tuple[str, bytes]]]:
    """The moves that were made, and the paths that have no transfer any more."""
    execute, moved, gone = driver(connection).execute, set[tuple[int, int]](), list[int]()
    ended = list[dict[str, Any]]()
    for row in rows:
        ends = row["state"] is not State.SENDING
        if not execute(_ENDED if ends else _MARK, row).rowcount:
            continue
        if ends:
            execute(_SETTLE, row)
            ended.append(row)
        moved.add((row["id"], row["lease"]))
        gone += [row["id"]] if row["state"] is State.GONE else []
    receipts.append_ended(connection, ended)
    if not gone:
        return frozenset(moved), []
    fetched(connection, _FREED, {"gone": json.dumps(gone)})
    # A path whose transfer is gone is unknown again: the next look plans what lies there now.
    found = fetched(connection, _ABSENT, {"gone": json.dumps(gone)})
    return frozenset(moved), [(row[0], joined(row[1], row[2])) for row in found]
