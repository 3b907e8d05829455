"""Leases of shared mappings: the process that scans each of them."""

from __future__ import annotations

from sqlalchemy import text

from docferry.store.database import Database
from docferry.store.owners import DEAD_AFTER_S
from docferry.store.server_clock import SERVER_NOW


class ScanLeases:
    """The scan_lease table of a PostgreSQL queue. `owner` is this process."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    async def take(self, mapping: str) -> bool:
        """Return whether this process scans a mapping: it does already, or no living process does."""
        parameters = {"mapping": mapping, "owner": self._owner}
        return await self._database.write(lambda each: each.fetch_one(_TAKE, parameters)) is not None

    async def give_up(self, mapping: str) -> None:
        """Let another process scan a mapping."""
        await self._database.execute(_GIVE_UP, {"mapping": mapping, "owner": self._owner})


_TAKE = text(f"""
INSERT INTO scan_lease AS l (mapping, owner, since) VALUES (:mapping, :owner, {SERVER_NOW})
ON CONFLICT (mapping) DO UPDATE SET owner = excluded.owner,
  since = CASE WHEN l.owner = excluded.owner THEN l.since ELSE excluded.since END
WHERE l.owner = excluded.owner
  OR l.owner NOT IN (SELECT owner FROM process WHERE heartbeat > {SERVER_NOW} - {DEAD_AFTER_S})
RETURNING owner
""")  # noqa: S608 - our own terms
_GIVE_UP = text("DELETE FROM scan_lease WHERE mapping = :mapping AND owner = :owner")
