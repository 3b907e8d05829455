"""Store progress across restarts, by key."""

from __future__ import annotations

from docferry.clock import Clock
from docferry.store.database import Database
from docferry.store.statement import Sql

GET = Sql("SELECT value FROM cursor WHERE key = :key")
_GET_ALL = Sql("SELECT key, value FROM cursor WHERE key >= :first AND key < :last")
SET = Sql("""
INSERT INTO cursor (key, value, updated) VALUES (:key, :value, :now)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated = excluded.updated
""")


class Cursors:
    """Access the cursor table."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, key: str) -> str | None:
        """Return the value of `key`, or None."""
        row = await self._database.fetch_one(GET, {"key": key})
        return None if row is None else str(row[0])

    async def get_all(self, prefix: str) -> dict[str, str]:
        """Return all values by key, for keys with this prefix."""
        return dict(await self._database.fetch_all(_GET_ALL, {"first": prefix, "last": prefix + "\U0010ffff"}))

    async def set(self, key: str, value: str) -> None:
        """Store `value` under `key`."""
        await self._database.execute(SET, {"key": key, "value": value, "now": self._clock.now()})
