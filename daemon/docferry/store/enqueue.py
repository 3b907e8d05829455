"""A plan made true: laid beside the tables, so that each step is one statement however many documents it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from docferry.model import SeenFile, State, Target, parted
from docferry.store.connection import driver, fetched
from docferry.store.receipts import ReceiptWriter

#: Why a transfer is gone that was never sent.
WENT_AWAY: Final = "the file went away or changed before it was sent"


@dataclass(frozen=True, slots=True)
class Planned:
    """What intake decided about a sighting: where it goes, or why a rule holds it."""

    seen_file: SeenFile
    target: Target | None  # None: it came down by a download and is not sent back
    uid: str
    remote_name: str
    sha256: str | None  # None: a rule holds it, nothing was read
    once: str
    state: State = State.WAITING
    reason: str | None = None
    detail: str | None = None
    sent_since: float | None = None  # for DOUBTFUL: it may have been sent at any time from then on
    fingerprint: str | None = None  # of the bytes, as sha256 is; None: nobody took it
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan changed: documents by what became of them."""

    queued: int
    held: int
    unchanged: int


def apply(
    connection: Connection, mapping: str, planned: Sequence[Planned], now: float, receipts: ReceiptWriter
) -> Applied:
    """A path that was known otherwise becomes a new document; what nobody else needs of the old one is gone, unless
    bytes of it may be on the wire."""
    _lay(connection, _FILL, [_row(index, mapping, plan) for index, plan in enumerate(planned)])
    fetched(connection, _SPENT)
    fetched(connection, _SAME, {"now": now})
    _retire(connection, now, receipts)
    states = [row[0] for row in fetched(connection, _TRANSFERS, {"now": now})]
    fetched(connection, _FOLLOW)
    fetched(connection, _DOCUMENTS, {"now": now})
    held = sum(state == State.HELD for state in states)
    return Applied(len(states) - held, held, len(planned) - len(states))


def vanish(connection: Connection, mapping: str, paths: Sequence[bytes], now: float, receipts: ReceiptWriter) -> int:
    """These paths are no longer there; what was not sent and lies nowhere else is gone. Number of documents."""
    _lay(connection, _FILL_PATHS, [(mapping, *parted(path)) for path in paths])
    return _retire(connection, now, receipts)


