"""Decide what a failed attempt means for its transfer and for the gates. Pure: no clock, no I/O."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from docferry.errors import RemoteError
from docferry.model import Gate, Outcome, Reason, State

#: The longest pause that a remote may request, seconds.
MAX_PAUSE_S: Final = 86_400.0
#: A daily quota resets within this time, even if the remote claims a later time; seconds.
MAX_QUOTA_RESET_S: Final = 25 * 3600.0
#: A longer requested pause means a spent quota, a shorter one the rate limit, seconds.
QUOTA_PAUSE_S: Final = 120.0
#: Consecutive unreachable requests that close the remote for all documents.
UNREACHABLE_LIMIT: Final = 3
#: Consecutive failures of any kind that close a lane, and responses of other servers that close a remote.
FAILURE_LIMIT: Final = 5

_GATE_REASONS: Final = {401: Reason.KEY, 402: Reason.ACCOUNT, 403: Reason.COMPANY, 404: Reason.CONNECTION}
#: Statuses after which this or an earlier request may still store the document.
_UNCLEAR: Final = frozenset({408, 409, 422, 425})
_NOT_OF_THE_DOCUMENT: Final = frozenset({"not_ours", "storage", "signature", "redirect"})


class Backoff(Struct, frozen=True):
    """Compute the pause before attempt n+1: `initial` * `factor`^n, at most `longest`, with jitter; seconds."""

    initial: float = 0.5
    factor: float = 1.5
    longest: float = 60.0

    def pause(self, tries: int, jitter: float) -> float:
        """Return the pause in seconds after `tries` failures; `jitter` in [0, 1) spreads the upper half."""
        exponent = min(tries - 1, 64) if tries > 0 else 0
        full = min(self.longest, self.initial * self.factor**exponent)
        return full * (0.5 + jitter / 2)


class RetryPolicy(Struct, frozen=True):
    """Hold the settings of `[retry]`."""

    backoff: Backoff = Backoff()
    give_up_after: float = 7 * 86_400.0  # seconds


class FailureCounts(Struct, frozen=True):
    """Count consecutive failures of one activity (sends or lookups), including the latest."""

    lane: int = 1  # of any kind, in the lane
    unreachable: int = 0  # of the remote
    stranger: int = 0  # responses from another server than the remote


class FailedAttempt(Struct, frozen=True):
    """Hold the facts about a failed attempt that decide its outcome."""

    lane: str
    tries: int  # including the failed one
    now: float  # wall seconds
    jitter: float
    gate_tries: int = 0  # failed probes of this gate
    failures: FailureCounts = field(default=FailureCounts())


def after_failure(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    """Return the outcome of a failed send, with the gate to close."""
    outcome = _of_transfer(failure, attempt, backoff)
    if outcome.gate is None and outcome.state in {State.WAITING, State.DOUBTFUL}:
        return replace(outcome, gate=_repeated(failure, attempt, backoff, attempt.lane))
    return outcome


def after_failed_lookup(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    """Return the outcome of a failed lookup: the transfer stays doubtful, and a gate may close."""
    company = "/".join(attempt.lane.split("/")[:2])
    gate = _gate_of(failure, attempt, backoff) or _repeated(failure, attempt, backoff, company)
    delay = pause_of(failure, attempt, backoff)
    return Outcome(State.DOUBTFUL, None, f"the lookup failed: {failure}", delay=delay, gate=gate)


def after_stop(*, begun: bool) -> Outcome:
    """Return the outcome of an attempt that a stop interrupted; `begun`: bytes of the document may have been sent."""
    if begun:
        return Outcome(State.DOUBTFUL, None, "docferry stopped while this was being sent")
    return Outcome(State.WAITING, None, "docferry stopped before any of it was sent", costs_a_try=False)


def is_about_document(failure: RemoteError) -> bool:
    """Return whether `give_up_after` applies: the document itself may be the cause of the failure."""
    return failure.scope is None and failure.kind not in _NOT_OF_THE_DOCUMENT


def pause_of(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> float:
    """Return the seconds until the next attempt: the pause that the remote requested, at most a day.

    A requested pause below `initial` is raised to it: otherwise a failing remote with "retry now" gets requests without
    end.
    """
    if failure.retry_after is not None and failure.retry_after >= backoff.initial:
        return min(failure.retry_after, MAX_PAUSE_S)
    return backoff.pause(attempt.tries, attempt.jitter)


def _of_transfer(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    if failure.kind == "signature":
        # A new URL replaces an expired one at once, but cannot fix a wrong signer.
        repeats = attempt.failures.lane - 1
        pause = backoff.pause(repeats, attempt.jitter) if repeats else 0.0
        return Outcome(State.WAITING, None, str(failure), delay=pause, costs_a_try=False)
    gate = _gate_of(failure, attempt, backoff)
    if gate is not None:
        return _behind(gate, failure)
    if failure.kind in {"redo", "storage"}:
        return _again(failure, attempt, backoff)
    if failure.about_document:
        reason = Reason.TOO_LARGE if failure.status == 413 else Reason.REFUSED
        # Codat repeats a stored response for the same key, so a retry by a person needs a new key.
        return Outcome(
            State.HELD, reason, f"{failure}; correct the document, then run `docferry retry`", fresh_key=True
        )
    if failure.body_complete and not _is_refusal(failure):
        return _in_doubt(failure, attempt, backoff)
    return _again(failure, attempt, backoff)


def _is_refusal(failure: RemoteError) -> bool:
    """Return whether the remote itself stated that it did not store the document."""
    status = failure.status or 0
    return failure.kind == "answer" and 400 <= status < 500 and status not in _UNCLEAR


def _in_doubt(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    # After a 5xx or 422, Codat repeats the stored response to the same key for 90 minutes. The response of a proxy was
    # not stored, so the old key still prevents a second copy. The first 409 means that the request is still running; a
    # second 409 is a stored response, too.
    unspent = {429} if attempt.tries > 1 else {409, 429}
    spent = failure.kind == "answer" and failure.status is not None and failure.status not in unspent
    return Outcome(State.DOUBTFUL, None, str(failure), delay=pause_of(failure, attempt, backoff), fresh_key=spent)


def _again(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Outcome:
    return Outcome(
        State.WAITING,
        None,
        str(failure),
        delay=pause_of(failure, attempt, backoff),
        fresh_key=failure.status is not None and (failure.status >= 500 or _is_refusal(failure)),
    )


def _behind(gate: Gate, failure: RemoteError) -> Outcome:
    """Return the outcome of a transfer that waits for a gate, without a fault of the document."""
    return Outcome(
        State.WAITING,
        gate.reason,
        str(failure),
        gate=gate,
        fresh_key=failure.status is not None and failure.status not in {408, 409, 429},
        costs_a_try=failure.kind == "unreachable",
    )


def _gate_of(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff) -> Gate | None:
    """Return the gate that a single failure, or a few consecutive unreachable requests, close."""
    remote = attempt.lane.split("/", 1)[0]
    if failure.kind == "signature":
        return None
    if failure.scope is not None:
        return _closed(failure, attempt, backoff, failure.scope, _reason_of(failure))
    if failure.kind == "redirect":
        return _closed(failure, attempt, backoff, remote, Reason.REDIRECTED)
    if failure.kind == "unreachable" and attempt.failures.unreachable >= UNREACHABLE_LIMIT:
        return _closed(failure, attempt, backoff, remote, Reason.UNREACHABLE)
    return None


def _repeated(failure: RemoteError, attempt: FailedAttempt, backoff: Backoff, key: str) -> Gate | None:
    """Return the gate that consecutive failures close, None if there are too few."""
    counts = attempt.failures
    # The response of a proxy concerns the remote, not a single lane.
    if failure.kind == "not_ours" and counts.stranger >= FAILURE_LIMIT:
        return _closed(failure, attempt, backoff, attempt.lane.split("/", 1)[0], Reason.STRANGER, counts.stranger)
    if counts.lane < FAILURE_LIMIT:
        return None
    reasons = {"not_ours": Reason.STRANGER, "storage": Reason.STORAGE, "signature": Reason.STORAGE}
    return _closed(failure, attempt, backoff, key, reasons.get(failure.kind, Reason.FAILING), counts.lane)


def _closed(
    failure: RemoteError, attempt: FailedAttempt, backoff: Backoff, key: str, reason: Reason, repeats: int = 0
) -> Gate:
    tries = attempt.gate_tries + 1
    probe = replace(attempt, tries=max(tries, repeats))
    until = attempt.now + pause_of(failure, probe, backoff)
    return Gate(key, reason, str(failure), until, tries, attempt.now)


def _reason_of(failure: RemoteError) -> Reason:
    if failure.status == 429:
        return Reason.QUOTA if (failure.retry_after or 0) > QUOTA_PAUSE_S else Reason.RATE
    return _GATE_REASONS.get(failure.status or 0, Reason.CONNECTION)
