"""One load of transfers from lease to outcome. Read this first: everything else brings documents here."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import anyio

from docferry import logs, policy
from docferry.clock import Clock
from docferry.errors import LeaseLost, RemoteError, SourceError, SourceUnreadable, SourceVanished
from docferry.files.source import FileSource, Opener, open_together
from docferry.model import (
    Accounted,
    Finding,
    Found,
    Gate,
    Outcome,
    Parcel,
    Reason,
    Receipt,
    Source,
    State,
    Transfer,
)
from docferry.remotes.base import NOTHING, Remote
from docferry.settings import Upload
from docferry.store.documents import Place
from docferry.store.gates import Gates
from docferry.store.transfers import Transfers
from docferry.work.choose import company_of

log = logs.get("carry")

_NAMESPACE = uuid.UUID("6f1d2c0e-52b5-4f0b-9b5c-0f3f3a7d1e51")
#: A question without a clear answer is asked again for so many list lags (at least UNSURE_AT_LEAST), then held.
UNSURE_LAGS = 20
UNSURE_AT_LEAST = 600.0
#: An unreadable file is tried so often before a person is told.
READ_TRIES = 5
#: Documents of one question that are sent again at once.
AGAIN_AT_ONCE = 4


@dataclass(slots=True, eq=False)
class Load:
    """What one worker carries: transfers of one lane, all LEASED or all ASKING, and where their bytes lie."""

    transfers: list[Transfer]
    places: Mapping[int, Sequence[Place]]
    lane: str = field(init=False)
    company: str = field(init=False)  # the part of the lane that has limits of its own
    asks: bool = field(init=False)

    def __post_init__(self) -> None:
        first = self.transfers[0]
        self.lane, self.asks = first.target.lane, first.state is State.ASKING
        self.company = company_of(self.lane)


@dataclass(slots=True)
class Tally:
    """What was carried since the start, for `sync` and for the daemon's pulse."""

    uploaded: int = 0
    bytes_up: int = 0
    strikes: dict[str, int] = field(default_factory=dict)  # failures in a row, by lane
    unreached: dict[str, int] = field(default_factory=dict)  # how often in a row nobody was there, by remote


