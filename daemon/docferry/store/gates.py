"""Store gates, the circuit breakers of remotes, companies and connections, across restarts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import asdict

from docferry.model import Gate
from docferry.store.database import Database
from docferry.store.statement import Sql

_ALL = Sql("SELECT key, reason, detail, until, tries, since, lets_doubts_pass FROM gate")
_CLOSE = Sql("""
INSERT INTO gate (key, reason, detail, until, tries, since, lets_doubts_pass)
VALUES (:key, :reason, :detail, :until, :tries, :since, :lets_doubts_pass)
ON CONFLICT (key) DO UPDATE SET reason = excluded.reason, detail = excluded.detail,
  until = CASE WHEN gate.until > excluded.until THEN gate.until ELSE excluded.until END, tries = excluded.tries,
  since = CASE WHEN gate.reason = excluded.reason THEN gate.since ELSE excluded.since END,
  lets_doubts_pass = excluded.lets_doubts_pass
""")
_OPEN = Sql("DELETE FROM gate WHERE key = :key AND until <= :until")
_LIMIT = Sql("UPDATE gate SET until = :latest WHERE until > :latest")
_LET_PROBE = Sql("UPDATE gate SET until = :now WHERE reason = ANY(:reasons)")
_OPEN_ONE = Sql("DELETE FROM gate WHERE key = :key")
_OPEN_ALL = Sql("DELETE FROM gate")


class Gates:
    """Access the gate table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, Gate]:
        """Return every closed gate by its key. After its `until`, a gate lets one document probe."""
        rows = await self._database.fetch_all(_ALL)
        return {row[0]: Gate(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6])) for row in rows}

    async def close(self, gate: Gate) -> None:
        """Close a gate, or extend a closed one."""
        await self._database.execute(_CLOSE, asdict(gate))

    async def open(self, until: Mapping[str, float]) -> None:
        """Open gates by their keys. A gate stays closed if its present time is later than the given one."""
        await self._database.execute_many(_OPEN, [{"key": key, "until": each} for key, each in until.items()])

    async def limit(self, latest: float) -> None:
        """Limit all gates to `latest`, wall seconds, because an older release accepted any time of a remote."""
        await self._database.execute(_LIMIT, {"latest": latest})

    async def let_probe(self, reasons: Collection[str], now: float) -> None:
        """Let one document probe each gate that is closed for one of these reasons."""
        await self._database.execute(_LET_PROBE, {"now": now, "reasons": sorted(reasons)})

    async def open_one(self, key: str) -> bool:
        """Open a gate because a person asked for it; return whether it was closed."""
        return await self._database.execute(_OPEN_ONE, {"key": key}) > 0

    async def open_all(self) -> None:
        """Open every gate, because a person asked for it."""
        await self._database.execute(_OPEN_ALL)
