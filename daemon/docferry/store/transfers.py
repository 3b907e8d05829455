"""The queue: the only place that moves a transfer; what ends a try writes its attempt row in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from docferry.clock import Clock
from docferry.model import TRANSITIONS, Outcome, RemoteName, State, Target, Transfer
from docferry.store import clock_jumps
from docferry.store.accounts import LookupCounts
from docferry.store.connection import fetched
from docferry.store.database import Database
from docferry.store.transitions import TransitionWriter
from docferry.wakeups import Wakeups

_COLUMNS = (
    "id, uid, mapping, remote, company_id, connection_id, remote_name, sha256, size, state, lease, tries, generation, "
    "created, due_since, first_sent, last_sent, reason, detail, fingerprint, md5"
)

# The earliest due row of each (mapping, lane), by hops through the index: a million waiting rows cost nothing. A hop
# goes to the next lane, or else to the next mapping: past `(mapping, lane) > (…)` SQLite walks row by row.
_LANES = """
WITH RECURSIVE lane(mapping, lane, due) AS (
  SELECT * FROM (SELECT mapping, lane, next_attempt FROM transfer WHERE state = '{state}'
                 ORDER BY mapping, lane, next_attempt LIMIT 1)
  UNION ALL
  SELECT t.mapping, t.lane, t.next_attempt FROM lane l JOIN transfer t ON t.id = coalesce(
    (SELECT id FROM transfer WHERE state = '{state}' AND mapping = l.mapping AND lane > l.lane
     ORDER BY lane, next_attempt LIMIT 1),
    (SELECT id FROM transfer WHERE state = '{state}' AND mapping > l.mapping
     ORDER BY mapping, lane, next_attempt LIMIT 1))
)
SELECT mapping, lane, due FROM lane
"""
_WAITING_LANES = _LANES.format(state="waiting")
_DOUBTFUL_LANES = _LANES.format(state="doubtful")

_CLAIM = """
UPDATE transfer SET state = '{leased}', lease = lease + 1, owner = :owner, updated = :now
WHERE id IN (
  SELECT t.id FROM json_each(:picks) p, transfer t WHERE t.id IN (
    SELECT id FROM transfer WHERE state = '{due}' AND mapping = p.value ->> 0 AND lane = p.value ->> 1
    AND next_attempt <= :now ORDER BY next_attempt LIMIT :most)
  LIMIT :room)
RETURNING {columns}
"""
_CLAIM_WAITING = _CLAIM.format(leased="leased", due="waiting", columns=_COLUMNS)
_CLAIM_DOUBTFUL = _CLAIM.format(leased="asking", due="doubtful", columns=_COLUMNS)

#: After these the remote may have the document.
_MAY_BE_THERE = frozenset({State.SENT, State.DOUBTFUL})


@dataclass(frozen=True, slots=True)
class Lane:
    """What is due in one lane of one mapping: the earliest `due`, and whether it is a doubt."""

    mapping: str
    lane: str
    due: float
    doubtful: bool


@dataclass(frozen=True, slots=True)
class Pick:
    """How many transfers to claim from a lane."""

    lane: Lane
    most: int


class Transfers(LookupCounts):
    """The transfers of one process: `owner` names it in every lease."""

    def __init__(self, database: Database, clock: Clock, owner: str, wakeups: Wakeups | None = None) -> None:
        super().__init__(database, owner)
        self._clock = clock
        self._moves = TransitionWriter(database, wakeups or Wakeups())

    async def lanes(self) -> list[Lane]:
        """The lanes in which something waits or is in doubt, due or not yet."""
        return await self._database.read(_lanes)

    async def claim(self, picks: Sequence[Pick], room: int) -> list[Transfer]:
        """Lease what `picks` name and is due, at most `room`; WAITING becomes LEASED, DOUBTFUL becomes ASKING."""
        now = self._clock.now()

        def work(connection: Connection) -> list[Transfer]:
            claimed: list[Transfer] = []
            for doubtful, most in sorted({(pick.lane.doubtful, pick.most) for pick in picks}, reverse=True):
                if len(claimed) >= room:
                    break
                chosen = [(p.lane.mapping, p.lane.lane) for p in picks if (p.lane.doubtful, p.most) == (doubtful, most)]
                parameters = {
                    "owner": self.owner,
                    "now": now,
                    "picks": json.dumps(chosen),
                    "most": most,
                    "room": room - len(claimed),
                }
                rows = fetched(connection, _CLAIM_DOUBTFUL if doubtful else _CLAIM_WAITING, parameters)
                claimed += [_transfer(*row) for row in rows]
            return claimed

        return await self._database.write(work)

    async def mark_sending(self, transfers: Sequence[Transfer]) -> None:
        """Commit the intent before the first byte; LeaseLost when one of them is no longer ours."""
        now = self._clock.now()
        await self._moves.make([self._row(t, State.SENDING, now) for t in transfers])

    async def settle(self, transfer: Transfer, outcome: Outcome, *, was: State) -> None:
        """Record what became of a try. `was` is the state the transfer is in; LeaseLost when it is not, or not ours."""
        await self._moves.make([self._outcome_row(transfer, outcome, was)])

    async def settle_all(self, transfers: Sequence[Transfer], outcome: Outcome, *, was: State) -> None:
        """The same for what shared one request; LeaseLost names the first that was lost, the others are recorded."""
        await self._moves.make([self._outcome_row(transfer, outcome, was) for transfer in transfers])

    async def sweep(self, dead: Collection[str]) -> int:
        """Take back the leases of dead owners. LEASED waits again; what may be on the wire is in doubt."""
        if not dead:
            return 0
        parameters = {"dead": json.dumps(sorted(dead)), "now": self._clock.now()}

        def work(connection: Connection) -> int:
            swept = connection.execute(_SWEEP_ATTEMPTS, parameters)
            swept = connection.execute(_SWEEP, parameters)
            return len(swept.all())

        return await self._database.write(work)

    async def retry(
        self,
        *,
        ids: Collection[int] = (),
        mapping: str | None = None,
        reason: str | None = None,
        everything: bool = False,
    ) -> int:
        """Make held and waiting transfers due now: number of them. What may have been stored is asked for first."""
        if not (ids or mapping is not None or reason is not None or everything):
            return 0
        parameters = {"ids": json.dumps(sorted(ids)), "mapping": mapping, "reason": reason, "now": self._clock.now()}

        def work(connection: Connection) -> int:
            rows = connection.execute(_RETRY_BY_ID if ids else _RETRY, parameters)
            return len(rows.all())

        return await self._database.write(work)

    async def turned(self, drift: float) -> float:
        """The wall clock is `drift` ahead of the steady one: when that changed, every time that still matters moves
        with it, so that what was due in a minute is due in a minute. Seconds of the jump; the first process to notice
        does it for all."""
        now = self._clock.now()
        return await self._database.write(lambda connection: clock_jumps.turn(connection, drift, now))

    async def reset_future_rows(self) -> int:
        """Rows written later than now (the clock was set back while docferry was off) are due at once: how many."""
        now = self._clock.now()
        return await self._database.write(lambda connection: clock_jumps.call_back(connection, now))

    def _outcome_row(self, transfer: Transfer, outcome: Outcome, was: State) -> dict[str, Any]:
        now = self._clock.now()
        row = self._row(transfer, outcome.state, now, was=was) | {
            "reason": outcome.reason,
            "detail": outcome.detail,
            "next_attempt": now + outcome.delay,
            "tried": int(outcome.costs_a_try),
            "fresh_key": int(outcome.fresh_key),
            "untaken": 0,
            "first_sent": None,
            "last_sent": now if was is State.SENDING else None,
            "status": None,
            "correlation_id": None,
            "etag": None,
            "proof": None,
        }
        if was is State.SENDING and outcome.state not in _MAY_BE_THERE:
            # It was surely not taken: as far as the remote is concerned, this try never was.
            row |= {"untaken": 1, "first_sent": transfer.first_sent, "last_sent": transfer.last_sent}
        if outcome.receipt is not None:
            receipt = outcome.receipt
            row |= {
                "detail": outcome.detail or receipt.detail,
                "status": receipt.status,
                "correlation_id": receipt.correlation_id,
                "etag": receipt.etag,
                "proof": receipt.proof,
            }
        return row

    def _row(self, transfer: Transfer, state: State, now: float, *, was: State | None = None) -> dict[str, Any]:
        before = was or transfer.state
        if (before, state) not in TRANSITIONS:
            raise AssertionError(f"no such move: {before} to {state}")
        return {
            "id": transfer.id,
            "lease": transfer.lease,
            "owner": self.owner,
            "from": before,
            "state": state,
            "at": now,
        }


_SWEEP_ATTEMPTS = text("""
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail)
SELECT id, lease, updated, :now, CASE state WHEN 'leased' THEN 'waiting' ELSE 'doubtful' END,
  'docferry stopped before this try ended'
FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND owner IN (SELECT value FROM json_each(:dead))
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state, detail = excluded.detail
""")
# `last_sent` moves to now for what was being sent: nobody saw the try end, so the list must lag from here.
_SWEEP = text("""
UPDATE transfer SET
  state = CASE state WHEN 'leased' THEN 'waiting' ELSE 'doubtful' END,
  detail = CASE state WHEN 'leased' THEN detail ELSE 'docferry stopped while this was being sent' END,
  last_sent = CASE state WHEN 'sending' THEN :now ELSE last_sent END,
  next_attempt = :now, owner = NULL, updated = :now
WHERE state IN ('leased', 'sending', 'asking') AND owner IN (SELECT value FROM json_each(:dead))
RETURNING id
""")

_RETRIED = """
UPDATE transfer SET
  state = CASE WHEN state <> 'held' THEN state WHEN reason = 'undecidable' THEN 'doubtful' ELSE 'waiting' END,
  reason = CASE WHEN state = 'doubtful' THEN reason END,
  next_attempt = :now, due_since = :now, tries = 0, updated = :now
WHERE {which}
RETURNING id
"""
_RETRY_BY_ID = text(
    _RETRIED.format(
        which="state IN ('held', 'waiting', 'doubtful') AND id IN "
        "(SELECT transfer_id FROM document WHERE id IN (SELECT value FROM json_each(:ids)))"
    )
)
_RETRY = text(
    _RETRIED.format(
        which="state IN ('held', 'waiting', 'doubtful') AND (:mapping IS NULL OR mapping = :mapping) "
        "AND (:reason IS NULL OR reason = :reason)"
    )
)


def _lanes(connection: Connection) -> list[Lane]:
    doubtful = [Lane(mapping, lane, due, True) for mapping, lane, due in fetched(connection, _DOUBTFUL_LANES)]
    waiting = [Lane(mapping, lane, due, False) for mapping, lane, due in fetched(connection, _WAITING_LANES)]
    return doubtful + waiting


def _transfer(
    number: int,
    uid: str,
    mapping: str,
    remote: RemoteName,
    company_id: str | None,
    connection_id: str | None,
    remote_name: str,
    sha256: str | None,
    size: int,
    state: str,
    *rest: Any,
) -> Transfer:
    """A row of `_COLUMNS`."""
    target = Target(remote, company_id, connection_id)
    return Transfer(number, uid, mapping, target, remote_name, sha256 or "", size, State(state), *rest)
