"""Lease shared mappings: one process scans each of them."""

from __future__ import annotations

from docferry.store.database import Database
from docferry.store.owners import DEAD_AFTER_S
from docferry.store.server_clock import SERVER_NOW
from docferry.store.statement import Sql


class ScanLeases:
    """Access the scan_lease table of a PostgreSQL queue. `owner` is this process."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    async def take(self, mapping: str) -> bool:
        """Take or keep the right to scan a mapping. Return False if another running process has it."""
        parameters = {"mapping": mapping, "owner": self._owner}
        return await self._database.write(lambda each: each.fetch_one(_TAKE, parameters)) is not None

    async def give_up(self, mapping: str) -> None:
        """Release a mapping, so that another process may scan it."""
        await self._database.execute(_GIVE_UP, {"mapping": mapping, "owner": self._owner})


_TAKE = Sql(f"""
INSERT INTO scan_lease AS l (mapping, owner, since) VALUES (:mapping, :owner, {SERVER_NOW})
ON CONFLICT (mapping) DO UPDATE SET owner = excluded.owner,
  since = CASE WHEN l.owner = excluded.owner THEN l.since ELSE excluded.since END
WHERE l.owner = excluded.owner
  OR l.owner NOT IN (SELECT owner FROM process WHERE heartbeat > {SERVER_NOW} - {DEAD_AFTER_S})
RETURNING owner
""")  # noqa: S608 - constant terms
_GIVE_UP = Sql("DELETE FROM scan_lease WHERE mapping = :mapping AND owner = :owner")
