"""One load of transfers from lease to outcome. Read this first: everything else brings documents here."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio

from docferry import logs, policy
from docferry.clock import Clock
from docferry.errors import LeaseLost, NotNow, RemoteError, SourceError, SourceUnreadable, SourceVanished
from docferry.files.source import FileSource, Opener, open_together
from docferry.model import Digests, Outcome, Reason, Receipt, State, Transfer, UploadItem
from docferry.remotes.protocol import MayGo, Remote, always
from docferry.settings import Upload
from docferry.store.documents import Place
from docferry.store.transfers import Transfers
from docferry.telemetry import Delivery
from docferry.upload.batch import Batch, Places, idempotency_key
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.gates import GateManager
from docferry.upload.resolver import BATCH, Resolver
from docferry.wakeups import Wakeups

log = logs.get("carry")

#: Waits until it may go; False: not now.
Turn = Callable[[], Awaitable[bool]]

#: An unreadable file is tried so often before a person is told.
READ_TRIES = 5


async def at_once() -> bool:
    """A turn that nobody waits for."""
    return True


class Uploader:
    """Carries loads; the runner decides which and when."""

    def __init__(
        self,
        *,
        gate_manager: GateManager,
        uploads: Mapping[str, Upload],
        remotes: Mapping[str, Remote],
        transfers: Transfers,
        clock: Clock,
        wakeups: Wakeups,
        delivered: Callable[[str], Awaitable[None]],
        batch_trials: BatchTrials,
    ) -> None:
        self.uploads = uploads
        self.remotes = remotes
        self._gate_manager = gate_manager
        self._transfers = transfers
        self._openers = {upload.root: Opener(upload.root) for upload in uploads.values()}
        self._wakeups = wakeups
        self._delivered = delivered
        self._clock = clock
        self._batch_trials = batch_trials
        self._resolver = Resolver(
            gate_manager,
            remotes=remotes,
            transfers=transfers,
            clock=clock,
            send=self._send,
            arrived=self._arrived,
            batch_trials=batch_trials,
        )

    async def carry(
        self,
        batch: Batch,
        turn: Turn = at_once,
        may_go: MayGo = always,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        """Bring a load to its outcomes. `turn` is waited for when it can go, and `may_go` asked where it has to wait
        again; `taken` is told when the remote has it and only the books are left to be written. A lost lease is
        somebody else's transfer now: nothing is left to do."""
        try:
            if batch.asks:
                await (self._resolver.ask(batch.transfers, batch.places) if await turn() else self.release(batch))
            else:
                await self._send(batch.transfers, batch.places, was=State.LEASED, turn=turn, may_go=may_go, taken=taken)
                if len(batch.transfers) > 1 and self._batch_trials.tries(batch.lane):
                    await self._resolver.trial_ended(batch.lane)
        except LeaseLost as lost:
            log.warning("lease_lost", str(lost), lane=batch.lane)
            await self.release(batch)
            await self._leave_in_doubt(batch)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.release(batch)
            raise

    async def release(self, batch: Batch) -> None:
        """For what is still as it was claimed nothing was done: LEASED waits again, a question is still open."""
        back = State.DOUBTFUL if batch.asks else State.WAITING
        for transfer in batch.transfers:
            with contextlib.suppress(LeaseLost):  # it went on its way
                await self._gate_manager.settle(
                    transfer, Outcome(back, transfer.reason, transfer.detail, costs_a_try=False)
                )
        if not batch.asks:
            await self._untried(batch.transfers)

    async def _leave_in_doubt(self, batch: Batch) -> None:
        """What shared a request with a lost lease: its own end was not recorded, and while we live nobody else would
        take it back."""
        for transfer in batch.transfers:
            with contextlib.suppress(LeaseLost):  # it has come to its end
                outcome = Outcome(State.DOUBTFUL, None, "another document of its request was taken over")
                await self._gate_manager.settle(transfer, outcome, State.SENDING)

    async def _send(
        self,
        transfers: Sequence[Transfer],
        places: Places,
        *,
        was: State,
        turn: Turn = at_once,
        may_go: MayGo = always,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        async with AsyncExitStack() as stack:
            sources = await self._opened(stack, transfers, places, was)
            if not sources:
                return
            sending = [transfer for transfer, _ in sources]
            # The intent is committed before the first byte: whoever finds us dead knows what may be there.
            await self._transfers.mark_sending(sending)
            receipt = await self._transmit(sources, places, turn, may_go)
            # Nothing is waited for between a receipt and its entry in the books: a stop would take it along.
            if receipt is not None:
                for _, source in sources:
                    source.let_go()  # while the books are written, the worker has others
                taken()
                await self._accepted(sending, receipt)

    async def _opened(
        self, stack: AsyncExitStack, transfers: Sequence[Transfer], places: Places, was: State
    ) -> list[tuple[Transfer, FileSource]]:
        """Those whose bytes are there; the others are settled."""
        chances = [self._chances(transfer, places.get(transfer.id, ())) for transfer in transfers]
        firsts = [each[0][1] for each in chances if each]
        for source in firsts:
            stack.callback(source.close)
        await open_together(firsts)
        sources = []
        for transfer, each in zip(transfers, chances, strict=True):
            if not transfer.sha256:
                await self._look_afresh(transfer, places.get(transfer.id, ()), was)
            elif (opened := await self._open(stack, transfer, each, was)) is not None:
                sources.append((transfer, opened))
        return sources

    async def _transmit(
        self, sources: Sequence[tuple[Transfer, FileSource]], places: Places, turn: Turn, may_go: MayGo
    ) -> Receipt | None:
        sending = [transfer for transfer, _ in sources]
        remote = self.remotes[sending[0].target.remote]
        try:
            if await turn():
                items = [UploadItem(transfer, source) for transfer, source in sources]
                began = self._clock.steady()
                receipt = await remote.send(items, idempotency_key(sending), may_go)
                self._gate_manager.telemetry.request_ended(remote.name, self._clock.steady() - began)
                return receipt
            await self._unsent(sending)
        except NotNow:
            await self._unsent(sending)
        except SourceError as changed:
            await self._changed(sending, changed, places)
        except RemoteError as failure:
            await self._failed(sending, failure)
        except anyio.get_cancelled_exc_class():
            begun = any(source.is_wanted for _, source in sources)
            with anyio.CancelScope(shield=True):
                for transfer in sending:
                    with contextlib.suppress(LeaseLost):  # the others are still ours
                        await self._gate_manager.settle(transfer, policy.after_stop(begun=begun), State.SENDING)
            raise
        return None

    async def _unsent(self, sending: Sequence[Transfer]) -> None:
        """It was about to go, and its way was closed: nothing was done."""
        for transfer in sending:
            outcome = Outcome(State.WAITING, transfer.reason, transfer.detail, costs_a_try=False)
            with contextlib.suppress(LeaseLost):  # the others are still ours
                await self._gate_manager.settle(transfer, outcome, State.SENDING)
        await self._untried(sending)

    async def _untried(self, transfers: Sequence[Transfer]) -> None:
        """If it was a connection's first batch, the next one is."""
        lane = transfers[0].target.lane
        if len(transfers) > 1 and self._batch_trials.tries(lane):
            await self._batch_trials.seen(lane, None)

    def _chances(self, transfer: Transfer, places: Sequence[Place]) -> list[tuple[Place, FileSource]]:
        """The places that should have a transfer's bytes, each with its source."""
        digests = Digests(transfer.sha256, transfer.fingerprint, transfer.md5)
        md5 = self.remotes[transfer.target.remote].rules.needs_md5
        return [
            (place, self._openers[upload.root].source(place.path, place.stamp, digests, md5=md5))
            for place in places
            if (upload := self.uploads.get(place.mapping)) and upload.route(place.path).target == transfer.target
        ]

    async def _look_afresh(self, transfer: Transfer, places: Sequence[Place], was: State) -> None:
        """A rule held it and nothing was read; a person says try again: intake judges it anew."""
        for place in places:
            self._wakeups.check_paths(place.mapping, [place.path])
        await self._gate_manager.settle(transfer, Outcome(State.GONE, None, "looked at again"), was)

    async def _open(
        self, stack: AsyncExitStack, transfer: Transfer, chances: Sequence[tuple[Place, FileSource]], was: State
    ) -> FileSource | None:
        """The transfer's bytes, from any place that still has them; None when it was settled instead."""
        trouble: SourceError | None = None
        for place, source in chances:
            try:
                return await stack.enter_async_context(source)
            except SourceError as error:
                trouble = error
                self._wakeups.check_paths(place.mapping, [place.path])
        await self._gate_manager.settle(transfer, self._without_bytes(transfer, trouble, was), was)
        return None

    def _without_bytes(self, transfer: Transfer, trouble: SourceError | None, was: State) -> Outcome:
        if isinstance(trouble, SourceUnreadable):
            if transfer.tries + 1 >= READ_TRIES or was is State.ASKING:
                return Outcome(State.HELD, Reason.UNREADABLE, f"{trouble}; mend it, then `docferry retry`")
            return Outcome(State.WAITING, None, str(trouble), delay=self._gate_manager.pause(transfer))
        why = "the file went away" if trouble is None or isinstance(trouble, SourceVanished) else str(trouble)
        return Outcome(State.GONE, None, why)

    async def _accepted(self, sending: Sequence[Transfer], receipt: Receipt) -> None:
        lane = sending[0].target.lane
        await self._gate_manager.worked(lane)
        if len(sending) > 1 and not self._batch_trials.trusts(lane):
            detail = "the first batch of this connection is checked against the list"
            wait = self.remotes[sending[0].target.remote].find_after
            doubt = Outcome(State.DOUBTFUL, BATCH, detail, delay=wait)
            await self._transfers.settle_all(sending, doubt, was=State.SENDING)
            for _ in sending:
                self._gate_manager.telemetry.attempt_ended(sending[0].target.remote, State.DOUBTFUL)
            return
        await self._arrived(sending, receipt, State.SENDING)

    async def _arrived(self, transfers: Sequence[Transfer], receipt: Receipt, was: State) -> None:
        outcome = Outcome(State.SENT, None, receipt.detail, receipt=receipt)
        lost: LeaseLost | None = None
        try:
            await self._transfers.settle_all(transfers, outcome, was=was)
        except LeaseLost as error:
            lost = error
        for transfer in transfers if lost is None else ():
            self._gate_manager.counters.uploaded += 1
            self._gate_manager.counters.bytes_up += transfer.size
            self._count_arrival(transfer, receipt, was)
            log.info(
                "sent",
                mapping=transfer.mapping,
                name=transfer.remote_name,
                to=transfer.target.lane,
                size=transfer.size,
                tries=transfer.tries + 1,
                proof=receipt.proof,
            )
        for mapping in {transfer.mapping for transfer in transfers}:
            await self._delivered(mapping)
        if lost is not None:
            raise lost

    def _count_arrival(self, transfer: Transfer, receipt: Receipt, was: State) -> None:
        telemetry, remote = self._gate_manager.telemetry, transfer.target.remote
        delay = self._clock.now() - transfer.due_since
        telemetry.uploaded(Delivery(transfer.mapping, remote, transfer.size, delay))
        if was is State.SENDING:
            telemetry.attempt_ended(remote, State.SENT)
        else:
            telemetry.doubt_resolved(remote, receipt.proof)

    async def _changed(self, sending: Sequence[Transfer], changed: SourceError, places: Places) -> None:
        """The body was never completed, so nothing was stored. Alone it is gone; of a batch the rest is innocent."""
        for transfer in sending:
            if len(sending) > 1:
                outcome = Outcome(State.WAITING, None, str(changed))  # what failed once goes alone from then on
            elif isinstance(changed, SourceUnreadable) and transfer.tries + 1 < READ_TRIES:
                outcome = Outcome(State.WAITING, None, str(changed), delay=self._gate_manager.pause(transfer))
            elif isinstance(changed, SourceUnreadable):
                outcome = Outcome(State.HELD, Reason.UNREADABLE, f"{changed}; mend it, then `docferry retry`")
            else:
                outcome = Outcome(State.GONE, None, str(changed))
            await self._gate_manager.settle(transfer, outcome, State.SENDING)
            self._gate_manager.telemetry.attempt_ended(transfer.target.remote, outcome.state)
            if outcome.state is State.GONE:
                for place in places.get(transfer.id, ()):
                    self._wakeups.check_paths(place.mapping, [place.path])

    async def _failed(self, sending: Sequence[Transfer], failure: RemoteError) -> None:
        struck = self._gate_manager.struck(sending, failure)
        outcomes = [policy.after_failure(failure, attempt, self._gate_manager.backoff) for attempt in struck]
        # First the gate, then the transfers: else one of them is claimed again before the gate is closed.
        if (gate := outcomes[0].gate) is not None:
            await self._gate_manager.close(gate)
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
            await self._gate_manager.settle(transfer, outcome, State.SENDING)
            self._gate_manager.telemetry.attempt_ended(transfer.target.remote, outcome.state)

    def _with_limits(self, transfer: Transfer, outcome: Outcome) -> Outcome:
        """A doubt is asked about only after the list can have caught up; what failed for long enough is given up."""
        if outcome.state is State.DOUBTFUL:
            return replace(outcome, delay=max(outcome.delay, self.remotes[transfer.target.remote].find_after))
        # What the remote refused for everybody is no document's fault, however long it lasts.
        at_fault = outcome.gate is None or outcome.costs_a_try
        if outcome.state is State.WAITING and at_fault and self._gate_manager.is_expired(transfer):
            return self._gate_manager.given_up(outcome.detail)
        return outcome
