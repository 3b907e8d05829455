"""Failure + tries → outcome. Pure: no clock, no I/O; the only place that decides what a failure means."""

from __future__ import annotations

from dataclasses import dataclass, replace

from docferry.errors import RemoteError
from docferry.model import Gate, Outcome, Reason, State

#: A remote that asks for a longer pause than this is asked again after it all the same.
LONGEST_PAUSE = 86_400.0
#: A remote that asks for more than this has run out of something, not of breath.
LONG_PAUSE = 120.0
#: So many refused connections in a row close the remote for all; fewer are one document's bad luck.
STRIKES = 3
#: So many failures in a row close a lane, whatever they were: a remote that hangs costs one worker, not all.
LANE_STRIKES = 5

_GATE_REASONS = {401: Reason.KEY, 402: Reason.ACCOUNT, 403: Reason.COMPANY, 404: Reason.CONNECTION}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before try n+1: `initial` x `factor`^n, at most `longest`, jittered; seconds."""

    initial: float = 0.5
    factor: float = 1.5
    longest: float = 60.0

    def pause(self, tries: int, jitter: float) -> float:
        """Seconds after `tries` failures; `dice` in [0, 1) spreads them over the upper half."""
        exponent = min(tries - 1, 64) if tries > 0 else 0
        full = min(self.longest, self.initial * self.factor**exponent)
        return full * (0.5 + jitter / 2)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What policy must know of the attempt that failed."""

    lane: str
    tries: int  # this one included
    now: float
    jitter: float
    gate_tries: int = 0  # how often the gate in question has been probed in vain
    strikes: int = 1  # how often in a row the remote could not be reached, this one included
    lane_failures: int = 1  # how often in a row the lane failed in whatever way, this one included


def after_failure(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    """What a failed send means for its transfer, and for those that wait behind it."""
    outcome = _of_the_transfer(failure, attempt, backoff)
    again = outcome.state in {State.WAITING, State.DOUBTFUL} and outcome.costs_a_try
    if again and outcome.gate is None and attempt.lane_failures >= LANE_STRIKES:
        gate = _closed(failure, attempt, backoff, scope=attempt.lane).gate
        return replace(outcome, gate=gate and replace(gate, reason=Reason.FAILING))
    return outcome


def _of_the_transfer(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    if failure.kind == "signature":
        # A new URL cures what expired, at once; it does not cure a signer that is wrong.
        pause = backoff.pause(attempt.lane_failures - 1, attempt.jitter) if attempt.lane_failures > 1 else 0.0
        return Outcome(State.WAITING, None, str(failure), delay=pause, costs_a_try=False)
    if failure.scope is not None:
        return _closed(failure, attempt, backoff)
    if failure.kind == "redirect":
        return _closed(failure, attempt, backoff, scope=attempt.lane.split("/", 1)[0])
    if failure.kind == "redo":
        return _again(failure, attempt, backoff)
    if _refuses(failure):
        reason = Reason.TOO_LARGE if failure.status == 413 else Reason.REFUSED
        # Codat repeats a kept answer to the same key: a person's retry needs a new one.
        return Outcome(State.HELD, reason, f"{failure}; mend it, then `docferry retry`", fresh_key=True)
    if failure.body_complete:
        return _in_doubt(failure, attempt, backoff)
    if failure.kind == "unreachable" and attempt.strikes >= STRIKES:
        return _closed(failure, attempt, backoff, scope=attempt.lane.split("/", 1)[0], patient=True)
    return _again(failure, attempt, backoff)


def after_stop(*, begun: bool) -> Outcome:
    """docferry was stopped during a try. Once its bytes have `begun` to go nobody knows; before, nothing was sent."""
    if begun:
        return Outcome(State.DOUBTFUL, None, "docferry stopped while this was being sent")
    return Outcome(State.WAITING, None, "docferry stopped before any of it was sent", costs_a_try=False)


def pause_of(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> float:
    """Seconds until the next try: the remote's wish, at most a day. A wish for less than any pause of ours is none:
    "now", said by a remote that fails all the time, would be asked for without end."""
    if failure.retry_after is not None and failure.retry_after >= backoff.initial:
        return min(failure.retry_after, LONGEST_PAUSE)
    return backoff.pause(attempt.tries, attempt.jitter)


def _refuses(failure: RemoteError) -> bool:
    """A clear no to this document: repeating it would bring the same answer."""
    if failure.kind != "answer" or failure.status is None or failure.should_retry:
        return False
    return failure.status in {400, 405, 410, 411, 413, 414, 415, 416, 431, 501} or (
        failure.should_retry is False and 400 <= failure.status < 500
    )


def _in_doubt(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    # After a 5xx, and after 422, Codat repeats the kept answer to the same key for 90 minutes. What a proxy said
    # was not kept: there the old key still guards against a second copy.
    # 409 says that the first request still runs, once; said again, it is a kept answer too.
    unspent = {429} if attempt.tries > 1 else {409, 429}
    spent = failure.kind == "answer" and failure.status is not None and failure.status not in unspent
    return Outcome(State.DOUBTFUL, None, str(failure), delay=pause_of(failure, attempt, backoff), fresh_key=spent)


def _again(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    return Outcome(
        State.WAITING,
        None,
        str(failure),
        delay=pause_of(failure, attempt, backoff),
        fresh_key=failure.status is not None and failure.status >= 500,
    )


def _closed(
    failure: RemoteError, attempt: FailedAttempt, backoff: Backoff, *, scope: str | None = None, patient: bool = False
) -> Outcome:
    """Nothing is wrong with the document: what the remote refused is closed for all, and one probes."""
    key = scope or failure.scope or attempt.lane
    probe = FailedAttempt(attempt.lane, attempt.gate_tries + 1, attempt.now, attempt.jitter)
    pause = pause_of(failure, probe, backoff)
    reason = _gate_reason(failure)
    gate = Gate(
        key=key,
        reason=reason,
        detail=str(failure),
        until=attempt.now + pause,
        tries=attempt.gate_tries + 1,
        since=attempt.now,
    )
    return Outcome(
        State.WAITING,
        reason,
        str(failure),
        delay=0.0,
        gate=gate,
        fresh_key=failure.status is not None and failure.status not in {408, 409, 429},
        costs_a_try=patient,
    )


def _gate_reason(failure: RemoteError) -> Reason:
    if failure.kind == "unreachable":
        return Reason.UNREACHABLE
    if failure.kind == "redirect":
        return Reason.REDIRECTED
    if failure.status == 429:
        return Reason.QUOTA if (failure.retry_after or 0) > LONG_PAUSE else Reason.RATE
    return _GATE_REASONS.get(failure.status or 0, Reason.CONNECTION)
