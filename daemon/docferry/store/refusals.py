"""Hold transfers that the database refuses to change, so that the others continue."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

from msgspec.structs import replace

from docferry import logs
from docferry.clock import Clock
from docferry.errors import StatementRefused
from docferry.model import State
from docferry.store.claims import Pick
from docferry.store.database import Database
from docferry.store.statement import Sql

log = logs.get("database")

#: The delay before a transfer that cannot even be held is claimed again, seconds.
SET_ASIDE_S = 60.0
#: Consecutive refusals in one lane after which the cause is not the document: no further transfer of it is held. After
#: refusals in so many lanes without a success, the cause is not the lane either.
IN_A_ROW = 5

#: Mapping and lane.
LaneKey = tuple[str, str]

# In other states bytes may have been sent. A retry looks up transfers with the reason "undecidable" or a first attempt.
_HOLD = Sql("""
UPDATE transfer SET state = 'held', detail = :detail, lease_owner = NULL, updated = :now,
  reason = CASE WHEN state IN ('waiting', 'leased') THEN 'metadata' ELSE 'undecidable' END
WHERE id = :id AND state = :state AND coalesce(lease_owner, '') = :owner
RETURNING mapping, remote_name
""")
_LANE = Sql("SELECT mapping, lane FROM transfer WHERE id = :id")
_RETURN = Sql("""
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
        self._in_a_row: dict[LaneKey, int] = {}  # refusals since the last success of the lane
        self._unproved: set[LaneKey] = set()  # lanes with a refusal since the last success of any lane
        self._probe_at: dict[LaneKey, float] = {}  # steady seconds

    @property
    def set_aside(self) -> list[int]:
        """Return the ids of the transfers that must not be claimed now."""
        return list(self._set_aside)

    @property
    def has_any(self) -> bool:
        """Return whether the latest change in a lane was refused."""
        return bool(self._in_a_row)

    def claimable(self, picks: Sequence[Pick]) -> Sequence[Pick]:
        """Return the picks that may be claimed: one transfer a minute of a lane whose changes are refused.

        While all lanes are refused, they take turns: one transfer a minute of all.
        """
        if not self.has_any:
            return picks
        steady = self._clock.steady()
        if self._refuses_all:
            if steady < max(self._probe_at.values()):
                return []
            return [replace(pick, most=1) for pick in sorted(picks, key=self._next_probe)[:1]]
        limited = {key for key, number in self._in_a_row.items() if number >= IN_A_ROW}
        due = [pick for pick in picks if _key(pick) not in limited or self._next_probe(pick) <= steady]
        return [replace(pick, most=1) if _key(pick) in limited else pick for pick in due]

    def succeeded(self, lanes: Collection[LaneKey]) -> None:
        """Record that documents of these lanes were sent and their states stored."""
        if lanes:
            self._unproved.clear()
        for key in lanes:
            self._in_a_row.pop(key, None)
            self._probe_at.pop(key, None)

    async def hold(self, transfer_id: int, state: State, owner: str, error: StatementRefused) -> None:
        """Hold a transfer in this state after its change was refused. Set it aside if that is refused, too."""
        key = await self._lane_of(transfer_id)
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
        self._unproved.add(key)
        self._probe_at[key] = again_at = self._clock.steady() + SET_ASIDE_S
        detail = f"{error}, then run `docferry retry`"
        parameters = {"id": transfer_id, "state": state, "owner": owner, "detail": detail, "now": self._clock.now()}
        found = None
        if self._in_a_row[key] < IN_A_ROW and not self._refuses_all:
            with contextlib.suppress(StatementRefused):
                found = await self._database.write(lambda transaction: transaction.fetch_one(_HOLD, parameters))
        if found is not None:
            log.error("held", detail, mapping=found[0], name=found[1], was=str(state))
            return
        log.error("set_aside", f"{error}; it is tried again every minute", transfer=transfer_id, was=str(state))
        self._set_aside[transfer_id] = again_at

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

    @property
    def _refuses_all(self) -> bool:
        return len(self._unproved) >= IN_A_ROW

    def _next_probe(self, pick: Pick) -> float:
        return self._probe_at.get(_key(pick), float("-inf"))

    async def _lane_of(self, transfer_id: int) -> LaneKey:
        with contextlib.suppress(StatementRefused):
            if (row := await self._database.fetch_one(_LANE, {"id": transfer_id})) is not None:
                return str(row[0]), str(row[1])
        return "", ""


def _key(pick: Pick) -> LaneKey:
    return pick.lane.mapping, pick.lane.lane


@contextlib.contextmanager
def refusal_logged(subject: str) -> Iterator[None]:
    """Log a refused statement and continue: the process also has its data in memory, or repeats it later."""
    try:
        yield
    except StatementRefused as error:
        log.error("not_recorded", f"{subject}: {error}")