class Carrier:
    """Carries loads; the runner decides which and when."""

    def __init__(
        self,
        *,
        uploads: Mapping[str, Upload],
        remotes: Mapping[str, Remote],
        transfers: Transfers,
        gates: Gates,
        clock: Clock,
        backoff: policy.Backoff,
        give_up_after: float,
        look_again: Callable[[str, bytes], None],
        delivered: Callable[[str], Awaitable[None]],
        batch_seen: Callable[[str, bool | None], Awaitable[None]],
        trusts_batches: Callable[[str], bool],
        key_refused: Callable[[], None],
    ) -> None:
        self.uploads = uploads
        self.remotes = remotes
        self._openers = {upload.root: Opener(upload.root) for upload in uploads.values()}
        self._transfers = transfers
        self._gates = gates
        self._clock = clock
        self._backoff = backoff
        self._give_up_after = give_up_after
        self._look_again = look_again
        self._delivered = delivered
        self._batch_seen = batch_seen
        self._trusts_batches = trusts_batches
        self._key_refused = key_refused
        # Not for secrets: jitter only has to spread.
        self._dice = random.Random()  # noqa: S311 - jitter, not cryptography
        self.tally = Tally()
        self.closed: Mapping[str, Gate] = {}  # as the runner last saw them
        self.closings = 0  # how often a gate was closed here, or its closing written down
        self.closing: list[Gate] = []  # closed, and not written down yet

    async def carry(self, load: Load, taken: Callable[[], None] = lambda: None) -> None:
        """Bring a load to its outcomes; `taken` is told when the remote has it and only the books are left to be
        written. A lost lease is somebody else's transfer now: nothing is left to do."""
        try:
            if load.asks:
                await self._ask(load)
            else:
                await self._send(load.transfers, load.places, was=State.LEASED, taken=taken)
        except LeaseLost as lost:
            log.warning("lease_lost", str(lost), lane=load.lane)
            await self.hand_back(load)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.hand_back(load)
            raise

    async def hand_back(self, load: Load) -> None:
        """For what is still as it was claimed nothing was done: LEASED waits again, a question is still open."""
        back = State.DOUBTFUL if load.asks else State.WAITING
        for transfer in load.transfers:
            with contextlib.suppress(LeaseLost):  # it went on its way
                await self._settle(transfer, Outcome(back, transfer.reason, transfer.detail, costs_a_try=False))

    # -- sending ---------------------------------------------------------------------------------------------------

    async def _send(
        self,
        transfers: Sequence[Transfer],
        places: Mapping[int, Sequence[Place]],
        *,
        was: State,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        async with AsyncExitStack() as stack:
            chances = {each.id: self._chances(each, places.get(each.id, ())) for each in transfers}
            firsts = [source for (_, source), *_ in filter(None, chances.values())]
            for source in firsts:
                stack.callback(source.close)
            await open_together(firsts)
            parcels = []
            for transfer in transfers:
                if not transfer.sha256:
                    await self._look_afresh(transfer, places.get(transfer.id, ()), was)
                elif (opened := await self._open(stack, transfer, chances[transfer.id], was)) is not None:
                    parcels.append(Parcel(transfer, opened))
            if parcels:
                # The intent is committed before the first byte: whoever finds us dead knows what may be there.
                await self._transfers.mark_sending([parcel.transfer for parcel in parcels])
                await self._over_the_wire(parcels, places, taken)

    async def _over_the_wire(
        self, parcels: Sequence[Parcel], places: Mapping[int, Sequence[Place]], taken: Callable[[], None]
    ) -> None:
        remote = self.remotes[parcels[0].transfer.target.remote]
        sending = [replace(parcel.transfer, state=State.SENDING) for parcel in parcels]
        try:
            receipt = await remote.send(parcels, _key([parcel.transfer for parcel in parcels]))
        except SourceError as changed:
            await self._changed(sending, changed, places)
        except RemoteError as failure:
            await self._failed(sending, failure)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                for transfer in sending:
                    await self._settle(transfer, policy.after_silence("docferry stopped while this was being sent"))
            raise
        else:
            taken()
            await self._took(sending, receipt)

    def _chances(self, transfer: Transfer, places: Sequence[Place]) -> list[tuple[Place, FileSource]]:
        """The places that should have a transfer's bytes, each with its source."""
        md5 = self.remotes[transfer.target.remote].needs_md5
        return [
            (place, self._openers[upload.root].source(place.path, place.stamp, transfer.sha256, md5=md5))
            for place in places
            if (upload := self.uploads.get(place.mapping)) and upload.route(place.path).target == transfer.target
        ]

    async def _look_afresh(self, transfer: Transfer, places: Sequence[Place], was: State) -> None:
        """A rule held it and nothing was read; a person says try again: intake judges it anew."""
        for place in places:
            self._look_again(place.mapping, place.path)
        await self._settle(replace(transfer, state=was), Outcome(State.GONE, None, "looked at again"))

    async def _open(
        self, stack: AsyncExitStack, transfer: Transfer, chances: Sequence[tuple[Place, FileSource]], was: State
    ) -> Source | None:
        """The transfer's bytes, from any place that still has them; None when it was settled instead."""
        trouble: SourceError | None = None
        for place, source in chances:
            try:
                return await stack.enter_async_context(source)
            except SourceError as error:
                trouble = error
                self._look_again(place.mapping, place.path)
        await self._settle(replace(transfer, state=was), self._without_bytes(transfer, trouble, was))
        return None

    def _without_bytes(self, transfer: Transfer, trouble: SourceError | None, was: State) -> Outcome:
        if isinstance(trouble, SourceUnreadable):
            if transfer.tries + 1 >= READ_TRIES or was is State.ASKING:
                return Outcome(State.HELD, Reason.UNREADABLE, f"{trouble}; mend it, then `docferry retry`")
            pause = self._backoff.pause(transfer.tries + 1, self._dice.random())
            return Outcome(State.WAITING, None, str(trouble), delay=pause)
        why = "the file went away" if trouble is None or isinstance(trouble, SourceVanished) else str(trouble)
        return Outcome(State.GONE, None, why)

    async def _took(self, sending: Sequence[Transfer], receipt: Receipt) -> None:
        lane = sending[0].target.lane
        await self._worked(lane)
        if len(sending) > 1 and not self._trusts_batches(lane):
            detail = "the first batch of this connection is checked against the list"
            wait = self.remotes[sending[0].target.remote].find_after
            for transfer in sending:
                await self._settle(transfer, Outcome(State.DOUBTFUL, BATCH, detail, delay=wait))
            return
        await self._arrived(sending, receipt)

    async def _arrived(self, transfers: Sequence[Transfer], receipt: Receipt) -> None:
        outcome = Outcome(State.SENT, None, receipt.detail, receipt=receipt)
        await self._transfers.settle_all(transfers, outcome, was=transfers[0].state)
        for transfer in transfers:
            self.tally.uploaded += 1
            self.tally.bytes_up += transfer.size
            log.info(
                "sent",
                mapping=transfer.mapping,
                name=transfer.remote_name,
                to=transfer.target.lane,
                size=transfer.size,
                tries=transfer.tries + 1,
                proof=receipt.proof,
            )
        for mapping in dict.fromkeys(transfer.mapping for transfer in transfers):
            await self._delivered(mapping)

    async def _changed(
        self, sending: Sequence[Transfer], changed: SourceError, places: Mapping[int, Sequence[Place]]
    ) -> None:
        """The body was never completed, so nothing was stored. Alone it is gone; of a batch the rest is innocent."""
        for transfer in sending:
            if len(sending) > 1:
                outcome = Outcome(State.WAITING, None, str(changed))  # what failed once goes alone from then on
            elif isinstance(changed, SourceUnreadable) and transfer.tries + 1 < READ_TRIES:
                pause = self._backoff.pause(transfer.tries + 1, self._dice.random())
                outcome = Outcome(State.WAITING, None, str(changed), delay=pause)
            elif isinstance(changed, SourceUnreadable):
                outcome = Outcome(State.HELD, Reason.UNREADABLE, f"{changed}; mend it, then `docferry retry`")
            else:
                outcome = Outcome(State.GONE, None, str(changed))
            await self._settle(transfer, outcome)
            if outcome.state is State.GONE:
                for place in places.get(transfer.id, ()):
                    self._look_again(place.mapping, place.path)

    async def _failed(self, sending: Sequence[Transfer], failure: RemoteError) -> None:
        lane, remote = sending[0].target.lane, sending[0].target.remote
        strikes = self._strike(lane, remote, failure)
        outcomes = [
            policy.after_failure(failure, self._attempt(transfer, failure, strikes), self._backoff)
            for transfer in sending
        ]
        # First the gate, then the transfers: else one of them is claimed again before the gate is closed.
        if (gate := outcomes[0].gate) is not None:
            await self.close(gate)
        for transfer, each in zip(sending, outcomes, strict=True):
            outcome = each
            if outcome.state is State.HELD and len(sending) > 1:
                # One of them is to blame, and nobody says that nothing of the others was kept.
                outcome = Outcome(State.DOUBTFUL, None, f"with others: {failure}", fresh_key=True)
            outcome = self._with_limits(transfer, outcome)
            if failure.status is not None or failure.correlation_id is not None:
                outcome = replace(outcome, receipt=Receipt(failure.status, failure.correlation_id, proof="none"))
            log.warning(
                "not_sent" if outcome.state is not State.DOUBTFUL else "doubtful",
                str(failure),
                mapping=transfer.mapping,
                name=transfer.remote_name,
                becomes=outcome.state.value,
                delay=round(outcome.delay, 3),
            )
            await self._settle(transfer, outcome)

    def _with_limits(self, transfer: Transfer, outcome: Outcome) -> Outcome:
        """A doubt is asked about only after the list can have caught up; what failed for long enough is given up."""
        if outcome.state is State.DOUBTFUL:
            return replace(outcome, delay=max(outcome.delay, self.remotes[transfer.target.remote].find_after))
        # What the remote refused for everybody is no document's fault, however long it lasts.
        at_fault = outcome.gate is None or outcome.costs_a_try
        if outcome.state is State.WAITING and at_fault and self._expired(transfer):
            return self._given_up(outcome.detail)
        return outcome

    def _expired(self, transfer: Transfer) -> bool:
        return self._clock.now() - transfer.due_since > self._give_up_after

    def _given_up(self, detail: str | None) -> Outcome:
        tried = f"tried for {self._give_up_after / 86_400:.3g} days: {detail}; then `docferry retry`"
        return Outcome(State.HELD, Reason.GAVE_UP, tried, fresh_key=True)

    # -- asking ----------------------------------------------------------------------------------------------------

    async def _ask(self, load: Load) -> None:
        """What became of doubtful transfers of one company: the remote is asked before anything is sent again."""
        remote = self.remotes[load.transfers[0].target.remote]
        ripe = [t for t in load.transfers if self._age(t) >= remote.find_after]
        for transfer in load.transfers:
            if transfer not in ripe:
                wait = remote.find_after - self._age(transfer)
                await self._settle(
                    transfer,
                    Outcome(State.DOUBTFUL, transfer.reason, transfer.detail, delay=wait, costs_a_try=False),
                )
        if not ripe:
            return
        try:
            findings = await remote.find(ripe, *await self._counted(ripe, remote))
        except RemoteError as failure:
            await self._no_answer(ripe, failure)
        else:
            await self._worked(load.lane)
            await self._decide(ripe, findings, load.places, remote)

    async def _counted(self, asking: Sequence[Transfer], remote: Remote) -> tuple[Accounted, Accounted]:
        """What others explain at the remote: for certain, and perhaps."""
        target = asking[0].target
        if target.company_id is None:
            return NOTHING, NOTHING  # where a request may be repeated there is nothing to count
        since = remote.since(asking)
        fresh = self._clock.now() - remote.find_after
        certain = await self._transfers.accounted(
            target, names_since=since.names, digests_since=since.digests, until=fresh
        )
        perhaps = await self._transfers.unsettled(target, sent_since=fresh, apart_from=[t.id for t in asking])
        return certain, perhaps

    async def _no_answer(self, asking: Sequence[Transfer], failure: RemoteError) -> None:
        lane, remote = asking[0].target.lane, asking[0].target.remote
        strikes = self._strike(lane, remote, failure)
        gate: Gate | None = None
        settled: list[tuple[Transfer, Outcome]] = []
        for transfer in asking:
            attempt = self._attempt(transfer, failure, strikes)
            gate = policy.after_failure(failure, attempt, self._backoff).gate or gate
            delay = policy.pause_of(failure, attempt, self._backoff)
            outcome = Outcome(State.DOUBTFUL, transfer.reason, f"asking: {failure}", delay=delay)
            if self._expired(transfer):
                outcome = _undecidable(f"nobody could say whether it arrived: {failure}")
            settled.append((transfer, outcome))
        if gate is not None:
            await self.close(gate)
        for transfer, outcome in settled:
            await self._settle(transfer, outcome)

    async def _decide(
        self,
        asking: Sequence[Transfer],
        findings: Mapping[int, Finding],
        places: Mapping[int, Sequence[Place]],
        remote: Remote,
    ) -> None:
        again: list[Transfer] = []
        trial: list[bool] = []
        for transfer in asking:
            finding = findings[transfer.id]
            if finding.found is Found.THERE:
                trial += [True] if transfer.reason == BATCH else []
                await self._arrived([transfer], Receipt(None, detail=finding.detail, proof=finding.proof))
            elif finding.found is Found.ABSENT and self._age(transfer) >= remote.confirm_after:
                trial += [False] if transfer.reason == BATCH else []
                if self._expired(transfer):
                    await self._settle(transfer, self._given_up(finding.detail))
                else:
                    again.append(transfer)
            else:
                await self._settle(transfer, self._still_doubtful(transfer, finding, remote))
        if trial and not all(trial):
            await self._batch_seen(asking[0].target.lane, False)
        elif len(trial) > 1 and len(trial) == sum(transfer.reason == BATCH for transfer in asking):
            await self._batch_seen(asking[0].target.lane, True)
        await self._send_again(again, places)

    async def _send_again(self, absent: Sequence[Transfer], places: Mapping[int, Sequence[Place]]) -> None:
        """It surely is not there: the same request again, byte for byte, under the same key."""
        limit = anyio.CapacityLimiter(AGAIN_AT_ONCE)

        async def one(transfer: Transfer) -> None:
            try:
                async with limit:
                    await self._send([transfer], places, was=State.ASKING)
            except LeaseLost as lost:
                log.warning("lease_lost", str(lost), lane=transfer.target.lane)

        async with anyio.create_task_group() as group:
            for transfer in absent:
                group.start_soon(one, transfer)

    def _still_doubtful(self, transfer: Transfer, finding: Finding, remote: Remote) -> Outcome:
        age = self._age(transfer)
        if finding.found is Found.ABSENT:
            wait = remote.confirm_after - age
            return Outcome(State.DOUBTFUL, transfer.reason, finding.detail, delay=wait, costs_a_try=False)
        if age > max(UNSURE_LAGS * remote.find_after, UNSURE_AT_LEAST):
            return _undecidable(finding.detail)
        wait = max(remote.find_after, self._backoff.pause(transfer.tries + 1, self._dice.random()))
        return Outcome(State.DOUBTFUL, transfer.reason, finding.detail, delay=wait)

    def _age(self, transfer: Transfer) -> float:
        """Seconds since the last try that may have stored it."""
        return self._clock.now() - (transfer.last_sent or transfer.created)

    # -- both ------------------------------------------------------------------------------------------------------

    async def _settle(self, transfer: Transfer, outcome: Outcome) -> None:
        await self._transfers.settle(transfer, outcome, was=transfer.state)

    def _attempt(self, transfer: Transfer, failure: RemoteError, strikes: int) -> policy.Try:
        lane = transfer.target.lane
        gate = self.closed.get(failure.scope or lane) or self.closed.get(lane.split("/", 1)[0])
        return policy.Try(
            lane=lane,
            tries=transfer.tries + 1,
            now=self._clock.now(),
            dice=self._dice.random(),
            gate_tries=self._in_vain(gate),
            strikes=strikes,
            lane_strikes=self.tally.strikes.get(lane, 1),
        )

    def _in_vain(self, gate: Gate | None) -> int:
        """Probes of a gate that failed. What was under way when it closed is no probe."""
        if gate is None:
            return 0
        return gate.tries if gate.until <= self._clock.now() else gate.tries - 1

    def _strike(self, lane: str, remote: str, failure: RemoteError) -> int:
        """Count a failure; returns how often in a row the remote could not be reached at all."""
        strikes, unreached = self.tally.strikes, self.tally.unreached
        strikes[lane] = strikes.get(lane, 0) + 1
        unreached[remote] = unreached.get(remote, 0) + 1 if failure.kind == "unreachable" else 0
        return unreached[remote]

    async def _worked(self, lane: str) -> None:
        self.tally.strikes.pop(lane, None)
        self.tally.unreached.pop(lane.split("/", 1)[0], None)
        if self.closed:
            await self._gates.open(lane, self._clock.now())

    async def close(self, gate: Gate) -> None:
        """Close a gate for all, from this moment on."""
        known = self.closed.get(gate.key)
        if known is None or known.reason != gate.reason:
            log.error("gate_closed", gate.detail, gate=gate.key, reason=str(gate.reason))
        if gate.reason == Reason.KEY:
            self._key_refused()
        self.closed = {**self.closed, gate.key: gate}
        self.closings += 1
        self.closing.append(gate)
        try:
            await self._gates.close(gate)
        finally:
            self.closing.remove(gate)
            self.closings += 1  # whoever read the gates meanwhile may have missed it


#: The reason of a doubt that is only about whether a connection takes batches.
BATCH = "batch"


def _undecidable(detail: str) -> Outcome:
    advice = "look for it at the remote; `docferry retry` asks again"
    return Outcome(State.HELD, Reason.UNDECIDABLE, f"{detail}; {advice}")


def _key(transfers: Sequence[Transfer]) -> str:
    """The idempotency key of a request: the same documents in the same generation give the same key."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(f"{t.uid}.{t.generation}" for t in transfers)))
