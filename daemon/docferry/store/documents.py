"""Store documents of the mapped folders: one present row for each path, written by the planner, compared by scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from docferry.clock import Clock
from docferry.errors import StatementRefused
from docferry.model import SeenFile, Stamp, joined, parted
from docferry.store import enqueue, plan_table
from docferry.store.connection import Transaction
from docferry.store.cursors import Cursors
from docferry.store.database import Database
from docferry.store.enqueue import Applied
from docferry.store.old_copy import adopted
from docferry.store.plan_table import Planned
from docferry.store.statement import Sql

#: name, size, mtime_ns and ctime_ns of a file, from `files.scan`.
FileEntry = tuple[bytes, int, int, int]


class Differences(Struct):
    """Hold the differences between folders on the disk and their documents."""

    known: int = 0  # files with an unchanged document
    fresh: list[SeenFile] = field(default_factory=list)  # new or changed files
    gone: list[bytes] = field(default_factory=list)  # paths of documents whose file is absent


class Place(NamedTuple):
    """Describe a present file that contains a transfer's bytes."""

    document_id: int
    mapping: str
    path: bytes
    stamp: Stamp


class Documents:
    """Access the document table."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._cursors = Cursors(database, clock)
        self._clock = clock

    async def differences(self, mapping: str, seen: Sequence[tuple[bytes, Sequence[FileEntry]]]) -> Differences:
        """Compare folders with their documents. Each folder is given with all files of a scan.

        The database thread compares folder by folder, so that only differences are returned.
        """

        def work(transaction: Transaction) -> Differences:
            found = Differences()
            for folder, files in seen:
                _compare(transaction, mapping, folder, files, found)
            return found

        return await self._database.read(work)

    async def known(self, mapping: str, folders: Iterable[bytes]) -> dict[bytes, set[FileEntry]]:
        """Return the entries of the present documents of these folders, as planned."""

        def work(transaction: Transaction) -> dict[bytes, set[FileEntry]]:
            rows = {folder: transaction.fetch_all(_KNOWN, {"mapping": mapping, "folder": folder}) for folder in folders}
            return {folder: set(found) for folder, found in rows.items() if found}

        return await self._database.read(work)

    async def stamps(self, mapping: str, paths: Iterable[bytes]) -> dict[bytes, Stamp]:
        """Return the stamps of the present documents at these paths, as planned."""

        def work(transaction: Transaction) -> dict[bytes, Stamp]:
            found = {}
            for path in paths:
                folder, name = parted(path)
                row = transaction.fetch_one(_STAMP, {"mapping": mapping, "folder": folder, "name": name})
                if row is not None:
                    found[path] = Stamp(*row)
            return found

        return await self._database.read(work)

    async def folders(self, mapping: str) -> set[bytes]:
        """Return the folders that contain present documents."""
        rows = await self._database.fetch_all(_FOLDERS, {"mapping": mapping})
        return {folder for (folder,) in rows if isinstance(folder, bytes)}  # another program may have damaged a row

    async def any_present(self, mapping: str) -> bool:
        """Return whether the mapping has a present document."""
        return await self._database.fetch_one(_ANY_PRESENT, {"mapping": mapping}) is not None

    async def sample(self, mapping: str) -> list[SeenFile]:
        """Return some present documents of a mapping: the first and the last ones by path."""

        def work(transaction: Transaction) -> list[SeenFile]:
            rows = [row for each in _ENDS for row in transaction.fetch_all(each, {"mapping": mapping})]
            return [SeenFile(bytes(folder), bytes(name), Stamp(*stamp)) for folder, name, *stamp in rows]

        return await self._database.read(work)

    async def apply(self, mapping: str, planned: Sequence[Planned]) -> Applied:
        """Commit plans together.

        Changed content becomes a new document. The transfer of the old content is gone if no other document needs it
        and it certainly was not sent. A document whose rows the database refuses is held; if that is refused too, it is
        returned as refused.
        """
        if not planned:
            return Applied(0, 0, 0)
        now, database = self._clock.now(), self._database

        def work(transaction: Transaction, plans: Sequence[Planned]) -> Applied:
            before = database.adopt_before
            plans = [adopted(plan, before) for plan in plans] if before else plans
            return enqueue.apply(transaction, mapping, plans, now, database.receipts)

        applied, refused = await database.write_each(planned, work)
        if refused:
            held = [plan_table.held(plan, f"{error}, then run `docferry retry`") for plan, error in refused]
            more, refused = await database.write_each(held, work)
            applied += more
        told = tuple((plan.seen_file, str(error)) for plan, error in refused)
        return sum(applied, Applied(0, 0, 0, refused=told))

    async def mark_gone(self, mapping: str, paths: Iterable[bytes]) -> int:
        """Record that these paths are absent, and return the number of documents.

        A transfer is gone if it was not sent and no other document needs it.
        """
        now, absent = self._clock.now(), list(paths)
        if not absent:
            return 0
        receipts = self._database.receipts
        # Paths whose rows the database refuses to change stay as they are until the next scan.
        numbers, _ = await self._database.write_each(
            absent, lambda transaction, some: enqueue.mark_gone(transaction, mapping, some, now, receipts)
        )
        return sum(numbers)

    async def set_target(self, mapping: str, target: str) -> None:
        """Store the target of a mapping. If it changed, the next scan plans every present path again."""
        if await self._has_changed(f"mapping/{mapping}", target):
            await self._database.execute(_FORGET_STAMPS, {"mapping": mapping})
        await self._cursors.set(f"mapping/{mapping}", target)

    async def forget_held_stamps(self, mapping: str) -> None:
        """Make the next scan validate again the documents that a rule holds."""
        await self._database.execute(_FORGET_HELD_STAMPS, {"mapping": mapping})

    async def have_rules_changed(self, mapping: str, rules: str) -> bool:
        """Store the rules of a mapping. Return whether other rules were stored before."""
        changed = await self._has_changed(f"rules/{mapping}", rules)
        await self._cursors.set(f"rules/{mapping}", rules)
        return changed

    async def _has_changed(self, key: str, value: str) -> bool:
        return await self._cursors.get(key) not in (None, value)

    async def places(self, transfer_ids: Sequence[int]) -> dict[int, list[Place]]:
        """Return the present files of each of these transfers, as far as they can be read."""
        return (await self.places_or_errors(transfer_ids))[0]

    async def places_or_errors(
        self, transfer_ids: Sequence[int]
    ) -> tuple[dict[int, list[Place]], list[tuple[int, StatementRefused]]]:
        """Return the present files of these transfers, and the transfers whose rows cannot be read."""
        found, refused = await self._database.read_each(transfer_ids, _places)
        return {transfer_id: places for some in found for transfer_id, places in some.items()}, refused

    async def delivered(
        self, mapping: str, *, after: int = 0, limit: int = 1000
    ) -> list[tuple[int, bytes, Stamp, str]]:
        """Return id, path, stamp and digest of present documents that were sent, for the after-upload action.

        The rows are in the order of their ids, and begin after id `after`.
        """
        rows = await self._database.fetch_all(_DELIVERED, {"mapping": mapping, "after": after, "limit": limit})
        return [(row[0], joined(row[1], row[2]), Stamp(row[3], row[4], row[5]), row[6]) for row in rows]

    async def is_queued(self, lane: str, dedupe_key: str, sha256: str | None) -> bool:
        """Return whether the lane has a transfer with this dedupe key and these bytes that is not gone."""
        parameters = {"lane": lane, "key": dedupe_key, "sha256": sha256}
        return await self._database.fetch_one(_IS_QUEUED, parameters) is not None

    async def mark_removed(self, document_ids: Sequence[int]) -> None:
        """Record that the after-upload action archived or deleted these files, so their names are free."""
        now, ids = self._clock.now(), list(document_ids)
        if ids:
            await self._database.write_each(ids, lambda transaction, some: enqueue.mark_removed(transaction, some, now))

    async def present(self, mappings: Iterable[str]) -> dict[str, int]:
        """Return the number of present documents of these mappings by state."""
        return dict(await self._database.fetch_all(_STATES, {"mappings": list(mappings)}))


_KNOWN = Sql("""
SELECT name, size, mtime_ns, ctime_ns FROM document
WHERE mapping = :mapping AND sha256(folder) = sha256(:folder) AND present
""")
_STAMP = Sql("""
SELECT size, mtime_ns, ctime_ns FROM document
WHERE mapping = :mapping AND sha256(folder) = sha256(:folder) AND name = :name AND present
""")
_FOLDERS = Sql("SELECT DISTINCT folder FROM document WHERE mapping = :mapping AND present")
_ANY_PRESENT = Sql("SELECT 1 FROM document WHERE mapping = :mapping AND present LIMIT 1")
_ENDS = tuple(
    Sql(
        "SELECT folder, name, size, mtime_ns, ctime_ns FROM document WHERE mapping = :mapping AND present "  # noqa: S608 - our own order
        f"ORDER BY folder {order}, name {order} LIMIT 8"
    )
    for order in ("ASC", "DESC")
)
_FORGET_STAMPS = Sql("UPDATE document SET ctime_ns = -1 WHERE mapping = :mapping AND present")
_FORGET_HELD_STAMPS = Sql("UPDATE document SET ctime_ns = -1 WHERE mapping = :mapping AND present AND sha256 IS NULL")
_PLACES = Sql("""
SELECT transfer_id, id, mapping, folder, name, size, mtime_ns, ctime_ns FROM document
WHERE transfer_id = ANY(:ids) AND present ORDER BY id
""")
_DELIVERED = Sql("""
SELECT d.id, d.folder, d.name, d.size, d.mtime_ns, d.ctime_ns, d.sha256
FROM document d JOIN transfer t ON t.id = d.transfer_id
WHERE d.mapping = :mapping AND d.present AND d.id > :after AND t.state = 'sent' AND t.sha256 = d.sha256
ORDER BY d.id LIMIT :limit
""")
_IS_QUEUED = Sql("SELECT 1 FROM transfer WHERE lane = :lane AND dedupe_key = :key AND sha256 = :sha256")
_STATES = Sql("""
SELECT t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id
WHERE d.mapping = ANY(:mappings) AND d.present GROUP BY 1
""")


def _places(transaction: Transaction, transfer_ids: Sequence[int]) -> dict[int, list[Place]]:
    found: dict[int, list[Place]] = {}
    rows = transaction.fetch_all(_PLACES, {"ids": list(transfer_ids)})
    for transfer_id, document_id, mapping, folder, name, *stamp in rows:
        place = Place(document_id, mapping, joined(folder, name), Stamp(*stamp))
        found.setdefault(transfer_id, []).append(place)
    return found


def _compare(
    transaction: Transaction, mapping: str, folder: bytes, files: Sequence[FileEntry], found: Differences
) -> None:
    """Add the differences of one folder to `found`.

    The documents are read in pieces: a folder of a million files is then in memory once, not three times.
    """
    fresh, other = set(files), list[FileEntry]()
    pieces = transaction.fetch_pieces(_KNOWN, {"mapping": mapping, "folder": folder})
    for rows in pieces:
        piece = set(rows)
        unmatched = piece - fresh
        fresh -= piece
        other += unmatched
        found.known += len(piece) - len(unmatched)
    names = {name for name, *_ in fresh}
    gone = [name for name, *_ in other if name not in names and isinstance(name, bytes)]
    found.gone += [joined(folder, name) for name in gone]
    found.fresh += [SeenFile(folder, name, Stamp(*stamp)) for name, *stamp in fresh]
