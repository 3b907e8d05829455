"""Resolve doubts: look up the documents at the remote, and decide the outcome of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from docferry import policy
from docferry.errors import RemoteError
from docferry.model import Finding, Found, Gate, KnownUploads, Outcome, Reason, Receipt, State, Transfer
from docferry.remotes.protocol import NOTHING, Remote
from docferry.upload.batch_trials import BATCH_DOUBT
from docferry.upload.context import UploadContext
from docferry.upload.gates import Activity, GateManager

#: The number of list lags for which an unclear lookup is repeated, at least `UNSURE_AT_LEAST_S`; then it is held.
UNSURE_LAGS = 20
UNSURE_AT_LEAST_S = 600.0


class Resolution(Struct):
    """Hold the decisions about the doubts of one lookup; the caller performs them."""

    outcomes: list[tuple[Transfer, Outcome]] = field(default_factory=list)
    resend: list[Transfer] = field(default_factory=list)  # proved absent: repeat the same request, byte for byte
    gate: Gate | None = None  # to be closed, because the lookup failed
    answered: bool = False  # the remote responded to the lookup

    def decided_of_trial(self) -> list[bool | None]:
        """Return the decided documents of a first batch: present, absent, or undecidable (None)."""
        decided: list[bool | None] = [
            None if outcome.reason == Reason.UNDECIDABLE else outcome.state is State.SENT
            for transfer, outcome in self.outcomes
            if transfer.reason == BATCH_DOUBT and outcome.state is not State.DOUBTFUL
        ]
        return decided + [False for transfer in self.resend if transfer.reason == BATCH_DOUBT]


class Resolver:
    """Look up the doubts of one company at a time."""

    def __init__(self, context: UploadContext, gate_manager: GateManager) -> None:
        self._context = context
        self._gate_manager = gate_manager

    async def resolve(self, doubts: Sequence[Transfer]) -> Resolution:
        """Look up all doubts together and decide; doubts that the list cannot show yet stay doubtful."""
        remote = self._context.remotes[doubts[0].target.remote]
        found = Resolution()
        ready: list[Transfer] = []
        for doubt in doubts:
            wait = remote.lookup_after - self._gate_manager.age(doubt)
            if wait > 0:
                found.outcomes.append((doubt, still_doubtful(doubt, wait)))
            else:
                ready.append(doubt)
        if not ready:
            return found
        try:
            findings = await remote.lookup(ready, *await self._known_uploads(ready, remote))
        except RemoteError as failure:
            self._after_failure(found, ready, failure)
            return found
        found.answered = True
        self._decide(found, ready, findings, remote)
        return found

    async def _known_uploads(self, doubts: Sequence[Transfer], remote: Remote) -> tuple[KnownUploads, KnownUploads]:
        """Return the uploads of other transfers: the certain and the possible ones."""
        target = doubts[0].target
        if target.company_id is None:
            return NOTHING, NOTHING  # a repeatable request needs no counts
        lookback = remote.lookback(doubts)
        fresh = self._context.clock.now() - remote.lookup_after
        transfers = self._context.queue.transfers
        certain = await transfers.accounted(
            target, names_since=lookback.names, digests_since=lookback.digests, until=fresh
        )
        possible = await transfers.unsettled(target, sent_since=fresh, apart_from=[doubt.id for doubt in doubts])
        return certain, possible

    def _after_failure(self, found: Resolution, doubts: Sequence[Transfer], failure: RemoteError) -> None:
        backoff = self._gate_manager.retry.backoff
        attempts = self._gate_manager.record_failure(doubts, failure, Activity.LOOKUP)
        for doubt, attempt in zip(doubts, attempts, strict=True):
            outcome = policy.after_failed_lookup(failure, attempt, backoff)
            found.gate = outcome.gate or found.gate
            if policy.is_about_document(failure) and self._gate_manager.is_expired(doubt):
                outcome = _undecidable(f"no lookup could tell whether it arrived: {failure}")
            else:
                outcome = Outcome(State.DOUBTFUL, doubt.reason, outcome.detail, delay=outcome.delay)
            found.outcomes.append((doubt, outcome))

    def _decide(
        self, found: Resolution, doubts: Sequence[Transfer], findings: Mapping[int, Finding], remote: Remote
    ) -> None:
        for doubt in doubts:
            finding = findings[doubt.id]
            if finding.found is Found.PRESENT:
                receipt = Receipt(None, detail=finding.detail, proof=finding.proof)
                found.outcomes.append((doubt, Outcome(State.SENT, None, receipt.detail, receipt=receipt)))
            elif finding.found is not Found.ABSENT or self._gate_manager.age(doubt) < remote.absent_after:
                found.outcomes.append((doubt, self._open(doubt, finding, remote)))
            elif self._gate_manager.is_expired(doubt):
                found.outcomes.append((doubt, self._gate_manager.given_up(finding.detail)))
            else:
                found.resend.append(doubt)

    def _open(self, doubt: Transfer, finding: Finding, remote: Remote) -> Outcome:
        """Return the outcome of a doubt that the lookup left open: another lookup, or held after the time limit."""
        age = self._gate_manager.age(doubt)
        if finding.found is Found.ABSENT:
            return still_doubtful(doubt, remote.absent_after - age, finding.detail)
        if age > max(UNSURE_LAGS * remote.lookup_after, UNSURE_AT_LEAST_S):
            return _undecidable(finding.detail)
        wait = max(remote.lookup_after, self._gate_manager.pause(doubt))
        return Outcome(State.DOUBTFUL, doubt.reason, finding.detail, delay=wait)


def still_doubtful(doubt: Transfer, wait: float, detail: str | None = None) -> Outcome:
    """Return the outcome that keeps a doubt unchanged for `wait` seconds."""
    return Outcome(State.DOUBTFUL, doubt.reason, detail or doubt.detail, delay=wait, costs_a_try=False)


def _undecidable(detail: str) -> Outcome:
    """Return the held outcome with advice: no command marks a document as sent."""
    advice = (
        "look for it at the remote: if it is there, take the file out of the folder, and it is no longer held; "
        "if it is not there, `docferry retry` looks it up again and sends it once its absence is proved"
    )
    return Outcome(State.HELD, Reason.UNDECIDABLE, f"{detail}; {advice}")
