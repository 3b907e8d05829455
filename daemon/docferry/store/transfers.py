"""The queue: the only place that moves a transfer, each move with its attempt row in one transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from sqlalchemy import Connection, text

from docferry.clock import Clock
from docferry.errors import LeaseLost
from docferry.model import MOVES, Accounted, Outcome, State, Target, Transfer
from docferry.store.database import Database

_COLUMNS = (
    "id, uid, mapping, remote, company_id, connection_id, remote_name, sha256, size, state, lease, tries, generation, "
    "created, due_since, first_sent, last_sent, reason, detail"
)

# The earliest due row of each (mapping, lane), by hops through the index: a million waiting rows cost nothing.
_LANES = """
WITH RECURSIVE lane(mapping, lane, due) AS (
  SELECT * FROM (SELECT mapping, lane, next_attempt FROM transfer WHERE state = '{state}'
                 ORDER BY mapping, lane, next_attempt LIMIT 1)
  UNION ALL
  SELECT t.mapping, t.lane, t.next_attempt FROM lane l JOIN transfer t ON t.id = (
    SELECT id FROM transfer WHERE state = '{state}' AND (mapping, lane) > (l.mapping, l.lane)
    ORDER BY mapping, lane, next_attempt LIMIT 1)
)
SELECT mapping, lane, due FROM lane
"""
_WAITING_LANES = text(_LANES.format(state="waiting"))
_DOUBTFUL_LANES = text(_LANES.format(state="doubtful"))

_CLAIM = """
UPDATE transfer SET state = '{leased}', lease = lease + 1, owner = :owner, updated = :now
WHERE id IN (
  SELECT t.id FROM json_each(:picks) p, transfer t WHERE t.id IN (
    SELECT id FROM transfer WHERE state = '{due}' AND mapping = p.value ->> 0 AND lane = p.value ->> 1
    AND next_attempt <= :now ORDER BY next_attempt LIMIT :most)
  LIMIT :room)
RETURNING {columns}
"""
_CLAIM_WAITING = text(_CLAIM.format(leased="leased", due="waiting", columns=_COLUMNS))
_CLAIM_DOUBTFUL = text(_CLAIM.format(leased="asking", due="doubtful", columns=_COLUMNS))

# All gathered moves in one statement. A row whose lease or state is another is not returned: its lease is lost.
_MOVE = """
UPDATE transfer SET
  state = m.value ->> 'state',
  reason = m.value ->> 'reason',
  detail = m.value ->> 'detail',
  next_attempt = m.value ->> 'next_attempt',
  tries = tries + (m.value ->> 'tried'),
  generation = generation + (m.value ->> 'fresh_key'),
  first_sent = CASE WHEN m.value ->> 'untaken' THEN m.value ->> 'first_sent'
    ELSE coalesce(first_sent, m.value ->> 'sending') END,
  last_sent = CASE WHEN m.value ->> 'untaken' THEN m.value ->> 'last_sent'
    ELSE coalesce(m.value ->> 'last_sent', last_sent) END,
  owner = CASE WHEN m.value ->> 'state' IN ('leased', 'sending', 'asking') THEN owner END,
  updated = m.value ->> 'at'
FROM json_each(:moves) m
WHERE transfer.id = m.value ->> 'id' AND transfer.lease = m.value ->> 'lease' AND transfer.owner = m.value ->> 'owner'
  AND transfer.state = m.value ->> 'from'
RETURNING transfer.id, transfer.lease
"""
_ATTEMPT = """
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail, status, correlation_id, etag, proof)
SELECT value ->> 'id', value ->> 'lease', value ->> 'at', value ->> 'ended', value ->> 'state', value ->> 'detail',
  value ->> 'status', value ->> 'correlation_id', value ->> 'etag', value ->> 'proof'
FROM json_each(:moves) WHERE true
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state,
  detail = excluded.detail, status = excluded.status, correlation_id = excluded.correlation_id, etag = excluded.etag,
  proof = excluded.proof
