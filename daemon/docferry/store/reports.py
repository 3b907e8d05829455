"""Read counts, rows and histories of the queue for people and scripts."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from typing import Any

from msgspec import Struct

from docferry.model import joined, parted
from docferry.store.connection import as_bytes
from docferry.store.database import Database
from docferry.store.statement import Sql


class Row(Struct, frozen=True):
    """Describe a document for `list`. `path` is relative to the mapping's root; times are wall seconds."""

    id: int
    mapping: str
    path: bytes
    size: int
    sha256: str | None
    state: str
    reason: str | None
    detail: str | None
    attempts: int
    remote_name: str
    company_id: str | None
    connection_id: str | None
    next_attempt: float | None
    first_seen: float
    updated: float


class AttemptRow(Struct, frozen=True):
    """Describe one attempt of a transfer."""

    lease: int
    began: float
    ended: float | None
    state: str
    detail: str | None
    status: int | None
    correlation_id: str | None
    etag: str | None
    proof: str | None


# Columns in the order of `Row`, with the path in two parts.
_ROW = """
SELECT d.id, d.mapping, d.folder, d.name, d.size, d.sha256, t.state, t.reason, t.detail,
  (SELECT count(*) FROM attempt a WHERE a.transfer_id = t.id) + CASE t.state WHEN 'sending' THEN 1 ELSE 0 END,
  t.remote_name, t.company_id, t.connection_id,
  CASE WHEN t.state IN ('waiting', 'doubtful') THEN t.next_attempt END,
  d.first_seen, CASE WHEN d.updated > t.updated THEN d.updated ELSE t.updated END
FROM document d JOIN transfer t ON t.id = d.transfer_id
"""
_BY_ID = Sql(f"{_ROW} WHERE d.id = :id")
_BY_PATH = Sql(f"""{_ROW}
WHERE d.mapping = :mapping AND sha256(d.folder) = sha256(:folder) AND d.name = :name ORDER BY d.id DESC
""")
# Conditions of `rows`: each combination is a statement, so that an absent condition costs nothing.
_CONDITIONS = {
    "mapping": "d.mapping = :mapping",
    "states": "t.state = ANY(:states)",
    "reason": "t.reason = :reason",
}
_ROWS = {
    names: Sql(
        f"{_ROW} WHERE {' AND '.join(['d.id > :after', *(_CONDITIONS[name] for name in names)])} "
        "ORDER BY d.id LIMIT :limit"
    )
    for count in range(len(_CONDITIONS) + 1)
    for names in combinations(_CONDITIONS, count)
}
_COUNTS = Sql("""
SELECT d.mapping, t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id GROUP BY 1, 2
""")
# CROSS JOIN makes SQLite begin with the few held transfers.
_HELD_REASONS = Sql("""
SELECT d.mapping, t.reason, count(*) FROM transfer t CROSS JOIN document d
WHERE d.transfer_id = t.id AND t.state = 'held' AND d.present GROUP BY 1, 2 ORDER BY 1, 2
""")
# The second part is the unfinished attempt, which has no row of its own yet.
_ATTEMPTS = Sql("""
SELECT a.lease, a.began, a.ended, a.state, a.detail, a.status, a.correlation_id, a.etag, a.proof
FROM document d JOIN attempt a ON a.transfer_id = d.transfer_id WHERE d.id = :id
UNION ALL
SELECT t.lease, t.last_sent, NULL, t.state, NULL, NULL, NULL, NULL, NULL
FROM document d JOIN transfer t ON t.id = d.transfer_id WHERE d.id = :id AND t.state = 'sending'
ORDER BY 1
""")
# Each part repeats the condition of a partial index; otherwise SQLite would read every transfer.
_OPEN_COUNTS = Sql("""
SELECT state, count(*) FROM transfer WHERE state = 'waiting' AND mapping = ANY(:mappings) GROUP BY state
UNION ALL
SELECT state, count(*) FROM transfer WHERE state = 'doubtful' AND mapping = ANY(:mappings) GROUP BY state
UNION ALL
SELECT state, count(*) FROM transfer WHERE state = 'held' AND mapping = ANY(:mappings) GROUP BY state
UNION ALL
SELECT state, count(*) FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND mapping = ANY(:mappings)
GROUP BY state
""")


class Reports:
    """Run queries that change nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of documents by mapping and state."""
        found: dict[str, dict[str, int]] = {}
        for mapping, state, count in await self._database.fetch_all(_COUNTS):
            found.setdefault(mapping, {})[state] = count
        return found

    async def open_counts(self, mappings: Collection[str]) -> dict[str, int]:
        """Return the number of transfers of these mappings by state, except final states."""
        return dict(await self._database.fetch_all(_OPEN_COUNTS, {"mappings": list(mappings)}))

    async def held_reasons(self) -> list[tuple[str, str, int]]:
        """Return mapping, reason and number of held documents."""
        return [tuple(row) for row in await self._database.fetch_all(_HELD_REASONS)]

    async def rows(
        self,
        *,
        mapping: str | None = None,
        states: Collection[str] = (),
        reason: str | None = None,
        limit: int | None = None,
        after: int = 0,
    ) -> list[Row]:
        """Return documents in the order of their ids, beginning after id `after`."""
        conditions = {"mapping": mapping, "states": list(states) or None, "reason": reason}
        given = {name: value for name, value in conditions.items() if value is not None}
        parameters = {**given, "after": after, "limit": _NO_LIMIT if limit is None else limit}
        return [_row(*row) for row in await self._database.fetch_all(_ROWS[tuple(given)], parameters)]

    async def by_id(self, document_id: int) -> Row | None:
        """Return the document with this id, or None."""
        row = await self._database.fetch_one(_BY_ID, {"id": document_id})
        return None if row is None else _row(*row)

    async def by_path(self, mapping: str, path: bytes) -> list[Row]:
        """Return every version of a path, the newest first."""
        folder, name = parted(path)
        rows = await self._database.fetch_all(_BY_PATH, {"mapping": mapping, "folder": folder, "name": name})
        return [_row(*row) for row in rows]

    async def attempts(self, document_id: int) -> list[AttemptRow]:
        """Return every attempt for a document, the earliest first."""
        return [AttemptRow(*row) for row in await self._database.fetch_all(_ATTEMPTS, {"id": document_id})]


#: A LIMIT that both databases accept and no table exceeds.
_NO_LIMIT = 2**62


def _row(number: int, mapping: str, folder: bytes, name: bytes, *rest: Any) -> Row:
    return Row(number, mapping, joined(as_bytes(folder), as_bytes(name)), *rest)
