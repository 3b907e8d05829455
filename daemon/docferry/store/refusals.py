"""Hold transfers that the database refuses to change, so that the others continue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import text

from docferry import logs
from docferry.clock import Clock
from docferry.errors import StatementRefused
from docferry.model import State
from docferry.store.database import Database

log = logs.get("database")

#: The delay before a transfer that cannot even be held is claimed again, seconds.
SET_ASIDE_S = 60.0
#: Consecutive refusals after which the cause is not the document: no further transfer is held.
IN_A_ROW = 5

# In other states bytes may have been sent. A retry looks up transfers with the reason "undecidable" or a first attempt.
_HOLD = text("""
UPDATE transfer SET state = 'held', detail = :detail, lease_owner = NULL, updated = :now,
  reason = CASE WHEN state IN ('waiting', 'leased') THEN 'metadata' ELSE 'undecidable' END
WHERE id = :id AND state = :state AND coalesce(lease_owner, '') = :owner
RETURNING mapping, remote_name
""")
_RETURN = text("""
UPDATE transfer SET state = CASE state WHEN 'leased' THEN 'waiting' ELSE 'doubtful' END, lease_owner = NULL,
  last_sent = CASE state WHEN 'sending' THEN :now ELSE last_sent END, next_attempt = :now, updated = :now
WHERE id = :id AND state IN ('leased', 'sending', 'asking') AND lease_owner = :owner
""")


class Refusals:
    """Hold refused transfers, and set aside those of this process that cannot be held."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._set_aside: dict[int, float] = {}  # steady seconds of the next try, by transfer
        self._in_a_row = 0
        self._probe_at = 0.0  # steady seconds

    @property
    def set_aside(self) -> list[int]:
        """Return the ids of the transfers that must not be claimed now."""
        return list(self._set_aside)

    def claimable(self, room: int) -> int:
        """Return the number of transfers to claim, at most `room`: one a minute while all changes are refused."""
        if self._in_a_row < IN_A_ROW:
            return room
        return min(room, 1) if self._clock.steady() >= self._probe_at else 0

    def succeeded(self) -> None:
        """Record that a document was sent and its state stored."""
        self._in_a_row = 0

    async def hold(self, transfer_id: int, state: State, owner: str, error: StatementRefused) -> None:
        """Hold a transfer in this state after its change was refused. Set it aside if that is refused, too."""
        self._in_a_row += 1
        self._probe_at = self._clock.steady() + SET_ASIDE_S
        detail = f"{error}, then run `docferry retry`"
        parameters = {"id": transfer_id, "state": state, "owner": owner, "detail": detail, "now": self._clock.now()}
        found = None
        if self._in_a_row < IN_A_ROW:
            with contextlib.suppress(StatementRefused):
                found = await self._database.write(lambda transaction: transaction.fetch_one(_HOLD, parameters))
        if found is not None:
            log.error("held", detail, mapping=found[0], name=found[1], was=str(state))
            return
        log.error("set_aside", f"{error}; it is tried again every minute", transfer=transfer_id, was=str(state))
        self._set_aside[transfer_id] = self._probe_at

    async def retry_due(self, owner: str) -> None:
        """Return due set-aside transfers to the queue: as doubtful if they may have been sent, else as waiting."""
        steady = self._clock.steady()
        for transfer_id in [each for each, at in self._set_aside.items() if at <= steady]:
            parameters = {"id": transfer_id, "owner": owner, "now": self._clock.now()}
            try:
                await self._database.execute(_RETURN, parameters)
                del self._set_aside[transfer_id]
            except StatementRefused:
                self._set_aside[transfer_id] = steady + SET_ASIDE_S


@contextlib.contextmanager
def refusal_logged(subject: str) -> Iterator[None]:
    """Log a refused statement and continue: the process also has its data in memory, or repeats it later."""
    try:
        yield
    except StatementRefused as error:
        log.error("not_recorded", f"{subject}: {error}")
