"""Answer the resolver's queries: leases, doubts, and the uploads that explain a remote's list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from docferry.model import KnownUploads, Target
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.statement import Sql

# The condition on IN_FLIGHT states repeats the condition of the partial index `transfer_in_flight`; otherwise SQLite
# would read every transfer.
_LEASE_OWNERS = Sql("SELECT DISTINCT lease_owner FROM transfer WHERE state IN ('leased', 'sending', 'asking')")
_ASKING_ELSEWHERE = Sql("""
SELECT DISTINCT lane FROM transfer WHERE state IN ('leased', 'sending', 'asking')
  AND state = 'asking' AND lease_owner <> :owner
""")
_ANY_DOUBT = Sql("""
SELECT 1 FROM transfer WHERE state = 'doubtful' AND lane = :lane AND reason = :reason
UNION ALL
SELECT 1 FROM transfer WHERE state IN ('leased', 'sending', 'asking')
  AND state = 'asking' AND lane = :lane AND reason = :reason LIMIT 1
""")
_SENT_NAMES = Sql("""
SELECT remote_name, count(*) FROM transfer WHERE state = 'sent' AND remote = :remote
  AND company_id = :company AND last_sent >= :since AND last_sent < :until GROUP BY 1
""")
_SENT_DIGESTS = Sql("""
SELECT sha256, count(*) FROM transfer WHERE state = 'sent' AND remote = :remote
  AND company_id = :company AND last_sent >= :since AND last_sent < :until GROUP BY 1
""")
_UNSETTLED = Sql("""
SELECT remote_name, sha256 FROM transfer WHERE state = 'sent' AND company_id = :company AND last_sent >= :since
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state = 'doubtful' AND company_id = :company AND id <> ALL(:apart)
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state = 'held' AND reason = 'undecidable' AND company_id = :company
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND state <> 'leased'
  AND company_id = :company AND id <> ALL(:apart)
""")


class LookupCounts:
    """Read the queue for lookups. `owner` names the reading process in leases."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._process = owner

    @property
    def owner(self) -> str:
        """Return the name of this process in leases.

        The name changes after a commit with an unknown result, because the changed leases are unknown. Leases under the
        earlier name are then reclaimed like those of a dead process.
        """
        unknown = self._database.unknown_commits
        return f"{self._process}#{unknown}" if unknown else self._process

    async def lease_owners(self) -> set[str]:
        """Return the owners of all leases."""
        return {owner for (owner,) in await self._database.fetch_all(_LEASE_OWNERS)}

    async def asking_elsewhere(self) -> set[str]:
        """Return the lanes in a lookup of another process. Two processes would count one list twice."""
        return {lane for (lane,) in await self._database.fetch_all(_ASKING_ELSEWHERE, {"owner": self.owner})}

    async def any_doubt(self, lane: str, reason: str) -> bool:
        """Return whether the lane has a DOUBTFUL or ASKING transfer with this reason."""
        return await self._database.fetch_one(_ANY_DOUBT, {"lane": lane, "reason": reason}) is not None

    async def accounted(
        self, target: Target, *, names_since: float, digests_since: float, until: float = 1e12
    ) -> KnownUploads:
        """Count names and digests of a company's SENT transfers since the given times, wall seconds."""
        parameters = {"remote": target.remote, "company": target.company_id, "until": until}

        def work(transaction: Transaction) -> KnownUploads:
            names = transaction.fetch_all(_SENT_NAMES, parameters | {"since": names_since})
            digests = transaction.fetch_all(_SENT_DIGESTS, parameters | {"since": digests_since})
            return KnownUploads(dict(names), dict(digests))

        return await self._database.read(work)

    async def unsettled(self, target: Target, *, sent_since: float, apart_from: Collection[int]) -> KnownUploads:
        """Count uploads of a company that the remote may or may not list yet, except the given transfers.

        Such uploads were sent after `sent_since`, are being sent, or are doubtful.
        """
        parameters = {"company": target.company_id, "since": sent_since, "apart": sorted(apart_from)}
        rows = await self._database.fetch_all(_UNSETTLED, parameters)
        return KnownUploads(dict(Counter(name for name, _ in rows)), dict(Counter(digest for _, digest in rows)))