"""

_ABSENT = text(
    "UPDATE document SET present = 0 WHERE present AND transfer_id IN (SELECT value FROM json_each(:gone)) "
    "RETURNING mapping, folder, name"
)


#: A jump of the wall clock smaller than this is drift, seconds.
JUMP = 30.0
#: A jump is noticed within this: what was written so close to the new time was written by it, seconds.
NOTICED = 10.0
#: What was sent longer ago is counted for no doubt any more, seconds.
_COUNTED = 7 * 86_400.0

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


class Transfers:
    """The transfers of one process: `owner` names it in every lease."""

    def __init__(
        self, database: Database, clock: Clock, owner: str, orphaned: Callable[[str, bytes], None] = lambda *_: None
    ) -> None:
        self._database = database
        self._orphaned = orphaned  # is told of every mapping and path whose transfer went: to be looked at again
        self._clock = clock
        self.owner = owner
        self._batch: _Batch | None = None

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
                rows = connection.execute(
                    _CLAIM_DOUBTFUL if doubtful else _CLAIM_WAITING,
                    {
                        "owner": self.owner,
                        "now": now,
                        "picks": json.dumps(chosen),
                        "most": most,
                        "room": room - len(claimed),
                    },
                )
                claimed += [_transfer(row) for row in rows.all()]
            return claimed

        return await self._database.write(work)

    async def mark_sending(self, transfers: Sequence[Transfer]) -> None:
        """Commit the intent before the first byte; LeaseLost when one of them is no longer ours."""
        now = self._clock.now()
        await self._move(
            [self._row(t, State.SENDING, now) | {"sending": now, "last_sent": now, "ended": None} for t in transfers]
        )

    async def settle(self, transfer: Transfer, outcome: Outcome, *, was: State) -> None:
        """Record what became of a try. `was` is the state the transfer is in; LeaseLost when it is not, or not ours."""
        now = self._clock.now()
        row = self._row(transfer, outcome.state, now, was=was) | {
            "reason": outcome.reason,
            "detail": outcome.detail,
            "next_attempt": now + outcome.delay,
            "tried": int(outcome.costs_a_try),
            "fresh_key": int(outcome.fresh_key),
            "last_sent": now if was is State.SENDING else None,
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
        await self._move([row])

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

    async def accounted(
        self, target: Target, *, names_since: float, digests_since: float, until: float = 1e12
    ) -> Accounted:
        """What SENT transfers of a company explain: names since one time, digests since another, wall seconds."""
        parameters = {"remote": target.remote, "company": target.company_id, "names": names_since, "until": until}

        def work(connection: Connection) -> Accounted:
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
            return Accounted({r[0]: r[1] for r in names}, {r[0]: r[1] for r in digests})

        return await self._database.read(work)

    async def unsettled(self, target: Target, *, sent_since: float, apart_from: Collection[int]) -> Accounted:
        """What may or may not show at the remote yet: just sent, on the wire, or in doubt, apart from some."""
        parameters = {
            "remote": target.remote,
            "company": target.company_id,
            "since": sent_since,
            "apart": json.dumps(sorted(apart_from)),
        }

        def work(connection: Connection) -> Accounted:
            rows = connection.execute(_UNSETTLED, parameters).all()
            names, digests = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
            return Accounted(dict(names), dict(digests))

        return await self._database.read(work)

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
        subject, now = f"clock/{_boot()}", self._clock.now()

        def work(connection: Connection) -> float:
            known = connection.execute(_DRIFT, {"subject": subject}).scalar_one_or_none()
            jump = 0.0 if known is None else drift - float(known)
            if known is not None and abs(jump) < JUMP:
                return 0.0
            connection.execute(_NOTE_DRIFT, {"subject": subject, "drift": repr(drift), "now": now})
            if jump:
                recent = now - jump - _COUNTED
                parameters = {"jump": jump, "recent": recent, "now": now, "noticed": NOTICED}
                for statement in _TURN:
                    connection.execute(statement, parameters)
            return jump

        return await self._database.write(work)

    async def from_the_future(self) -> int:
        """Rows written later than now (the clock was set back while docferry was off) are due at once."""
        now = self._clock.now()

        def work(connection: Connection) -> int:
            rows = connection.execute(
                text(
                    "UPDATE transfer SET next_attempt = :now, updated = :now "
                    "WHERE state IN ('waiting', 'doubtful') AND updated > :now + 60 RETURNING id"
                ),
                {"now": now},
            )
            connection.execute(text("DELETE FROM gate WHERE since > :now + 60"), {"now": now})
            return len(rows.all())

        return await self._database.write(work)

    def _row(self, transfer: Transfer, state: State, now: float, *, was: State | None = None) -> dict[str, Any]:
        before = was or transfer.state
        if (before, state) not in MOVES:
            raise AssertionError(f"no such move: {before} to {state}")
        return {
            "id": transfer.id,
            "lease": transfer.lease,
            "owner": self.owner,
            "from": before,
            "state": state,
            "at": now,
            "ended": now,
            "next_attempt": now,
            "tried": 0,
            "fresh_key": 0,
        }

    async def _move(self, rows: list[dict[str, Any]]) -> None:
        """Join the moves that wait for the writer; whoever comes first takes them there."""
        batch, leads = self._batch, False
        if batch is None or batch.sealed:
            batch = self._batch = _Batch()
            leads = True
        batch.rows += rows
        if leads:
            await batch.commit(self._database)
            for mapping, path in batch.orphans:
                self._orphaned(mapping, path)
        else:
            with anyio.CancelScope(shield=True):
                await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        lost = [row["id"] for row in rows if (row["id"], row["lease"]) not in batch.moved]
        if lost:
            raise LeaseLost(f"transfer {lost[0]} is no longer ours")


class _Batch:
    """Moves that go into one commit, and what became of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sealed = False
        self.orphans: list[tuple[str, bytes]] = []
        self.moved: frozenset[tuple[int, int]] = frozenset()
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def commit(self, database: Database) -> None:
        try:
            await database.write(self._work, self._seal)
        except Exception as error:  # noqa: BLE001 - raised again by everyone whose move was in it
            self.error = error
        finally:
            self.done.set()

    def _seal(self) -> None:
        self.sealed = True

    def _work(self, connection: Connection) -> None:
        self.moved, self.orphans = _apply(connection, self.rows)


