"""A plan made true: laid beside the tables, so that each step is one statement however many documents it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from docferry.model import Sighting, State, Target, parted


@dataclass(frozen=True, slots=True)
class Planned:
    """What intake decided about a sighting: where it goes, or why a rule holds it."""

    sighting: Sighting
    target: Target | None  # None: it came down by a download and is not sent back
    uid: str
    remote_name: str
    sha256: str | None  # None: a rule holds it, nothing was read
    once: str
    state: State = State.WAITING
    reason: str | None = None
    detail: str | None = None
    sent_since: float | None = None  # for DOUBTFUL: it may have been sent at any time from then on


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan changed: documents by what became of them."""

    queued: int
    held: int
    unchanged: int


def apply(connection: Connection, mapping: str, planned: Sequence[Planned], now: float) -> Applied:
    """A path that was known otherwise becomes a new document; what nobody else needs of the old one is gone, unless
    bytes of it may be on the wire."""
    _lay(connection)
    connection.execute(_FILL, [_row(index, mapping, plan) for index, plan in enumerate(planned)])
    connection.execute(_SPENT)
    connection.execute(_SAME, {"now": now})
    _retire(connection, now)
    states = [row[0] for row in connection.execute(_TRANSFERS, {"now": now}).all()]
    connection.execute(_FOLLOW)
    connection.execute(_DOCUMENTS, {"now": now})
    held = sum(state == State.HELD for state in states)
    return Applied(len(states) - held, held, len(planned) - len(states))


def vanish(connection: Connection, mapping: str, paths: Sequence[bytes], now: float) -> int:
    """These paths are no longer there; what was not sent and lies nowhere else is gone. Number of documents."""
    _lay(connection)
    rows = [{"mapping": mapping, "folder": folder, "name": name} for folder, name in map(parted, paths)]
    connection.execute(_FILL_PATHS, rows)
    return _retire(connection, now)


def _lay(connection: Connection) -> None:
    connection.execute(_TABLE)
    connection.execute(_CLEAR)


def _retire(connection: Connection, now: float) -> int:
    """Let go of what the plan replaces, and of transfers that nobody needs any more: number of documents."""
    retired = [row[0] for row in connection.execute(_RETIRE, {"now": now}).all()]
    if retired:
        connection.execute(_GONE, {"now": now, "retired": json.dumps(retired)})
    return len(retired)


def _row(index: int, mapping: str, plan: Planned) -> dict[str, object]:
    sighting, target = plan.sighting, plan.target
    return {
        "n": index,
        "mapping": mapping,
        "folder": sighting.folder,
        "name": sighting.name,
        "size": sighting.stamp.size,
        "mtime_ns": sighting.stamp.mtime_ns,
        "ctime_ns": sighting.stamp.ctime_ns,
        "sha256": plan.sha256,
        "uid": plan.uid,
        "lane": None if target is None else target.lane,
        "remote": None if target is None else target.remote,
        "company_id": None if target is None else target.company_id,
        "connection_id": None if target is None else target.connection_id,
        "remote_name": plan.remote_name,
        "once": plan.once,
        "state": plan.state,
        "reason": plan.reason,
        "detail": plan.detail,
        "sent_since": plan.sent_since,
    }


_TABLE = text(
    "CREATE TEMP TABLE IF NOT EXISTS plan (n INTEGER PRIMARY KEY, mapping TEXT, folder BLOB, name BLOB, size INTEGER, "
    "mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT, uid TEXT, lane TEXT, remote TEXT, company_id TEXT, "
    "connection_id TEXT, remote_name TEXT, once TEXT, state TEXT, reason TEXT, detail TEXT, sent_since REAL)"
)
_CLEAR = text("DELETE FROM plan")
_PLANNED = [
    "n",
    "mapping",
    "folder",
    "name",
    "size",
    "mtime_ns",
    "ctime_ns",
    "sha256",
    "uid",
    "lane",
    "remote",
    "company_id",
    "connection_id",
    "remote_name",
    "once",
    "state",
    "reason",
    "detail",
    "sent_since",
]
_FILL = text(f"INSERT INTO plan ({', '.join(_PLANNED)}) VALUES (:{', :'.join(_PLANNED)})")
_FILL_PATHS = text("INSERT INTO plan (mapping, folder, name) VALUES (:mapping, :folder, :name)")
# Of a path that was seen twice the later look counts; and what another process held just now is not held again.
_SPENT = text("""
DELETE FROM plan WHERE n NOT IN (SELECT max(n) FROM plan GROUP BY mapping, folder, name)
  OR sha256 IS NULL AND EXISTS (SELECT 1 FROM document d WHERE d.present AND d.mapping = plan.mapping
    AND d.folder = plan.folder AND d.name = plan.name AND d.sha256 IS NULL
    AND (d.size, d.mtime_ns, d.ctime_ns) = (plan.size, plan.mtime_ns, plan.ctime_ns))
""")
# The same bytes to the same place as before: a touch. Only the stamp is new.
_SAME = text("""
UPDATE document SET size = p.size, mtime_ns = p.mtime_ns, ctime_ns = p.ctime_ns, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping AND document.folder = p.folder
  AND document.name = p.name AND document.sha256 = p.sha256
  AND (document.transfer_id IS NULL AND p.lane IS NULL OR document.transfer_id IN (
    SELECT id FROM transfer t WHERE t.lane = p.lane AND t.once = p.once AND t.state <> 'gone'))
""")
_RETIRE = text("""
UPDATE document SET present = 0, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping AND document.folder = p.folder
  AND document.name = p.name
  AND (document.size, document.mtime_ns, document.ctime_ns, document.sha256)
    IS NOT (p.size, p.mtime_ns, p.ctime_ns, p.sha256)
RETURNING document.transfer_id
""")
_GONE = text("""
UPDATE transfer SET state = 'gone', detail = 'the file went away or changed before it was sent', updated = :now
WHERE (state = 'waiting' OR state = 'held' AND reason IS NOT 'undecidable')
  AND id IN (SELECT value FROM json_each(:retired))
  AND NOT EXISTS (SELECT 1 FROM document o WHERE o.transfer_id = transfer.id AND o.present)
""")
_TRANSFERS = text("""
INSERT INTO transfer (uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, once, size, state,
  lease, tries, generation, created, due_since, next_attempt, reason, detail, first_sent, last_sent, updated)
SELECT uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, once, size, state, 0, 0, 0, :now,
  :now,  :now, reason, detail, sent_since, sent_since, :now
FROM plan WHERE lane IS NOT NULL ORDER BY n
ON CONFLICT (lane, once) WHERE state <> 'gone' DO NOTHING
RETURNING state
""")
# A transfer belongs to the mapping that last had its bytes: one that was renamed or removed serves nobody any more.
_FOLLOW = text("""
UPDATE transfer SET mapping = p.mapping FROM plan p
WHERE transfer.lane = p.lane AND transfer.once = p.once AND transfer.mapping <> p.mapping
  AND transfer.state IN ('waiting', 'doubtful', 'held')
  AND transfer.state <> 'gone' -- word for word as the index has it: else a million rows are read for each plan
""")
_DOCUMENTS = text("""
INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, sha256, transfer_id, present, first_seen,
  updated)
SELECT p.mapping, p.folder, p.name, p.size, p.mtime_ns, p.ctime_ns, p.sha256,
  (SELECT id FROM transfer t WHERE t.lane = p.lane AND t.once = p.once AND t.state <> 'gone'), 1, :now, :now
FROM plan p WHERE true ORDER BY p.n
ON CONFLICT (mapping, folder, name) WHERE present DO NOTHING
""")
