"""Make documents doubtful after an older copy of the database was restored: it lacks later uploads."""

from __future__ import annotations

import json
from typing import Final

from msgspec.structs import replace

from docferry.clock import Clock
from docferry.model import Reason, State
from docferry.store.connection import Transaction
from docferry.store.cursors import Cursors
from docferry.store.database import Database
from docferry.store.plan_table import Planned
from docferry.store.statement import Sql

#: The reason of a doubt about documents that a lost queue may have sent.
REASON: Final = "old_copy"
#: The earliest time at which an adopted document may have been sent, wall seconds: any time.
ANY_TIME: Final = 1.0
#: The cursor with the time until which a lost queue may have sent a file, JSON.
KEY: Final = "receipts/old_copy"
_DETAIL: Final = "the database is an older copy: the remote is asked whether this was sent since"


def adopted(plan: Planned, before: float) -> Planned:
    """Make a plan doubtful after a loss of the database if its file is older than `before`, wall seconds.

    The document may have been sent at any time: a restored or copied file has today's time.
    """
    if plan.seen_file.stamp.ctime_ns / 1e9 >= before:
        return plan
    if plan.state is State.HELD and plan.reason != Reason.APPROVAL:
        return replace(plan, sent_since=ANY_TIME)  # doubtful after a retry by a person
    return replace(plan, state=State.DOUBTFUL, reason=REASON, detail=None, sent_since=ANY_TIME)


class OldCopy:
    """Store the doubts about an older copy across restarts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._cursors = Cursors(database, clock)
        self._clock = clock

    async def doubt(self) -> int:
        """Make all documents doubtful that may have been sent since the copy was made, and return their number.

        Leases on them are lost. Held documents become doubtful after a retry by a person. Files that are new to this
        database also become doubtful if they exist by now.
        """
        now = self._clock.now()
        parameters = {"now": now, "reason": REASON, "detail": _DETAIL}

        def work(transaction: Transaction) -> int:
            transaction.execute(DOUBT_HELD, {"now": now})
            return transaction.execute(_DOUBT, parameters)

        await self._cursors.set(KEY, json.dumps(now))
        return await self._database.write(work)

    async def since(self) -> float:
        """Return the time until which a lost queue may have sent a file, wall seconds, or 0.0."""
        mark = await self._cursors.get(KEY)
        return 0.0 if mark is None else float(json.loads(mark))

    async def any_left(self) -> bool:
        """Return whether a doubt of this kind is unresolved."""
        return await self._database.fetch_one(_LEFT, {"reason": REASON}) is not None


_DOUBT = Sql("""
UPDATE transfer SET state = 'doubtful', reason = :reason, detail = :detail, lease_owner = NULL, lease = lease + 1,
  first_sent = coalesce(first_sent, created), last_sent = :now, next_attempt = :now, updated = :now
WHERE state IN ('waiting', 'leased')
""")
#: Held documents become doubtful after a retry by a person.
DOUBT_HELD = Sql("""
UPDATE transfer SET first_sent = coalesce(first_sent, created), last_sent = :now
WHERE state = 'held' AND sha256 IS NOT NULL
""")
_LEFT = Sql("""
SELECT 1 FROM transfer WHERE state = 'doubtful' AND reason = :reason
UNION ALL SELECT 1 FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND reason = :reason LIMIT 1
""")
