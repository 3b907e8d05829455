"""What became of doubts: the remote is asked, and only what is surely not there is sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from docferry import logs, policy
from docferry.clock import Clock
from docferry.errors import LeaseLost, RemoteError
from docferry.model import Finding, Found, Gate, KnownUploads, Outcome, Reason, Receipt, State, Transfer
from docferry.remotes.protocol import NOTHING, Remote
from docferry.store.transfers import Transfers
from docferry.upload.batch import Places
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.gates import GateManager

log = logs.get("carry")

#: The reason of a doubt that is only about whether a connection takes batches.
BATCH = "batch"
#: A question without a clear answer is asked again for so many list lags (at least UNSURE_AT_LEAST), then held.
UNSURE_LAGS = 20
UNSURE_AT_LEAST = 600.0
#: So many first batches that proved nothing are followed by another one; then it stays with single documents.
TRIALS = 3


class Sender(Protocol):
    """How what is surely absent goes out again."""

    async def __call__(self, transfers: Sequence[Transfer], places: Places, *, was: State) -> None: ...


class Resolver:
    """Asks about the doubts of one company at a time."""

    def __init__(
        self,
        gate_manager: GateManager,
        *,
        remotes: Mapping[str, Remote],
        transfers: Transfers,
        clock: Clock,
        send: Sender,
        arrived: Callable[[Sequence[Transfer], Receipt, State], Awaitable[None]],
        batch_trials: BatchTrials,
    ) -> None:
        self._gate_manager = gate_manager
        self._remotes = remotes
        self._transfers = transfers
        self._clock = clock
        self._send = send
        self._arrived = arrived
        self._batch_trials = batch_trials
        self._proofs: dict[str, list[bool]] = {}  # what is known of a first batch so far, by lane
        self._in_vain: Counter[str] = Counter()  # first batches that proved nothing, by lane

    async def ask(self, doubts: Sequence[Transfer], places: Places) -> None:
        """The remote is asked about all of them before anything is sent again."""
        remote = self._remotes[doubts[0].target.remote]
        age = self._gate_manager.age
        ripe = [doubt for doubt in doubts if age(doubt) >= remote.find_after]
        for doubt in doubts:
            if doubt not in ripe:
                await self._gate_manager.settle(doubt, _still(doubt, remote.find_after - age(doubt)))
        if not ripe:
            return
        try:
            findings = await remote.find(ripe, *await self._counted(ripe, remote))
        except RemoteError as failure:
            await self._no_answer(ripe, failure)
        else:
            await self._gate_manager.worked(ripe[0].target.lane)
            await self._decide(ripe, findings, places, remote)

    async def trial_ended(self, lane: str, seen: Sequence[bool | None] = ()) -> None:
        """More is known of a connection's first batch: there, absent, or never to be known. All there: batches are
        trusted; one absent: never again. Where it proved neither and none of it is left, the next one is a trial."""
        if False in seen:
            self._proofs.pop(lane, None)
            await self._batch_trials.seen(lane, False)
            return
        proofs = self._proofs.setdefault(lane, [])
        proofs += [bool(each) for each in seen]
        if await self._transfers.any_doubt(lane, BATCH):
            return
        del self._proofs[lane]
        if len(proofs) > 1 and all(proofs):
            await self._batch_trials.seen(lane, True)
            return
        self._in_vain[lane] += 1
        if self._in_vain[lane] < TRIALS:
            await self._batch_trials.seen(lane, None)

    async def _counted(self, asking: Sequence[Transfer], remote: Remote) -> tuple[KnownUploads, KnownUploads]:
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
        backoff = self._gate_manager.backoff
        gate: Gate | None = None
        settled: list[tuple[Transfer, Outcome]] = []
        for transfer, attempt in zip(asking, self._gate_manager.struck(asking, failure), strict=True):
            gate = policy.after_failure(failure, attempt, backoff).gate or gate
            delay = policy.pause_of(failure, attempt, backoff)
            outcome = Outcome(State.DOUBTFUL, transfer.reason, f"asking: {failure}", delay=delay)
            if self._gate_manager.is_expired(transfer):
                outcome = _undecidable(f"nobody could say whether it arrived: {failure}")
            settled.append((transfer, outcome))
        if gate is not None:
            await self._gate_manager.close(gate)
        for transfer, outcome in settled:
            await self._gate_manager.settle(transfer, outcome)
        await self._tell_of_trial(settled)

    async def _decide(
        self, asking: Sequence[Transfer], findings: Mapping[int, Finding], places: Places, remote: Remote
    ) -> None:
        again: list[Transfer] = []
        settled: list[tuple[Transfer, Outcome]] = []
        for transfer in asking:
            finding = findings[transfer.id]
            if finding.found is Found.THERE:
                receipt = Receipt(None, detail=finding.detail, proof=finding.proof)
                await self._arrived([transfer], receipt, State.ASKING)
                settled.append((transfer, Outcome(State.SENT, receipt=receipt)))
                continue
            if finding.found is not Found.ABSENT or self._gate_manager.age(transfer) < remote.confirm_after:
                outcome = self._open(transfer, finding, remote)
            elif self._gate_manager.is_expired(transfer):
                outcome = self._gate_manager.given_up(finding.detail)
            else:
                again.append(transfer)
                self._gate_manager.telemetry.doubt_resolved(transfer.target.remote, "absent")
                continue
            await self._gate_manager.settle(transfer, outcome)
            settled.append((transfer, outcome))
        await self._tell_of_trial([*settled, *((transfer, Outcome(State.SENDING)) for transfer in again)])
        await self._send_again(again, places)

    async def _tell_of_trial(self, settled: Sequence[tuple[Transfer, Outcome]]) -> None:
        decided = [
            None if outcome.reason == Reason.UNDECIDABLE else outcome.state is State.SENT
            for transfer, outcome in settled
            if transfer.reason == BATCH and outcome.state is not State.DOUBTFUL
        ]
        if decided:
            await self.trial_ended(settled[0][0].target.lane, decided)

    async def _send_again(self, absent: Sequence[Transfer], places: Places) -> None:
        """It surely is not there: the same request again, byte for byte, under the same key. One after the other, as
        a worker has one upload in flight; where one finds a gate closed, the others stay in doubt until it opens, and
        at a stop until the next start."""
        for number, transfer in enumerate(absent):
            if self._gate_manager.bars_doubts(transfer.target.lane):
                for other in absent[number:]:
                    await self._gate_manager.settle(other, _still(other, 0.0))
                return
            try:
                await self._send([transfer], places, was=State.ASKING)
            except LeaseLost as lost:
                log.warning("lease_lost", str(lost), lane=transfer.target.lane)

    def _open(self, transfer: Transfer, finding: Finding, remote: Remote) -> Outcome:
        """For what nobody can say yet: asked again, or when that was done for long enough, held."""
        age = self._gate_manager.age(transfer)
        if finding.found is Found.ABSENT:
            return _still(transfer, remote.confirm_after - age, finding.detail)
        if age > max(UNSURE_LAGS * remote.find_after, UNSURE_AT_LEAST):
            return _undecidable(finding.detail)
        wait = max(remote.find_after, self._gate_manager.pause(transfer))
        return Outcome(State.DOUBTFUL, transfer.reason, finding.detail, delay=wait)


def _still(transfer: Transfer, wait: float, detail: str | None = None) -> Outcome:
    """In doubt as before."""
    return Outcome(State.DOUBTFUL, transfer.reason, detail or transfer.detail, delay=wait, costs_a_try=False)


def _undecidable(detail: str) -> Outcome:
    """There is no command that calls it sent: what a person does is said here."""
    advice = (
        "look for it at the remote: if it is there, take the file out of the folder, and it is no longer held; "
        "if it is not, `docferry retry` asks again, and sends it once its absence is proved"
    )
    return Outcome(State.HELD, Reason.UNDECIDABLE, f"{detail}; {advice}")
