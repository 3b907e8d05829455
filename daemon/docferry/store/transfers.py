"""Access the queue. Only this module and `transitions` change the state of a planned transfer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from docferry.clock import Clock
from docferry.errors import StatementRefused
from docferry.model import TRANSITIONS, Outcome, Reason, State, Transfer
from docferry.store import claims, clock_jumps
from docferry.store.claims import ClaimTerms, Lane, Pick
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.lookup_counts import LookupCounts
from docferry.store.receipts import unix_user
from docferry.store.refusals import Refusals
from docferry.store.statement import Sql
from docferry.store.transitions import TransitionWriter
from docferry.wakeups import Wakeups

_LEASED_BY = Sql("""
SELECT id, state, lease_owner FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND lease_owner = ANY(:dead)
""")
_RECLAIM_ATTEMPTS = Sql("""
INSERT INTO attempt (transfer_id, lease, began, ended, state, detail)
SELECT id, lease, updated, :now, CASE state WHEN 'leased' THEN 'waiting' ELSE 'doubtful' END,
  'docferry stopped before this try ended'
FROM transfer WHERE state IN ('leased', 'sending', 'asking') AND lease_owner = ANY(:dead) AND id = ANY(:ids)
ON CONFLICT (transfer_id, lease) DO UPDATE SET ended = excluded.ended, state = excluded.state, detail = excluded.detail
""")
# No process observed the end of the send, so `list_lag` counts from now.
_RECLAIM = Sql("""
UPDATE transfer SET
  state = CASE state WHEN 'leased' THEN 'waiting' ELSE 'doubtful' END,
  detail = CASE state WHEN 'leased' THEN detail ELSE 'docferry stopped while this was being sent' END,
  last_sent = CASE state WHEN 'sending' THEN :now ELSE last_sent END,
  next_attempt = :now, lease_owner = NULL, updated = :now
WHERE state IN ('leased', 'sending', 'asking') AND lease_owner = ANY(:dead) AND id = ANY(:ids)
""")

_RETRY_ALL = """
UPDATE transfer SET
  state = CASE WHEN state <> 'held' THEN state
    WHEN reason = 'undecidable' OR first_sent IS NOT NULL THEN 'doubtful' ELSE 'waiting' END,
  reason = CASE WHEN state = 'doubtful' THEN reason END,
  next_attempt = :now, due_since = :now, tries = 0, updated = :now
