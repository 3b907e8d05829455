"""Process one batch from its lease to the outcomes of its transfers. Start reading here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
from msgspec import Struct
from msgspec.structs import replace

from docferry import logs, policy
from docferry.errors import LeaseLost, NotNow, RemoteError, SourceError, StatementRefused
from docferry.files.source import FileSource
from docferry.model import Outcome, Receipt, State, Transfer, UploadItem
from docferry.remotes.protocol import ALWAYS_PERMITTED, SendPermit
from docferry.store.owners import Owners
from docferry.store.refusals import SET_ASIDE_S
from docferry.telemetry import Delivery
from docferry.upload.batch import Batch, Places, idempotency_key
from docferry.upload.batch_trials import BATCH_DOUBT, BatchTrials
from docferry.upload.context import UploadContext
from docferry.upload.gates import Activity, GateManager
from docferry.upload.resolver import Resolution, Resolver, still_doubtful
from docferry.upload.sources import SourceOpener

log = logs.get("uploader")


class Counters(Struct):
    """Count the uploads since the start."""

    uploaded: int = 0  # documents
    bytes_up: int = 0


class Uploader:
    """Process batches; the scheduler selects and starts them."""

    def __init__(
        self,
        context: UploadContext,
        gate_manager: GateManager,
        batch_trials: BatchTrials,
        sources: SourceOpener | None = None,
    ) -> None:
        self._context = context
        self._transfers = context.queue.transfers
        self._gate_manager = gate_manager
        self._batch_trials = batch_trials
        self._sources = sources or SourceOpener(context, gate_manager)
        self._resolver = Resolver(context, gate_manager)
        self.counters = Counters()

    async def process(self, batch: Batch, permit: SendPermit = ALWAYS_PERMITTED) -> None:
        """Process a batch until all outcomes are recorded; send only while `permit` allows it.

        A transfer with a lost lease belongs to another process and is skipped.
        """
        try:
            if batch.is_lookup:
                await (self._resolve(batch) if await permit.acquire() else self.release(batch))
            else:
                await self._send(batch.transfers, batch.places, was=State.LEASED, permit=permit)
                if len(batch.transfers) > 1 and self._batch_trials.is_on_trial(batch.lane):
                    await self._batch_trials.record_decided(batch.lane)
        except LeaseLost as lost:
            log.warning("lease_lost", str(lost), lane=batch.lane)
            await self.release(batch)
            await self._leave_in_doubt(batch)
        except StatementRefused:  # of a row that concerns no document; it was logged
            await self.release(batch, SET_ASIDE_S)
            await self._leave_in_doubt(batch)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.release(batch)
            raise

    async def release(self, batch: Batch, delay: float = 0.0) -> None:
        """Return transfers unchanged since their claim: LEASED to WAITING, ASKING to DOUBTFUL.

        They are due again after `delay` seconds.
        """
        back = State.DOUBTFUL if batch.is_lookup else State.WAITING
        for transfer in batch.transfers:
            with contextlib.suppress(LeaseLost):  # already has an outcome
                await self._settle(transfer, replace(_unchanged(transfer, back), delay=delay), transfer.state)
        if not batch.is_lookup:
            await self._batch_trials.record_unsent(batch.transfers)

    async def _leave_in_doubt(self, batch: Batch) -> None:
        """Settle the transfers that shared a request with a lost lease.

        Their outcome was not recorded, and no other process reclaims them while this one runs.
        """
        outcome = Outcome(State.DOUBTFUL, None, "another process took over a document of the same request")
        for transfer in batch.transfers:
            with contextlib.suppress(LeaseLost):  # already has an outcome
                await self._settle(transfer, outcome, State.SENDING)

    async def _settle(self, transfer: Transfer, outcome: Outcome, was: State) -> None:
        await self._transfers.settle(transfer, outcome, was=was)

    # -- sending -------------------------------------------------------------------------------------------------

    async def _send(
        self, transfers: Sequence[Transfer], places: Places, *, was: State, permit: SendPermit = ALWAYS_PERMITTED
    ) -> None:
        async with AsyncExitStack() as stack:
            opened = await self._sources.open(stack, transfers, places)
            for transfer, outcome in opened.outcomes:
                await self._settle(transfer, outcome, was)
            if not opened.sources:
                return
            sending = [transfer for transfer, _ in opened.sources]
            # Commit the intent before the first byte: after a kill, the next process knows which documents may be
            # stored.
            await self._transfers.mark_sending(sending)
            back = State.DOUBTFUL if was is State.ASKING else State.WAITING
            receipt = await self._transmit(opened.sources, places, permit, back)
            # No await between a receipt and its commit: a stop in between would lose the receipt.
            if receipt is not None:
                for _, source in opened.sources:
                    source.discard()
                permit.release()
                await self._accepted(sending, receipt)

    async def _transmit(
        self, sources: Sequence[tuple[Transfer, FileSource]], places: Places, permit: SendPermit, back: State
    ) -> Receipt | None:
        """Send one request. Return None without a receipt, after settling its transfers.

        Transfers whose permit is refused return to the state `back`.
        """
        sending = [transfer for transfer, _ in sources]
        remote = self._context.remotes[sending[0].target.remote]
        try:
            if await permit.acquire():
                items = [UploadItem(transfer, source) for transfer, source in sources]
                with self._context.telemetry.sending(remote.name, items) as counted:
                    return await remote.send(counted, idempotency_key(sending), permit)
            await self._not_sent(sending, back)
        except NotNow:
            await self._not_sent(sending, back)
        except SourceError as change:
            for transfer in sending:
                outcome = self._sources.after_change(transfer, change, places, shared=len(sending) > 1)
                await self._end_attempt(transfer, outcome)
        except RemoteError as failure:
            await self._failed(sending, failure)
        except anyio.get_cancelled_exc_class():
            begun = any(source.is_wanted for _, source in sources)
            with anyio.CancelScope(shield=True):
                for transfer in sending:
                    with contextlib.suppress(LeaseLost):  # the others still belong to this process
                        await self._settle(transfer, policy.after_stop(begun=begun), State.SENDING)
            raise
        return None

    async def _not_sent(self, sending: Sequence[Transfer], back: State) -> None:
        """Return transfers whose permit was refused before the first byte."""
        for transfer in sending:
            with contextlib.suppress(LeaseLost):  # the others still belong to this process
                await self._settle(transfer, _unchanged(transfer, back), State.SENDING)
        await self._batch_trials.record_unsent(sending)

    async def _accepted(self, sending: Sequence[Transfer], receipt: Receipt) -> None:
        """Record a receipt.

        The first batch of a connection becomes doubtful instead, because the list must prove it.
        """
        lane = sending[0].target.lane
        await self._gate_manager.record_success(lane, Activity.SEND)
        if len(sending) > 1 and not self._batch_trials.is_trusted(lane):
            detail = "the list is checked for the first batch of this connection"
            doubt = Outcome(State.DOUBTFUL, BATCH_DOUBT, detail, delay=self._context.remote_of(lane).lookup_after)
            await self._transfers.settle_all(sending, doubt, was=State.SENDING)
            for transfer in sending:
                self._context.telemetry.attempt_ended(transfer.target.remote, State.DOUBTFUL)
            return
        await self._record_sent(sending, Outcome(State.SENT, None, receipt.detail, receipt=receipt), State.SENDING)

    async def _record_sent(self, transfers: Sequence[Transfer], outcome: Outcome, was: State) -> None:
        lost: LeaseLost | None = None
        try:
            await self._transfers.settle_all(transfers, outcome, was=was)
        except LeaseLost as error:
            lost = error
        for transfer in transfers if lost is None else ():
            proof = outcome.receipt.proof if outcome.receipt else ""
            self._count_sent(transfer, proof, was)
            log.info(
                "sent",
                mapping=transfer.mapping,
                name=transfer.remote_name,
                to=transfer.target.lane,
                size=transfer.size,
                tries=transfer.tries + 1,
                proof=proof,
            )
        self._context.wakeups.documents_sent(transfers)
        if lost is not None:
            raise lost

    async def _failed(self, sending: Sequence[Transfer], failure: RemoteError) -> None:
        attempts = self._gate_manager.record_failure(sending, failure, Activity.SEND)
        backoff = self._gate_manager.retry.backoff
        outcomes = [policy.after_failure(failure, attempt, backoff) for attempt in attempts]
        # The gate first: otherwise a transfer is claimed again before its gate closes.
        if (gate := outcomes[0].gate) is not None:
            await self._gate_manager.close(gate)
        for transfer, each in zip(sending, outcomes, strict=True):
            outcome = each
            if outcome.state is State.HELD and len(sending) > 1:
                # One document of the batch is the cause, and the response does not show whether the others were stored.
                outcome = Outcome(State.DOUBTFUL, None, f"in a batch: {failure}", fresh_key=True)
            outcome = self._with_limits(transfer, outcome, failure)
            if failure.status is not None or failure.correlation_id is not None:
                outcome = replace(outcome, receipt=Receipt(failure.status, failure.correlation_id, proof="none"))
            log.warning(
                "send_doubtful" if outcome.state is State.DOUBTFUL else "send_failed",
                str(failure),
                mapping=transfer.mapping,
                name=transfer.remote_name,
                becomes=outcome.state.value,
                delay=round(outcome.delay, 3),
            )
            await self._end_attempt(transfer, outcome)

    async def _end_attempt(self, transfer: Transfer, outcome: Outcome) -> None:
        await self._settle(transfer, outcome, State.SENDING)
        self._context.telemetry.attempt_ended(transfer.target.remote, outcome.state)

    def _count_sent(self, transfer: Transfer, proof: str, was: State) -> None:
        self.counters.uploaded += 1
        self.counters.bytes_up += transfer.size
        telemetry, remote = self._context.telemetry, transfer.target.remote
        delay = self._context.clock.now() - transfer.due_since
        telemetry.uploaded(Delivery(transfer.mapping, remote, transfer.size, delay))
        if was is State.SENDING:
            telemetry.attempt_ended(remote, State.SENT)
        else:
            telemetry.doubt_resolved(remote, proof)

    def _with_limits(self, transfer: Transfer, outcome: Outcome, failure: RemoteError) -> Outcome:
        """Delay a lookup until the list can show the document, and give up transfers after their time limit."""
        if outcome.state is State.DOUBTFUL:
            remote = self._context.remotes[transfer.target.remote]
            return replace(outcome, delay=max(outcome.delay, remote.lookup_after))
        may_give_up = policy.is_about_document(failure) and self._gate_manager.is_expired(transfer)
        return (
            self._gate_manager.given_up(outcome.detail) if may_give_up and outcome.state is State.WAITING else outcome
        )

    # -- doubts --------------------------------------------------------------------------------------------------

    async def _resolve(self, batch: Batch) -> None:
        """Look up the doubts of a batch and perform the decisions."""
        found = await self._resolver.resolve(batch.transfers)
        if found.gate is not None:
            await self._gate_manager.close(found.gate, Activity.LOOKUP)
        if found.answered:
            await self._gate_manager.record_success(batch.lane, Activity.LOOKUP)
        for transfer, outcome in found.outcomes:
            if outcome.state is State.SENT:
                await self._record_sent([transfer], outcome, State.ASKING)
            else:
                await self._settle(transfer, outcome, State.ASKING)
        for transfer in found.resend:
            self._context.telemetry.doubt_resolved(transfer.target.remote, "absent")
        await self._record_trial(batch.lane, found)
        await self._resend(found.resend, batch.places)

    async def _record_trial(self, lane: str, found: Resolution) -> None:
        if decided := found.decided_of_trial():
            await self._batch_trials.record_decided(lane, decided)

    async def _resend(self, absent: Sequence[Transfer], places: Places) -> None:
        """Send documents again that were proved absent: the same request, byte for byte, under the same key.

        Requests follow each other, because a worker has one in flight. The remaining documents stay doubtful after a
        closed gate, at a stop, or if others may take over.
        """
        permit = _WhileConfirmed(self._context.queue.owners)
        for number, transfer in enumerate(absent):
            if self._gate_manager.blocks_resend(transfer.target.lane) or not permit.is_granted:
                for other in absent[number:]:
                    await self._settle(other, still_doubtful(other, 0.0), State.ASKING)
                return
            try:
                await self._send([transfer], places, was=State.ASKING, permit=permit)
            except LeaseLost as lost:
                log.warning("lease_lost", str(lost), lane=transfer.target.lane)


class _WhileConfirmed(SendPermit):
    """Permit a resend of a lookup, which already has a slot, while no other process considers this one dead.

    Checked after the intent was committed, because the process may have been suspended since the lookup.
    """

    def __init__(self, owners: Owners) -> None:
        self._owners = owners

    async def acquire(self) -> bool:
        return self.is_granted

    @property
    def is_granted(self) -> bool:
        return self._owners.is_confirmed


def _unchanged(transfer: Transfer, state: State) -> Outcome:
    """Return the outcome of a transfer without an attempt."""
    return Outcome(state, transfer.reason, transfer.detail, costs_a_try=False)