_UNSETTLED = text("""
SELECT remote_name, sha256 FROM transfer WHERE state = 'sent' AND company_id = :company AND last_sent >= :since
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state = 'doubtful' AND company_id = :company
  AND id NOT IN (SELECT value FROM json_each(:apart))
UNION ALL
SELECT remote_name, sha256 FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND state <> 'leased'
  AND company_id = :company AND id NOT IN (SELECT value FROM json_each(:apart))
""")
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


_DRIFT = text("SELECT mark FROM bookmark WHERE subject = :subject")
_NOTE_DRIFT = text(
    "INSERT INTO bookmark (subject, mark, updated) VALUES (:subject, :drift, :now) "
    "ON CONFLICT (subject) DO UPDATE SET mark = excluded.mark, updated = excluded.updated"
)
_TURN = (
    text(
        "UPDATE transfer SET next_attempt = next_attempt + :jump, due_since = due_since + :jump, "
        "updated = updated + :jump, first_sent = first_sent + :jump, last_sent = last_sent + :jump "
        "WHERE state NOT IN ('sent', 'gone') AND abs(updated - :now) > :noticed"
    ),
    # Written since the jump, but begun before it.
    text(
        "UPDATE transfer SET first_sent = min(first_sent, :now), due_since = min(due_since, :now) "
        "WHERE state NOT IN ('sent', 'gone') AND (first_sent > :now OR due_since > :now)"
    ),
    text(
        "UPDATE transfer SET last_sent = last_sent + :jump "
        "WHERE state = 'sent' AND last_sent > :recent AND abs(last_sent - :now) > :noticed"
    ),
    text("UPDATE gate SET until = until + :jump, since = since + :jump WHERE abs(since - :now) > :noticed"),
)


def _lanes(connection: Connection) -> list[Lane]:
    doubtful = [Lane(row[0], row[1], row[2], True) for row in connection.execute(_DOUBTFUL_LANES).all()]
    waiting = [Lane(row[0], row[1], row[2], False) for row in connection.execute(_WAITING_LANES).all()]
    return doubtful + waiting


def _apply(
    connection: Connection, rows: list[dict[str, Any]]
) -> tuple[frozenset[tuple[int, int]], list[tuple[str, bytes]]]:
    """The moves that were made, and the paths that have no transfer any more."""
    moves = json.dumps(rows)
    moved = frozenset((row[0], row[1]) for row in connection.exec_driver_sql(_MOVE, {"moves": moves}))
    done = rows if len(moved) == len(rows) else [row for row in rows if (row["id"], row["lease"]) in moved]
    if done:
        connection.exec_driver_sql(_ATTEMPT, {"moves": moves if done is rows else json.dumps(done)})
    gone = [row["id"] for row in done if row["state"] == State.GONE]
    if gone:
        # A path whose transfer is gone is unknown again: the next look plans what lies there now.
        found = connection.execute(_ABSENT, {"gone": json.dumps(gone)})
        return moved, [(row[0], row[1] + b"/" + row[2] if row[1] else row[2]) for row in found.all()]
    return moved, []


def _transfer(row: Any) -> Transfer:
    return Transfer(
        id=row.id,
        uid=row.uid,
        mapping=row.mapping,
        target=Target(row.remote, row.company_id, row.connection_id),
        remote_name=row.remote_name,
        sha256=row.sha256 or "",
        size=row.size,
        state=State(row.state),
        lease=row.lease,
        tries=row.tries,
        generation=row.generation,
        created=row.created,
        due_since=row.due_since,
        first_sent=row.first_sent,
        last_sent=row.last_sent,
        reason=row.reason,
        detail=row.detail,
    )


def _boot() -> str:
    """The steady clock starts anew with the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
