"""The queue's books, for whoever asks about doubts: who holds what, what was sent, and what may yet show."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection, text

from docferry.model import KnownUploads, Target
from docferry.store.database import Database


class LookupCounts:
    """What can be read of the queue; `owner` is the process that reads it."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self.owner = owner

    async def owners(self) -> set[str]:
        """Whoever holds a lease now."""

        def work(connection: Connection) -> set[str]:
            rows = connection.execute(
                text("SELECT DISTINCT owner FROM transfer WHERE state IN ('leased', 'sending', 'asking')")
            )
            return {row[0] for row in rows}

        return await self._database.read(work)

    async def asking_elsewhere(self) -> set[str]:
        """Lanes in which another process is asking about doubts now: two counts of one list would both be right."""

        def work(connection: Connection) -> set[str]:
            rows = connection.execute(
                text(
                    "SELECT DISTINCT lane FROM transfer WHERE state IN ('leased', 'sending', 'asking') "
                    "AND state = 'asking' AND owner <> :owner"
                ),
                {"owner": self.owner},
            )
            return {row[0] for row in rows}

        return await self._database.read(work)

    async def any_doubt(self, lane: str, reason: str) -> bool:
        """Whether anything of a lane is in doubt for this reason, or being asked about."""

        def work(connection: Connection) -> bool:
            row = connection.execute(
                text(
                    "SELECT 1 FROM transfer WHERE state = 'doubtful' AND lane = :lane AND reason = :reason "
                    "UNION ALL SELECT 1 FROM transfer WHERE state IN ('leased', 'sending', 'asking') "
                    "AND state = 'asking' AND lane = :lane AND reason = :reason LIMIT 1"
                ),
                {"lane": lane, "reason": reason},
            )
            return row.first() is not None

        return await self._database.read(work)

    async def accounted(
        self, target: Target, *, names_since: float, digests_since: float, until: float = 1e12
    ) -> KnownUploads:
        """What SENT transfers of a company explain: names since one time, digests since another, wall seconds."""
        parameters = {"remote": target.remote, "company": target.company_id, "names": names_since, "until": until}

        def work(connection: Connection) -> KnownUploads:
            names = connection.execute(
                text(
                    "SELECT remote_name, count(*) FROM transfer WHERE state = 'sent' AND remote = :remote "
                    "AND company_id = :company AND last_sent >= :names AND last_sent < :until GROUP BY 1"
                ),
                parameters,
            )
            digests = connection.execute(
                text(
                    "SELECT sha256, count(*) FROM transfer WHERE state = 'sent' AND remote = :remote "
                    "AND company_id = :company AND last_sent >= :digests AND last_sent < :until GROUP BY 1"
                ),
                parameters | {"digests": digests_since},
            )
            return KnownUploads({r[0]: r[1] for r in names}, {r[0]: r[1] for r in digests})

        return await self._database.read(work)

    async def unsettled(self, target: Target, *, sent_since: float, apart_from: Collection[int]) -> KnownUploads:
        """What may or may not show at the remote yet: just sent, on the wire, or in doubt, apart from some."""
        parameters = {
            "remote": target.remote,
            "company": target.company_id,
            "since": sent_since,
            "apart": json.dumps(sorted(apart_from)),
        }

        def work(connection: Connection) -> KnownUploads:
            rows = connection.execute(_UNSETTLED, parameters).all()
            names, digests = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
            return KnownUploads(dict(names), dict(digests))

        return await self._database.read(work)


_UNSETTLED = text("""
SELECT remote_name, sha256 FROM transfer WHERE state = 'sent' AND company_id = :company AND last_sent >= :since
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state = 'doubtful' AND company_id = :company
  AND id NOT IN (SELECT value FROM json_each(:apart))
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state = 'held' AND reason = 'undecidable' AND company_id = :company
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND state <> 'leased'
  AND company_id = :company AND id NOT IN (SELECT value FROM json_each(:apart))
""")
