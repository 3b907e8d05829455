"""Gates: a remote, company or connection that is closed for all until a time, kept over restarts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, text

from docferry.model import Gate
from docferry.store.connection import fetched
from docferry.store.database import Database

_ALL = "SELECT key, reason, detail, until, tries, since, lets_doubts_pass FROM gate"
_CLOSE = text("""
INSERT INTO gate (key, reason, detail, until, tries, since, lets_doubts_pass)
VALUES (:key, :reason, :detail, :until, :tries, :since, :lets_doubts_pass)
ON CONFLICT (key) DO UPDATE SET reason = excluded.reason, detail = excluded.detail,
  until = max(until, excluded.until), tries = excluded.tries,
  since = CASE WHEN reason = excluded.reason THEN since ELSE excluded.since END,
  lets_doubts_pass = excluded.lets_doubts_pass
""")


class Gates:
    """The gate table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, Gate]:
        """Every gate that is not open, by key; one whose `until` has passed lets one document probe."""

        def work(connection: Connection) -> dict[str, Gate]:
            rows = fetched(connection, _ALL)
            return {r[0]: Gate(r[0], r[1], r[2], r[3], r[4], r[5], bool(r[6])) for r in rows}

        return await self._database.read(work)

    async def close(self, gate: Gate) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                _CLOSE,
                {
                    "key": gate.key,
                    "reason": gate.reason,
                    "detail": gate.detail,
                    "until": gate.until,
                    "tries": gate.tries,
                    "since": gate.since,
                    "lets_doubts_pass": gate.lets_doubts_pass,
                },
            )

        await self._database.write(work)

    async def open(self, until: Mapping[str, float]) -> None:
        """Open gates that are closed until no later than they were read to be, by key."""

        def work(connection: Connection) -> None:
            connection.execute(
                text("DELETE FROM gate WHERE key = :key AND until <= :until"),
                [{"key": key, "until": each} for key, each in until.items()],
            )

        await self._database.write(work)

    async def limit(self, latest: float) -> None:
        """Open no gate later than `latest`, wall seconds: an older release believed every time of a remote."""

        def work(connection: Connection) -> None:
            connection.execute(text("UPDATE gate SET until = :latest WHERE until > :latest"), {"latest": latest})

        await self._database.write(work)

    async def let_probe(self, reasons: Collection[str], now: float) -> None:
        """Let one document try each gate closed for these reasons now: perhaps somebody saw to it."""

        def work(connection: Connection) -> None:
            connection.execute(
                text("UPDATE gate SET until = :now WHERE reason IN (SELECT value FROM json_each(:reasons))"),
                {"now": now, "reasons": json.dumps(sorted(reasons))},
            )

        await self._database.write(work)

    async def open_all(self) -> None:
        """A person said: try again."""

        def work(connection: Connection) -> None:
            connection.execute(text("DELETE FROM gate"))

        await self._database.write(work)