def _lay(connection: Connection, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    fetched(connection, _TABLE)
    fetched(connection, _CLEAR)
    driver(connection).executemany(statement, rows)


def _retire(connection: Connection, now: float, receipts: ReceiptWriter) -> int:
    """Let go of what the plan replaces, and of transfers that nobody needs any more: number of documents."""
    retired = [row[0] for row in fetched(connection, _RETIRE, {"now": now})]
    if retired:
        gone = fetched(connection, _GONE, {"now": now, "retired": json.dumps(retired), "why": WENT_AWAY})
        receipts.append_gone(connection, [row[0] for row in gone], now, WENT_AWAY)
    return len(retired)


def _row(index: int, mapping: str, plan: Planned) -> tuple[object, ...]:
    seen_file, stamp, target = plan.seen_file, plan.seen_file.stamp, plan.target
    there = (None,) * 4 if target is None else (target.lane, target.remote, target.company_id, target.connection_id)
    return (
        *(index, mapping, seen_file.folder, seen_file.name, stamp.size, stamp.mtime_ns, stamp.ctime_ns),
        *(plan.sha256, plan.fingerprint, plan.md5, plan.uid, *there, plan.remote_name, plan.once),
        *(plan.state, plan.reason, plan.detail, plan.sent_since),
    )


#: The columns of a plan laid beside the tables; `_row` fills them in this order.
_PLANNED = {
    "n": "INTEGER PRIMARY KEY",
    "mapping": "TEXT",
    "folder": "BLOB",
    "name": "BLOB",
    "size": "INTEGER",
    "mtime_ns": "INTEGER",
    "ctime_ns": "INTEGER",
    "sha256": "TEXT",
    "fingerprint": "TEXT",
    "md5": "TEXT",
    "uid": "TEXT",
    "lane": "TEXT",
    "remote": "TEXT",
    "company_id": "TEXT",
    "connection_id": "TEXT",
    "remote_name": "TEXT",
    "once": "TEXT",
    "state": "TEXT",
    "reason": "TEXT",
    "detail": "TEXT",
    "sent_since": "REAL",
}
_TABLE = f"CREATE TEMP TABLE IF NOT EXISTS plan ({', '.join(f'{name} {kind}' for name, kind in _PLANNED.items())})"
_CLEAR = "DELETE FROM plan"
_FILL = f"INSERT INTO plan ({', '.join(_PLANNED)}) VALUES ({', '.join('?' * len(_PLANNED))})"
_FILL_PATHS = "INSERT INTO plan (mapping, folder, name) VALUES (?, ?, ?)"
# Of a path that was seen twice the later look counts; and what another process held just now is not held again.
_SPENT = """
DELETE FROM plan WHERE n NOT IN (SELECT max(n) FROM plan GROUP BY mapping, folder, name)
  OR sha256 IS NULL AND EXISTS (SELECT 1 FROM document d WHERE d.present AND d.mapping = plan.mapping
    AND d.folder = plan.folder AND d.name = plan.name AND d.sha256 IS NULL
    AND (d.size, d.mtime_ns, d.ctime_ns) = (plan.size, plan.mtime_ns, plan.ctime_ns))
"""
# The same bytes to the same place as before: a touch. Only the stamp is new.
_SAME = """
UPDATE document SET size = p.size, mtime_ns = p.mtime_ns, ctime_ns = p.ctime_ns, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping AND document.folder = p.folder
  AND document.name = p.name AND document.sha256 = p.sha256
  AND (document.transfer_id IS NULL AND p.lane IS NULL OR document.transfer_id IN (
    SELECT id FROM transfer t WHERE t.lane = p.lane AND t.once = p.once))
"""
_RETIRE = """
UPDATE document SET present = 0, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping AND document.folder = p.folder
  AND document.name = p.name
  AND (document.size, document.mtime_ns, document.ctime_ns, document.sha256)
    IS NOT (p.size, p.mtime_ns, p.ctime_ns, p.sha256)
RETURNING document.transfer_id
"""
_GONE = """
UPDATE transfer SET state = 'gone', once = 'gone:' || id, updated = :now,
  detail = :why
WHERE (state = 'waiting' OR state = 'held' AND reason IS NOT 'undecidable')
  AND id IN (SELECT value FROM json_each(:retired))
  AND NOT EXISTS (SELECT 1 FROM document o WHERE o.transfer_id = transfer.id AND o.present)
RETURNING id
"""
_TRANSFERS = """
INSERT INTO transfer (uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, fingerprint, md5,
  once, size, state, lease, tries, generation, created, due_since, next_attempt, reason, detail, first_sent, last_sent,
  updated)
SELECT uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, fingerprint, md5,
  once, size, state, 0, 0, 0, :now, :now, :now, reason, detail, sent_since, sent_since,
  :now
FROM plan WHERE lane IS NOT NULL ORDER BY n
ON CONFLICT (lane, once) DO NOTHING
RETURNING state
"""
# A transfer belongs to the mapping that last had its bytes: one that was renamed or removed serves nobody any more.
_FOLLOW = """
UPDATE transfer SET mapping = p.mapping FROM plan p
WHERE transfer.lane = p.lane AND transfer.once = p.once AND transfer.mapping <> p.mapping
  AND transfer.state IN ('waiting', 'doubtful', 'held')
"""
_DOCUMENTS = """
INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, sha256, transfer_id, present, first_seen,
  updated)
SELECT p.mapping, p.folder, p.name, p.size, p.mtime_ns, p.ctime_ns, p.sha256,
  (SELECT id FROM transfer t WHERE t.lane = p.lane AND t.once = p.once), 1, :now, :now
FROM plan p WHERE true ORDER BY p.n
ON CONFLICT (mapping, folder, name) WHERE present DO NOTHING
"""
