"""Transfers whose change the database refuses: each is held, and hinders no other."""

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

#: A transfer that cannot be held either is claimed again after so long, seconds.
SET_ASIDE_S = 60.0
#: After so many refusals without a success between them, the cause is not the document: none is held any more.
IN_A_ROW = 5

# Bytes may have been sent where the state or the first attempt says so: then the remote is asked before it is sent.
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
    """The transfers of one process that the database refused to change."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._set_aside: dict[int, float] = {}  # steady seconds of the next try, by transfer
        self._in_a_row = 0
        self._probe_at = 0.0  # steady seconds

    @property
    def set_aside(self) -> list[int]:
        """Return the transfers that are not claimed for now."""
        return list(self._set_aside)

    def claimable(self, room: int) -> int:
        """Return how many of `room` transfers may be claimed: while everything is refused, one in a minute."""
        if self._in_a_row < IN_A_ROW:
            return room
        return min(room, 1) if self._clock.steady() >= self._probe_at else 0

    def succeeded(self) -> None:
        """Note that a document was sent and recorded."""
        self._in_a_row = 0

    async def hold(self, transfer_id: int, state: State, owner: str, error: StatementRefused) -> None:
        """Hold a transfer in this state, whose change was refused. Where that is refused too, set it aside."""
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
        """Return transfers to the queue whose time has come; those that may have been sent are doubtful."""
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
    """Go on where the database refuses something that the process also knows in memory, or does again later."""
    try:
        yield
    except StatementRefused as error:
        log.error("not_recorded", f"{subject}: {error}")
