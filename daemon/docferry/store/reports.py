"""What people and scripts ask of the queue: counts, rows and histories; reads only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, text

from docferry.model import joined, parted
from docferry.store.database import Database


@dataclass(frozen=True, slots=True)
class Row:
    """One document as `list` shows it; `path` is relative to the mapping's root, times are wall seconds."""

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


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try of a transfer."""

    lease: int
    began: float
    ended: float | None
    state: str
    detail: str | None
    status: int | None
    correlation_id: str | None
    etag: str | None
    proof: str | None


_ROW = """
SELECT d.id, d.mapping, d.folder, d.name, d.size, d.sha256, t.state, t.reason, t.detail,
  (SELECT count(*) FROM attempt a WHERE a.transfer_id = t.id) + (t.state = 'sending') AS attempts,
  t.remote_name, t.company_id, t.connection_id,
  CASE WHEN t.state IN ('waiting', 'doubtful') THEN t.next_attempt END AS next_attempt,
  d.first_seen, max(d.updated, t.updated) AS updated
FROM document d JOIN transfer t ON t.id = d.transfer_id
"""


class Reports:
    """Read-only questions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self) -> dict[str, dict[str, int]]:
        """Documents by mapping and state."""

        def work(connection: Connection) -> dict[str, dict[str, int]]:
            rows = connection.execute(
                text(
                    "SELECT d.mapping, t.state, count(*) FROM document d JOIN transfer t ON t.id = d.transfer_id "
                    "GROUP BY 1, 2"
                )
            )
            found: dict[str, dict[str, int]] = {}
            for mapping, state, count in rows.all():
                found.setdefault(mapping, {})[state] = count
            return found

        return await self._database.read(work)

    async def open_counts(self, mappings: Collection[str]) -> dict[str, int]:
        """Transfers that are not final, by state, over these mappings; quick however many are final."""

        def work(connection: Connection) -> dict[str, int]:
            rows = connection.execute(_OPEN, {"mappings": list(mappings)})
            return {row[0]: row[1] for row in rows.all()}

        return await self._database.read(work)

    async def arrivals(self) -> dict[str, int]:
        """Files that downloads brought, by mapping."""

        def work(connection: Connection) -> dict[str, int]:
            rows = connection.execute(
                text("SELECT mapping, count(*) FROM arrival WHERE landed AND path IS NOT NULL GROUP BY 1")
            )
            return {row[0]: row[1] for row in rows.all()}

        return await self._database.read(work)

    async def held_reasons(self) -> list[tuple[str, str, int]]:
        """Held documents by mapping and reason."""

        def work(connection: Connection) -> list[tuple[str, str, int]]:
            rows = connection.execute(
                text(
                    "SELECT d.mapping, t.reason, count(*) FROM transfer t "
                    "CROSS JOIN document d ON d.transfer_id = t.id "  # CROSS: the few that are held lead
                    "WHERE t.state = 'held' AND d.present GROUP BY 1, 2 ORDER BY 1, 2"
                )
            )
            return [(row[0], row[1], row[2]) for row in rows.all()]

        return await self._database.read(work)

    async def rows(
        self,
        *,
        mapping: str | None = None,
        states: Collection[str] = (),
        reason: str | None = None,
        limit: int | None = None,
        after: int = 0,
    ) -> list[Row]:
        """Documents in the order they were first seen, from the one after id `after`."""
        where, parameters = ["d.id > :after"], {"after": after, "most": -1 if limit is None else limit}
        query: dict[str, Any] = dict(parameters)
        if mapping is not None:
            where.append("d.mapping = :mapping")
            query["mapping"] = mapping
        if states:
            where.append("t.state IN :states")
            query["states"] = list(states)
        if reason is not None:
            where.append("t.reason = :reason")
            query["reason"] = reason
        statement = text(f"{_ROW} WHERE {' AND '.join(where)} ORDER BY d.id LIMIT :most")
        if states:
            statement = statement.bindparams(bindparam("states", expanding=True))

        def work(connection: Connection) -> list[Row]:
            return [_row(row) for row in connection.execute(statement, query).all()]

        return await self._database.read(work)

    async def by_id(self, document_id: int) -> Row | None:
        def work(connection: Connection) -> Row | None:
            row = connection.execute(text(f"{_ROW} WHERE d.id = :id"), {"id": document_id}).first()
            return None if row is None else _row(row)

        return await self._database.read(work)

    async def by_path(self, mapping: str, path: bytes) -> list[Row]:
        """Every version of a path, the newest first."""
        folder, name = parted(path)

        def work(connection: Connection) -> list[Row]:
            rows = connection.execute(
                text(f"{_ROW} WHERE d.mapping = :mapping AND d.folder = :folder AND d.name = :name ORDER BY d.id DESC"),
                {"mapping": mapping, "folder": folder, "name": name},
            )
            return [_row(row) for row in rows.all()]

        return await self._database.read(work)

    async def attempts(self, document_id: int) -> list[AttemptRow]:
        """Every try for a document, the first first."""

        def work(connection: Connection) -> list[AttemptRow]:
            rows = connection.execute(_ATTEMPTS, {"id": document_id})
            return [AttemptRow(*row) for row in rows.all()]

        return await self._database.read(work)


# One that has not ended is in its transfer alone.
_ATTEMPTS = text("""
SELECT a.lease, a.began, a.ended, a.state, a.detail, a.status, a.correlation_id, a.etag, a.proof
FROM document d JOIN attempt a ON a.transfer_id = d.transfer_id WHERE d.id = :id
UNION ALL
SELECT t.lease, t.last_sent, NULL, t.state, NULL, NULL, NULL, NULL, NULL
FROM document d JOIN transfer t ON t.id = d.transfer_id WHERE d.id = :id AND t.state = 'sending'
ORDER BY 1
""")

# Each part as one of the partial indexes has it, word for word: else SQLite reads every transfer there ever was.
_OPEN = text(
    " UNION ALL ".join(
        f"SELECT state, count(*) FROM transfer WHERE {states} AND mapping IN :mappings GROUP BY state"
        for states in (
            "state = 'waiting'",
            "state = 'doubtful'",
            "state = 'held'",
            "state IN ('leased', 'sending', 'asking')",
        )
    )
).bindparams(bindparam("mappings", expanding=True))


def _row(row: Any) -> Row:
    path = joined(row.folder, row.name)
    return Row(
        id=row.id,
        mapping=row.mapping,
        path=path,
        size=row.size,
        sha256=row.sha256,
        state=row.state,
        reason=row.reason,
        detail=row.detail,
        attempts=row.attempts,
        remote_name=row.remote_name,
        company_id=row.company_id,
        connection_id=row.connection_id,
        next_attempt=row.next_attempt,
        first_seen=row.first_seen,
        updated=row.updated,
    )
