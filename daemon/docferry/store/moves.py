"""Moves of transfers: whatever waits for the writer goes into one statement, each with its attempt row."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
from sqlalchemy import Connection

from docferry.errors import LeaseLost
from docferry.model import State, joined
from docferry.store.connection import fetched
from docferry.store.database import Database

# All gathered moves in one statement. A row whose lease or state is another is not returned: its lease is lost.
_MOVE = """
UPDATE transfer SET
  state = m.value ->> 'state',
  reason = m.value ->> 'reason',
  detail = m.value ->> 'detail',
  next_attempt = m.value ->> 'next_attempt',
  tries = tries + (m.value ->> 'tried'),
  generation = generation + (m.value ->> 'fresh_key'),
  first_sent = CASE WHEN m.value ->> 'untaken' THEN m.value ->> 'first_sent'
    ELSE coalesce(first_sent, m.value ->> 'sending') END,
  last_sent = CASE WHEN m.value ->> 'untaken' THEN m.value ->> 'last_sent'
    ELSE coalesce(m.value ->> 'last_sent', last_sent) END,
  owner = CASE WHEN m.value ->> 'state' IN ('leased', 'sending', 'asking') THEN owner END,
  updated = m.value ->> 'at'
FROM json_each(:moves) m
WHERE transfer.id = m.value ->> 'id' AND transfer.lease = m.value ->> 'lease' AND transfer.owner = m.value ->> 'owner'
  AND transfer.state = m.value ->> 'from'
RETURNING transfer.id, transfer.lease
"""
_ATTEMPT = """
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
SELECT value ->> 'id', value ->> 'lease', value ->> 'at', value ->> 'ended', value ->> 'state', value ->> 'detail',
  value ->> 'status', value ->> 'correlation_id', value ->> 'etag', value ->> 'proof'
FROM json_each(:moves) WHERE true
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
  detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id, etag = excluded.etag,
  proof = excluded.proof
"""

_ABSENT = """
UPDATE document SET present = 0 WHERE present AND transfer_id IN (SELECT value FROM json_each(:gone))
RETURNING mapping, folder, name
"""


class Moves:
    """Takes every move to the writer, together with those that come while it is busy."""

    def __init__(self, database: Database, orphaned: Callable[[str, bytes], None]) -> None:
        self._database = database
        self._orphaned = orphaned
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
                self._orphaned(mapping, path)
        else:
            with anyio.CancelScope(shield=True):
                await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        lost = [row["id"] for row in rows if (row["id"], row["lease"]) not in batch.moved]
        if lost:
            raise LeaseLost(f"transfer {lost[0]} is no longer ours")


class _Batch:
    """Moves that go into one commit, and what became of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sealed = False
        self.orphans: list[tuple[str, bytes]] = []
        self.moved: frozenset[tuple[int, int]] = frozenset()
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def commit(self, database: Database) -> None:
        try:
            await database.write(self._work, self._seal)
        except Exception as error:  # noqa: BLE001 - raised again by everyone whose move was in it
            self.error = error
        finally:
            self.done.set()

    def _seal(self) -> None:
        self.sealed = True

    def _work(self, connection: Connection) -> None:
        self.moved, self.orphans = apply(connection, self.rows)


def apply(
    connection: Connection, rows: list[dict[str, Any]]
) -> tuple[frozenset[tuple[int, int]], list[tuple[str, bytes]]]:
    """The moves that were made, and the paths that have no transfer any more."""
    moves = json.dumps(rows)
    moved = frozenset((row[0], row[1]) for row in fetched(connection, _MOVE, {"moves": moves}))
    done = rows if len(moved) == len(rows) else [row for row in rows if (row["id"], row["lease"]) in moved]
    if done:
        fetched(connection, _ATTEMPT, {"moves": moves if done is rows else json.dumps(done)})
    gone = [row["id"] for row in done if row["state"] == State.GONE]
    if gone:
        # A path whose transfer is gone is unknown again: the next look plans what lies there now.
        found = fetched(connection, _ABSENT, {"gone": json.dumps(gone)})
        return moved, [(row[0], joined(row[1], row[2])) for row in found]
    return moved, []
