"""What lies in the mapped folders: one present row a path, planned by intake and compared by every scan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from docferry.clock import Clock
from docferry.model import Sighting, Stamp, State, Target
from docferry.store.database import Database

#: name, size, mtime_ns, ctime_ns: what a scan compares, as `files.scan` gives it.
Look = tuple[bytes, int, int, int]


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


@dataclass(frozen=True, slots=True)
class Place:
    """A present file that holds a transfer's bytes."""

    document_id: int
    mapping: str
    path: bytes
    stamp: Stamp


class Documents:
    """The documents of the database; every change of a path is made here."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def known(self, mapping: str, folders: Sequence[bytes]) -> dict[bytes, set[Look]]:
        """How the present documents of these folders looked when they were planned."""

        def work(connection: Connection) -> dict[bytes, set[Look]]:
            found: dict[bytes, set[Look]] = {}
            rows = connection.execute(_KNOWN, {"mapping": mapping, "folders": list(folders)})
            for folder, name, size, mtime_ns, ctime_ns in rows.all():
                found.setdefault(folder, set()).add((name, size, mtime_ns, ctime_ns))
            return found

        return await self._database.read(work)

    async def look(self, mapping: str, path: bytes) -> Stamp | None:
        """How the present document at `path` looked, None when there is none."""
        folder, _, name = path.rpartition(b"/")
        known = await self.known(mapping, [folder])
        return next((Stamp(*look[1:]) for look in known.get(folder, ()) if look[0] == name), None)

    async def folders(self, mapping: str) -> set[bytes]:
        """Folders with present documents."""

        def work(connection: Connection) -> set[bytes]:
            rows = connection.execute(_FOLDERS, {"mapping": mapping})
            return {row[0] for row in rows.all()}

        return await self._database.read(work)

    async def any_present(self, mapping: str) -> bool:
        def work(connection: Connection) -> bool:
            row = connection.execute(
                text("SELECT 1 FROM document WHERE mapping = :mapping AND present LIMIT 1"), {"mapping": mapping}
            )
            return row.first() is not None

        return await self._database.read(work)

    async def apply(self, mapping: str, planned: Sequence[Planned]) -> Applied:
        """Make the plans true in one commit. A path that was known otherwise becomes a new document; what nobody
        else needs of the old one is gone, unless bytes of it may be on the wire."""
        if not planned:
            return Applied(0, 0, 0)
        now = self._clock.now()
        rows = [_plan_row(index, mapping, plan) for index, plan in enumerate(planned)]

        def work(connection: Connection) -> Applied:
            connection.execute(_PLAN_TABLE)
            connection.execute(_PLAN_CLEAR)
            connection.execute(_PLAN_FILL, rows)
            connection.execute(_PLAN_SPENT)
            connection.execute(_SAME, {"now": now})
            _retire(connection, now)
            made = connection.execute(_TRANSFERS, {"now": now})
            states = [row[0] for row in made.all()]
            connection.execute(_FOLLOW)
            connection.execute(_DOCUMENTS, {"now": now})
            held = sum(state == State.HELD for state in states)
            return Applied(len(states) - held, held, len(rows) - len(states))

        return await self._database.write(work)

    async def vanished(self, mapping: str, paths: Iterable[bytes]) -> int:
        """These paths are no longer there; what was not sent and lies nowhere else is gone. Number of documents."""
        now = self._clock.now()
        rows = [
            {"mapping": mapping, "folder": path.rpartition(b"/")[0], "name": path.rpartition(b"/")[2]} for path in paths
        ]
        if not rows:
            return 0

        def work(connection: Connection) -> int:
            connection.execute(_PLAN_TABLE)
            connection.execute(_PLAN_CLEAR)
            connection.execute(_PLAN_PATHS, rows)
            return _retire(connection, now)

        return await self._database.write(work)

    async def looked_otherwise(self, mapping: str) -> None:
        """The mapping leads elsewhere now: every present path is to be planned afresh."""

        def work(connection: Connection) -> None:
            connection.execute(
                text("UPDATE document SET ctime_ns = -1 WHERE mapping = :mapping AND present"), {"mapping": mapping}
            )

        await self._database.write(work)

    async def places(self, transfer_ids: Sequence[int]) -> dict[int, list[Place]]:
        """Where the bytes of these transfers lie."""

        def work(connection: Connection) -> dict[int, list[Place]]:
            found: dict[int, list[Place]] = {}
            rows = connection.execute(_PLACES, {"ids": list(transfer_ids)})
            for transfer_id, document_id, mapping, folder, name, *stamp in rows.all():
                path = folder + b"/" + name if folder else name
                found.setdefault(transfer_id, []).append(Place(document_id, mapping, path, Stamp(*stamp)))
            return found

        return await self._database.read(work)

    async def delivered(self, mapping: str, limit: int = 1000) -> list[tuple[int, bytes, Stamp, str]]:
        """Present documents whose transfer is SENT: id, path, stamp and digest, for `after_upload`."""

        def work(connection: Connection) -> list[tuple[int, bytes, Stamp, str]]:
            rows = connection.execute(_DELIVERED, {"mapping": mapping, "most": limit})
            return [
                (row[0], row[1] + b"/" + row[2] if row[1] else row[2], Stamp(row[3], row[4], row[5]), row[6])
                for row in rows.all()
            ]

        return await self._database.read(work)

    async def is_queued(self, lane: str, once: str) -> bool:
        """Whether a transfer that is not gone already carries this, or did."""

        def work(connection: Connection) -> bool:
            row = connection.execute(
                text("SELECT 1 FROM transfer WHERE lane = :lane AND once = :once AND state <> 'gone'"),
                {"lane": lane, "once": once},
            )
            return row.first() is not None

        return await self._database.read(work)

    async def removed(self, document_ids: Sequence[int]) -> None:
        """These files were archived or deleted after their upload, as the mapping asks."""

        def work(connection: Connection) -> None:
            connection.execute(
                text("UPDATE document SET present = 0, updated = :now WHERE id = :id"),
                [{"id": document_id, "now": self._clock.now()} for document_id in document_ids],
            )

        if document_ids:
            await self._database.write(work)

    async def present(self, mappings: Mapping[str, object] | Sequence[str]) -> dict[str, int]:
        """How many present documents each state has, over these mappings."""

        def work(connection: Connection) -> dict[str, int]:
            rows = connection.execute(_STATES, {"mappings": list(mappings)})
            return {row[0]: row[1] for row in rows.all()}

        return await self._database.read(work)


_KNOWN = text(
    "SELECT folder, name, size, mtime_ns, ctime_ns FROM document "
    "WHERE mapping = :mapping AND folder IN :folders AND present"
).bindparams(bindparam("folders", expanding=True))
_FOLDERS = text("SELECT DISTINCT folder FROM document WHERE mapping = :mapping AND present")
_PLACES = text(
    "SELECT transfer_id, id, mapping, folder, name, size, mtime_ns, ctime_ns FROM document "
    "WHERE transfer_id IN :ids AND present ORDER BY id"
).bindparams(bindparam("ids", expanding=True))
_DELIVERED = text(
    "SELECT d.id, d.folder, d.name, d.size, d.mtime_ns, d.ctime_ns, d.sha256 FROM document d "
    "JOIN transfer t ON t.id = d.transfer_id "
    "WHERE d.mapping = :mapping AND d.present AND t.state = 'sent' AND t.sha256 = d.sha256 LIMIT :most"
)
_STATES = text(
    "SELECT t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id "
    "WHERE d.mapping IN :mappings AND d.present GROUP BY 1"
).bindparams(bindparam("mappings", expanding=True))

# A plan is laid beside the tables, so that each step is one statement however many documents it has.
_PLAN_TABLE = text(
    "CREATE TEMP TABLE IF NOT EXISTS plan (n INTEGER PRIMARY KEY, mapping TEXT, folder BLOB, name BLOB, size INTEGER, "
    "mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT, uid TEXT, lane TEXT, remote TEXT, company_id TEXT, "
    "connection_id TEXT, remote_name TEXT, once TEXT, state TEXT, reason TEXT, detail TEXT, sent_since REAL)"
)
_PLAN_CLEAR = text("DELETE FROM plan")
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
_PLAN_FILL = text(f"INSERT INTO plan ({', '.join(_PLANNED)}) VALUES (:{', :'.join(_PLANNED)})")
_PLAN_PATHS = text("INSERT INTO plan (mapping, folder, name) VALUES (:mapping, :folder, :name)")
# Of a path that was seen twice the later look counts; and what another process held just now is not held again.
_PLAN_SPENT = text("""
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
""")
_DOCUMENTS = text("""
INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, sha256, transfer_id, present, first_seen,
  updated)
SELECT p.mapping, p.folder, p.name, p.size, p.mtime_ns, p.ctime_ns, p.sha256,
  (SELECT id FROM transfer t WHERE t.lane = p.lane AND t.once = p.once AND t.state <> 'gone'), 1, :now, :now
FROM plan p WHERE true ORDER BY p.n
ON CONFLICT (mapping, folder, name) WHERE present DO NOTHING
""")


def _retire(connection: Connection, now: float) -> int:
    """Let go of what the plan replaces, and of transfers that nobody needs any more: number of documents."""
    retired = [row[0] for row in connection.execute(_RETIRE, {"now": now}).all()]
    if retired:
        connection.execute(_GONE, {"now": now, "retired": json.dumps(retired)})
    return len(retired)


def _plan_row(index: int, mapping: str, plan: Planned) -> dict[str, object]:
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
