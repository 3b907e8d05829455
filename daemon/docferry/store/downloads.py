"""Store the files that downloads wrote. Each row is committed before its file appears."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict

from docferry.clock import Clock
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.statement import Sql

_KNOWN = Sql("""
SELECT mapping, origin, sha256, path, published, size FROM download WHERE mapping = :mapping AND origin = ANY(:origins)
""")
_RECORD = Sql("""
INSERT INTO download (mapping, origin, sha256, path, published, size, updated)
VALUES (:mapping, :origin, :sha256, :path, :published, :size, :now)
ON CONFLICT (mapping, origin, sha256) DO UPDATE SET path = excluded.path, published = excluded.published,
  updated = excluded.updated
""")
_BY_DIGEST = Sql("""
SELECT mapping, origin, sha256, path, published, size FROM download WHERE sha256 = ANY(:digests) AND path IS NOT NULL
""")
_INDEX_DOWNLOADS = Sql("CREATE INDEX IF NOT EXISTS download_digest ON download (sha256)")
_ANY_ROW = Sql("SELECT 1 FROM download LIMIT 1")
# Created only for downloads from Codat. Digests are spread over the whole index, so each upload to a database of
# millions would write one more page.
_INDEX_DIGESTS = Sql("CREATE INDEX IF NOT EXISTS transfer_digest ON transfer (sha256)")
_OWN_DIGESTS = Sql("""
SELECT DISTINCT sha256 FROM transfer WHERE sha256 = ANY(:digests) AND company_id = :company
  AND (state = 'sent' OR first_sent IS NOT NULL)
""")


#: The longest origin that is stored whole, bytes. A row of an index of PostgreSQL has at most 2,704.
LONGEST_ORIGIN: Final = 1500


def indexable(origin: str) -> str:
    """Return an origin that fits into an index: the end of a long one is replaced by its SHA-256."""
    raw = origin.encode("utf-8", "backslashreplace")
    if len(raw) <= LONGEST_ORIGIN:
        return origin
    return f"{raw[:LONGEST_ORIGIN].decode('utf-8', 'ignore')}…{hashlib.sha256(raw).hexdigest()}"


class DownloadedFile(Struct, frozen=True):
    """Describe a remote file: its origin, its digest and its place on the disk."""

    mapping: str
    origin: str
    sha256: str
    path: bytes | None  # absolute; None: docferry's own upload, which is not downloaded
    published: bool  # whether the file has appeared under `path`
    size: int


class Downloads:
    """Access the download table."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def known(self, mapping: str, origins: Collection[str]) -> list[DownloadedFile]:
        """Return the recorded files of these origins."""
        rows = await self._database.fetch_all(_KNOWN, {"mapping": mapping, "origins": list(origins)})
        return [_downloaded(row) for row in rows]

    async def record(self, files: Sequence[DownloadedFile]) -> None:
        """Record files that are about to appear, have appeared, or are docferry's own uploads."""
        now, receipts = self._clock.now(), self._database.receipts
        rows = [asdict(file) | {"now": now} for file in files]
        published = [row for row in rows if row["published"] and row["path"] is not None]

        def work(transaction: Transaction) -> None:
            transaction.execute(_INDEX_DOWNLOADS)
            for row in rows:  # one by one: an unstorable name from the remote is replaced
                transaction.execute(_RECORD, row)
            receipts.append_downloaded(transaction, published, now)

        if rows:
            await self._database.write(work)

    async def with_digests(self, digests: Collection[str]) -> list[DownloadedFile]:
        """Return the files with these digests that downloads wrote, at any present path."""
        rows = await self._database.fetch_all(_BY_DIGEST, {"digests": list(digests)})
        return [_downloaded(row) for row in rows]

    async def exist(self) -> bool:
        """Return whether any download is recorded; without one, the planner need not look up files."""
        return await self._database.fetch_one(_ANY_ROW) is not None

    async def own_digests(self, company_id: str, digests: Collection[str]) -> set[str]:
        """Return the digests that docferry sent, or may have sent, to the company."""

        def work(transaction: Transaction) -> set[str]:
            transaction.execute(_INDEX_DIGESTS)
            parameters = {"company": company_id, "digests": list(digests)}
            return {digest for (digest,) in transaction.fetch_all(_OWN_DIGESTS, parameters)}

        return await self._database.write(work)


def _downloaded(row: Sequence[Any]) -> DownloadedFile:
    return DownloadedFile(row[0], row[1], row[2], row[3], bool(row[4]), row[5])
