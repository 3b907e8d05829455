"""What lies in the mapped folders: one present row a path, planned by intake and compared by every scan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, text

from docferry.clock import Clock
from docferry.model import SeenFile, Stamp, joined, parted
from docferry.store import enqueue
from docferry.store.connection import driver, fetched
from docferry.store.database import Database
from docferry.store.enqueue import Applied, Planned

#: name, size, mtime_ns, ctime_ns: what a scan compares, as `files.scan` gives it.
Look = tuple[bytes, int, int, int]


@dataclass(slots=True)
class Differences:
    """How folders on the disk differ from what is known of them."""

    known: int = 0  # files that are known as they are
    fresh: list[SeenFile] = field(default_factory=list)  # new, or known otherwise
    gone: list[bytes] = field(default_factory=list)  # paths that are known and no longer there


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

    async def differences(self, mapping: str, seen: Sequence[tuple[bytes, Sequence[Look]]]) -> Differences:
        """Hold folders, each with all files that a scan saw there, against what is known of them. In the database's
        thread, folder by folder: nothing but what differs comes out of it."""

        def work(connection: Connection) -> Differences:
            found = Differences()
            for folder, files in seen:
                _differ(connection, mapping, folder, files, found)
            return found

        return await self._database.read(work)

    async def known(self, mapping: str, folders: Iterable[bytes]) -> dict[bytes, set[Look]]:
        """How the present documents of these folders looked when they were planned."""

        def work(connection: Connection) -> dict[bytes, set[Look]]:
            return {folder: looks for folder in folders if (looks := _known(connection, mapping, folder))}

        return await self._database.read(work)

    async def looks(self, mapping: str, paths: Iterable[bytes]) -> dict[bytes, Stamp]:
        """How the present documents at these paths looked, however many others lie in their folders."""

        def work(connection: Connection) -> dict[bytes, Stamp]:
            ask = driver(connection).execute
            found = {}
            for path in paths:
                folder, name = parted(path)
                if row := ask(_LOOK, {"mapping": mapping, "folder": folder, "name": name}).fetchone():
                    found[path] = Stamp(*row)
            return found

        return await self._database.read(work)

    async def look(self, mapping: str, path: bytes) -> Stamp | None:
        """How the present document at `path` looked, None when there is none."""
        return (await self.looks(mapping, [path])).get(path)

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
        return await self._database.write(
            lambda connection: enqueue.apply(connection, mapping, planned, now, self._database.receipts)
        )

    async def vanished(self, mapping: str, paths: Iterable[bytes]) -> int:
        """These paths are no longer there; what was not sent and lies nowhere else is gone. Number of documents."""
        now, went = self._clock.now(), list(paths)
        if not went:
            return 0
        return await self._database.write(
            lambda connection: enqueue.vanish(connection, mapping, went, now, self._database.receipts)
        )

    async def forget_stamps(self, mapping: str) -> None:
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
            rows = fetched(connection, _PLACES, {"ids": json.dumps(list(transfer_ids))})
            for transfer_id, document_id, mapping, folder, name, *stamp in rows:
                place = Place(document_id, mapping, joined(folder, name), Stamp(*stamp))
                found.setdefault(transfer_id, []).append(place)
            return found

        return await self._database.read(work)

    async def delivered(
        self, mapping: str, *, after: int = 0, limit: int = 1000
    ) -> list[tuple[int, bytes, Stamp, str]]:
        """Present documents whose transfer is SENT: id, path, stamp and digest, for `after_upload`; by ascending id."""

        def work(connection: Connection) -> list[tuple[int, bytes, Stamp, str]]:
            rows = connection.execute(_DELIVERED, {"mapping": mapping, "after": after, "most": limit})
            return [(row[0], joined(row[1], row[2]), Stamp(row[3], row[4], row[5]), row[6]) for row in rows.all()]

        return await self._database.read(work)

    async def is_queued(self, lane: str, once: str) -> bool:
        """Whether a transfer that is not gone already carries this, or did."""

        def work(connection: Connection) -> bool:
            row = connection.execute(
                text("SELECT 1 FROM transfer WHERE lane = :lane AND once = :once"),
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


_KNOWN = """
SELECT name, size, mtime_ns, ctime_ns FROM document WHERE mapping = :mapping AND folder = :folder AND present
"""
_PIECE = 4096
_LOOK = """
SELECT size, mtime_ns, ctime_ns FROM document WHERE mapping = :mapping AND folder = :folder AND name = :name AND present
"""
_FOLDERS = text("SELECT DISTINCT folder FROM document WHERE mapping = :mapping AND present")
_PLACES = """
SELECT transfer_id, id, mapping, folder, name, size, mtime_ns, ctime_ns FROM document
WHERE transfer_id IN (SELECT value FROM json_each(:ids)) AND present ORDER BY id
"""
_DELIVERED = text(
    "SELECT d.id, d.folder, d.name, d.size, d.mtime_ns, d.ctime_ns, d.sha256 FROM document d "
    "JOIN transfer t ON t.id = d.transfer_id "
    "WHERE d.mapping = :mapping AND d.present AND t.state = 'sent' AND t.sha256 = d.sha256 LIMIT :most"
)
_STATES = text(
    "SELECT t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id "
    "WHERE d.mapping IN :mappings AND d.present GROUP BY 1"
).bindparams(bindparam("mappings", expanding=True))


def _known(connection: Connection, mapping: str, folder: bytes) -> set[Look]:
    return set(fetched(connection, _KNOWN, {"mapping": mapping, "folder": folder}))


def _differ(connection: Connection, mapping: str, folder: bytes, files: Sequence[Look], found: Differences) -> None:
    """What is known comes in pieces, so that a folder of a million files is in memory once, not three times."""
    fresh, otherwise = set(files), list[Look]()
    known = driver(connection).execute(_KNOWN, {"mapping": mapping, "folder": folder})
    rows = known.fetchmany(_PIECE)
    if len(rows) == len(fresh) < _PIECE and fresh.issuperset(rows):
        found.known += len(rows)
        return
    while rows:
        piece = set(rows)
        other = piece - fresh
        fresh -= piece
        otherwise += other
        found.known += len(piece) - len(other)
        rows = known.fetchmany(_PIECE)
    names = {look[0] for look in fresh}
    found.gone += [joined(folder, look[0]) for look in otherwise if look[0] not in names]
    found.fresh += [SeenFile(folder, name, Stamp(*stamp)) for name, *stamp in fresh]