WHERE state IN ('held', 'waiting', 'doubtful') AND {condition}
"""
_BY_ID = "id IN (SELECT transfer_id FROM document WHERE document.id = ANY(:ids))"
_BY_MAPPING = (
    "(CAST(:mapping AS TEXT) IS NULL OR mapping = :mapping) AND (CAST(:reason AS TEXT) IS NULL OR reason = :reason)"
)
_NO_APPROVAL = " AND (state <> 'held' OR reason IS DISTINCT FROM 'approval')"
_TO_RELEASE = "SELECT id FROM transfer WHERE state = 'held' AND reason = 'approval' AND {condition}"
_RETRY_STATEMENTS = {
    condition: (
        Sql(_TO_RELEASE.format(condition=condition)),
        Sql(_RETRY_ALL.format(condition=condition)),
        Sql(_RETRY_ALL.format(condition=condition + _NO_APPROVAL)),
    )
    for condition in (_BY_ID, _BY_MAPPING)
}
# The receipt of a release is the approval, and remains when the text of receipts is erased.
_APPROVED = Sql("SELECT transfer_id FROM receipt WHERE kind = 'released' AND transfer_id = ANY(:ids)")

#: States after which the remote may have the document.
_MAY_BE_THERE = frozenset({State.SENT, State.DOUBTFUL})


class Transfers(LookupCounts):
    """Access the transfer table for one process. `owner` names that process in every lease."""

    def __init__(self, database: Database, clock: Clock, owner: str, wakeups: Wakeups | None = None) -> None:
        super().__init__(database, owner)
        self._clock = clock
        self._refusals = Refusals(database, clock)
        self._transitions = TransitionWriter(database, wakeups or Wakeups(), self._refusals)

    async def lanes(self) -> list[Lane]:
        """Return the lanes that have waiting or doubtful transfers, due or not yet."""
        owner = self.owner
        return await self._database.read(lambda transaction: claims.lanes(transaction, owner))

    async def claim(self, picks: Sequence[Pick], room: int, ask_for: Collection[str] = ()) -> list[Transfer]:
        """Lease due transfers of these lanes, at most `room`. WAITING becomes LEASED, DOUBTFUL becomes ASKING.

        A process that has one of the companies `ask_for` soon releases it to this one. A transfer is held if the
        database refuses its claim.
        """
        picks = self._refusals.claimable(picks)
        try:
            return await self._claim(picks, room, ask_for)
        except StatementRefused:
            claimed: list[Transfer] = []
            for pick in picks:
                claimed += await self._claim_singly(replace(pick, most=min(pick.most, room - len(claimed))))
            return claimed

    async def _claim(self, picks: Sequence[Pick], room: int, ask_for: Collection[str] = ()) -> list[Transfer]:
        terms = self._terms()
        return await self._database.write(lambda transaction: claims.claim(transaction, terms, picks, room, ask_for))

    def _terms(self) -> ClaimTerms:
        return ClaimTerms(self.owner, self._clock.now(), self._refusals.set_aside)

    async def _claim_singly(self, pick: Pick) -> list[Transfer]:
        """Claim the transfers of a lane one by one, and hold those whose claim is refused."""
        terms, one = self._terms(), [replace(pick, most=1)]
        chosen = await self._database.read(lambda transaction: claims.candidates(transaction, terms, pick))
        claimed: list[Transfer] = []
        for transfer_id in chosen:
            others = replace(terms, set_aside=[*terms.set_aside, *(each for each in chosen if each != transfer_id)])
            try:
                claimed += await self._database.write(partial(claims.claim, terms=others, picks=one, room=1))
            except StatementRefused as error:
                await self.hold(transfer_id, State.DOUBTFUL if pick.lane.doubtful else State.WAITING, "", error)
        return claimed

    async def hold(self, transfer_id: int, state: State, owner: str, error: StatementRefused) -> None:
        """Hold a transfer in this state, which `owner` leased ("": nobody): the database refuses a row of it."""
        await self._refusals.hold(transfer_id, state, owner, error)

    async def retry_refused(self) -> None:
        """Return transfers to the queue that could not even be held a minute ago."""
        await self._refusals.retry_due(self.owner)

    async def mark_sending(self, transfers: Sequence[Transfer]) -> None:
        """Commit SENDING before the first byte is sent. Raises LeaseLost if a lease was lost."""
        now = self._clock.now()
        await self._transitions.make([self._row(t, State.SENDING, now) for t in transfers])

    async def settle(self, transfer: Transfer, outcome: Outcome, *, was: State) -> None:
        """Record the outcome of an attempt. `was` is the transfer's present state. Raises LeaseLost if it differs."""
        await self._transitions.make([self._outcome_row(transfer, outcome, was)])

    async def settle_all(self, transfers: Sequence[Transfer], outcome: Outcome, *, was: State) -> None:
        """Record one outcome for a batch. LeaseLost names the first lost lease; the others are recorded."""
        await self._transitions.make([self._outcome_row(transfer, outcome, was) for transfer in transfers])

    async def reclaim(self, dead_owners: Collection[str]) -> int:
        """Reclaim the leases of dead owners, and return their number.

        LEASED becomes WAITING. SENDING and ASKING become DOUBTFUL.
        """
        parameters = {"dead": sorted(dead_owners), "now": self._clock.now()}
        if not dead_owners:
            return 0
        # Read by the writer: a reader's connection may lead to a standby.
        leased = await self._database.write(lambda transaction: transaction.fetch_all(_LEASED_BY, parameters))

        def work(transaction: Transaction, some: Sequence[Any]) -> int:
            chosen = {**parameters, "ids": [row[0] for row in some]}
            transaction.execute(_RECLAIM_ATTEMPTS, chosen)
            return transaction.execute(_RECLAIM, chosen)

        reclaimed, refused = await self._database.write_each(leased, work) if leased else ([], [])
        for (transfer_id, state, owner), error in refused:
            await self.hold(transfer_id, State(state), owner, error)
        return sum(reclaimed)

    async def retry(
        self,
        *,
        ids: Collection[int] = (),
        mapping: str | None = None,
        reason: str | None = None,
        everything: bool = False,
        approve: bool | None = None,
        actor: str | None = None,
    ) -> int:
        """Make held and waiting transfers due now, and return their number.

        Transfers that may have been sent become DOUBTFUL.

        `approve` includes transfers held for approval: by default only with ids, or with the reason `approval`. The
        receipts name `actor` as the releasing person: by default the user of this process.
        """
        if not (ids or mapping is not None or reason is not None or everything):
            return 0
        now = self._clock.now()
        parameters = {"ids": sorted(ids)} if ids else {"mapping": mapping, "reason": reason}
        to_release, retry, retry_others = _RETRY_STATEMENTS[_BY_ID if ids else _BY_MAPPING]
        approves = bool(ids) or reason == Reason.APPROVAL if approve is None else approve

        def work(transaction: Transaction) -> int:
            released = sorted(row[0] for row in transaction.fetch_all(to_release, parameters)) if approves else []
            number = transaction.execute(retry if approves else retry_others, parameters | {"now": now})
            self._database.receipts.append_released(transaction, released, now, actor or unix_user())
            return number

        return await self._database.write(work)

    async def approved(self, transfer_ids: Collection[int]) -> set[int]:
        """Return the given transfers that a person released from approval."""
        return {row[0] for row in await self._database.fetch_all(_APPROVED, {"ids": sorted(transfer_ids)})}

    async def shift_times(self, drift: float) -> float:
        """Shift stored times after a jump of the wall clock, so that a remaining delay keeps its length.

        `drift` is the wall clock minus the steady clock, seconds. Returns the jump in seconds. The first process that
        notices a jump shifts the times for all.
        """
        now = self._clock.now()
        return await self._database.write(lambda transaction: clock_jumps.shift_times(transaction, drift, now))

    async def reset_future_rows(self) -> int:
        """Make transfers with a time in the future due, and return their number.

        Such times exist if the clock was set back while docferry was not running.
        """
        now = self._clock.now()
        return await self._database.write(lambda transaction: clock_jumps.reset_future_rows(transaction, now))

    def _outcome_row(self, transfer: Transfer, outcome: Outcome, was: State) -> dict[str, Any]:
        now = self._clock.now()
        row = self._row(transfer, outcome.state, now, was=was) | {
            "reason": outcome.reason,
            "detail": outcome.detail,
            "next_attempt": now + outcome.delay,
            "tried": int(outcome.costs_a_try),
            "fresh_key": int(outcome.fresh_key),
            "not_taken": False,
            "first_sent": None,
            "last_sent": now if was is State.SENDING else None,
            "status": None,
            "correlation_id": None,
            "etag": None,
            "proof": None,
        }
        if was is State.SENDING and outcome.state not in _MAY_BE_THERE:
            # The remote certainly did not store it, so the earlier times of sending are valid again.
            row |= {"not_taken": True, "first_sent": transfer.first_sent, "last_sent": transfer.last_sent}
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
            raise AssertionError(f"no such transition: {before} to {state}")
        return {
            "id": transfer.id,
            "mapping": transfer.mapping,
            "lane": transfer.target.lane,
            "lease": transfer.lease,
            "lease_owner": self.owner,
            "unknown_commits": self._database.unknown_commits,
            "from": before,
            "state": state,
            "at": now,
        }
