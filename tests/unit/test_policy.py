"""Test the outcome of each failure, and the length of pauses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.errors import ErrorDetails, RemoteError
from docferry.model import Outcome, State
from docferry.policy import (
    FAILURE_LIMIT,
    MAX_PAUSE_S,
    QUOTA_PAUSE_S,
    UNREACHABLE_LIMIT,
    Backoff,
    FailedAttempt,
    FailureCounts,
    after_failed_lookup,
    after_failure,
    after_stop,
    pause_of,
)

LANE = "codat/acme/bank"
BACKOFF = Backoff(0.5, 1.5, 60.0)
NOW = 1000.0


def failed(**failure: Any) -> RemoteError:
    """Return a failure. The other fields of the error response are keyword arguments."""
    details = {key: failure.pop(key) for key in ("retry_after", "should_retry", "about_document") if key in failure}
    return RemoteError("why", details=ErrorDetails(**details), **failure)


def outcome(*, tries: int = 1, failures: FailureCounts | None = None, gate_tries: int = 0, **failure: Any) -> Outcome:
    attempt = FailedAttempt(LANE, tries, NOW, 0.0, gate_tries, failures or FailureCounts())
    return after_failure(failed(**failure), attempt, BACKOFF)


#: the failure → state, reason, whether the next request has a new key
TABLE: list[tuple[dict[str, Any], State, str | None, bool]] = [
    # nothing was handed over: again
    ({"kind": "unreachable"}, State.WAITING, None, False),
    ({"kind": "timeout"}, State.WAITING, None, False),
    ({"kind": "cut"}, State.WAITING, None, False),
    ({"kind": "not_ours", "status": 200}, State.WAITING, None, False),
    ({"status": 500}, State.WAITING, None, True),
    ({"status": 408}, State.WAITING, None, False),
    ({"kind": "redo", "status": 200, "body_complete": True}, State.WAITING, None, False),
    # it was handed over and nobody knows: a doubt
    ({"kind": "timeout", "body_complete": True}, State.DOUBTFUL, None, False),
    ({"kind": "cut", "body_complete": True}, State.DOUBTFUL, None, False),
    ({"kind": "not_ours", "status": 200, "body_complete": True}, State.DOUBTFUL, None, False),
    ({"kind": "not_ours", "status": 502, "body_complete": True}, State.DOUBTFUL, None, False),
    ({"status": 500, "body_complete": True}, State.DOUBTFUL, None, True),
    ({"status": 503, "body_complete": True, "should_retry": False}, State.DOUBTFUL, None, True),
    # a response of another server, with any status: the document may have been passed on
    ({"kind": "not_ours", "status": 400, "body_complete": True}, State.DOUBTFUL, None, False),
    ({"kind": "not_ours", "status": 413}, State.WAITING, None, False),
    # the remote's own refusal of the request, not of the document
    ({"status": 405, "body_complete": True}, State.WAITING, None, True),
    ({"status": 501, "body_complete": True}, State.DOUBTFUL, None, True),
    # the storage refuses its account, bucket, signer or quota
    ({"kind": "storage", "status": 403, "body_complete": True}, State.WAITING, None, False),
    ({"status": 408, "body_complete": True}, State.DOUBTFUL, None, True),
    ({"status": 409, "body_complete": True}, State.DOUBTFUL, None, False),
    ({"status": 422, "body_complete": True}, State.DOUBTFUL, None, True),
    # a clear no
    ({"status": 400, "body_complete": True, "about_document": True}, State.HELD, "refused", True),
    ({"status": 413, "about_document": True}, State.HELD, "too_large", True),
    ({"status": 422, "body_complete": True, "about_document": True}, State.HELD, "refused", True),
    # everybody's matter
    ({"status": 401, "scope": "codat"}, State.WAITING, "key", True),
    ({"status": 402, "scope": "codat"}, State.WAITING, "account", True),
    ({"status": 403, "scope": "codat/acme", "body_complete": True}, State.WAITING, "company", True),
    ({"status": 404, "scope": LANE, "body_complete": True}, State.WAITING, "connection", True),
    ({"status": 429, "scope": "codat", "retry_after": 3.0}, State.WAITING, "rate", False),
    ({"status": 429, "scope": "codat", "retry_after": QUOTA_PAUSE_S + 1}, State.WAITING, "quota", False),
    ({"kind": "redirect", "status": 307}, State.WAITING, "redirected", True),
]


@pytest.mark.parametrize(("failure", "state", "reason", "fresh_key"), TABLE, ids=lambda value: str(value)[:60])
def test_what_a_failure_means(failure: dict[str, Any], state: State, reason: str | None, fresh_key: bool) -> None:
    found = outcome(**failure)
    assert (found.state, found.reason, found.fresh_key) == (state, reason, fresh_key)


@pytest.mark.parametrize("failure", [row[0] for row in TABLE], ids=str)
def test_a_gate_holds_no_document_and_costs_it_no_try(failure: dict[str, Any]) -> None:
    found = outcome(**failure)
    everybodys = "scope" in failure or failure.get("kind") == "redirect"
    assert (found.gate is not None) == everybodys
    if found.gate is not None:
        assert (found.state, found.costs_a_try) == (State.WAITING, False)
        assert found.gate.key == failure.get("scope", "codat")
        assert found.gate.until > NOW


@pytest.mark.parametrize("failure", [row[0] for row in TABLE], ids=str)
@pytest.mark.parametrize("wish", [None, 0.0, 1e9])
def test_nothing_is_tried_again_at_once_without_end(failure: dict[str, Any], wish: float | None) -> None:
    found = outcome(**{**failure, "retry_after": wish}, failures=FailureCounts(lane=2))
    rest = found.delay if found.gate is None else found.gate.until - NOW
    assert found.state is State.HELD or 0.25 <= rest <= MAX_PAUSE_S


def test_a_stop_before_the_first_byte_is_no_doubt_and_costs_no_try() -> None:
    before, within = after_stop(begun=False), after_stop(begun=True)
    assert (before.state, before.costs_a_try, before.delay) == (State.WAITING, False, 0.0)
    assert within.state is State.DOUBTFUL


def test_an_expired_signature_costs_nothing_once_and_does_not_spin() -> None:
    first = outcome(kind="signature", status=403)
    assert (first.state, first.delay, first.costs_a_try) == (State.WAITING, 0.0, False)
    assert outcome(kind="signature", status=403, failures=FailureCounts(lane=4)).delay > 0.5


def test_what_is_refused_again_with_409_was_kept() -> None:
    assert outcome(status=409, body_complete=True, tries=2).fresh_key


def test_a_remote_that_is_away_is_closed_for_all_after_some_strikes() -> None:
    assert outcome(kind="unreachable", failures=FailureCounts(unreachable=UNREACHABLE_LIMIT - 1)).gate is None
    gate = outcome(kind="unreachable", failures=FailureCounts(unreachable=UNREACHABLE_LIMIT)).gate
    assert gate is not None
    assert (gate.key, gate.reason) == ("codat", "unreachable")


@pytest.mark.parametrize("body_complete", [True, False])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("cut", "failing"), ("timeout", "failing"), ("storage", "storage"), ("not_ours", "stranger"), ("redo", "failing")],
)
def test_failures_in_a_row_close_a_lane(kind: str, reason: str, body_complete: bool) -> None:
    few, many = FailureCounts(lane=FAILURE_LIMIT - 1), FailureCounts(lane=FAILURE_LIMIT)
    assert outcome(kind=kind, body_complete=body_complete, failures=few).gate is None
    found = outcome(kind=kind, body_complete=body_complete, failures=many)
    assert found.gate is not None
    assert (found.gate.key, found.gate.reason) == (LANE, reason)
    doubtful = body_complete and kind not in ("storage", "redo")
    assert found.state is (State.DOUBTFUL if doubtful else State.WAITING)


def test_signatures_that_are_refused_in_a_row_close_the_storage() -> None:
    gate = outcome(kind="signature", status=403, failures=FailureCounts(lane=FAILURE_LIMIT)).gate
    assert gate is not None
    assert gate.reason == "storage"


def test_a_stranger_on_the_way_closes_the_remote_for_all_lanes() -> None:
    found = outcome(kind="not_ours", status=502, failures=FailureCounts(lane=1, stranger=FAILURE_LIMIT))
    assert found.gate is not None
    assert (found.gate.key, found.gate.reason) == ("codat", "stranger")


def test_a_failed_lookup_closes_no_way_for_sends() -> None:
    """Lists belong to companies: the gate is the company's, and only lookups obey it."""
    attempt = FailedAttempt(LANE, 1, NOW, 0.0, failures=FailureCounts(lane=FAILURE_LIMIT))
    found = after_failed_lookup(failed(status=500), attempt, BACKOFF)
    assert found.state is State.DOUBTFUL
    assert found.gate is not None
    assert (found.gate.key, found.gate.reason) == ("codat/acme", "failing")


def test_a_gate_that_is_probed_in_vain_waits_longer() -> None:
    waits = [outcome(status=401, scope="codat", gate_tries=tries).gate for tries in range(20)]
    until = [gate.until - NOW for gate in waits if gate is not None]
    assert until == sorted(until)
    assert until[0] == 0.25
    assert until[-1] == 30.0


@given(st.integers(-3, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0.001, 10), st.floats(1, 5))
def test_a_pause_is_never_nothing_nor_longer_than_the_longest(
    tries: int, jitter: float, initial: float, factor: float
) -> None:
    backoff = Backoff(initial, factor, 60.0)
    pause = backoff.pause(tries, jitter)
    assert min(initial, 60.0) / 2 <= pause <= 60.0
    assert backoff.pause(tries + 1, jitter) >= pause


@given(st.one_of(st.none(), st.floats(-1e12, 1e12)), st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_a_wish_is_obeyed_up_to_a_day(wish: float | None, tries: int, jitter: float) -> None:
    pause = pause_of(failed(retry_after=wish), FailedAttempt(LANE, tries, NOW, jitter), BACKOFF)
    assert 0.25 <= pause <= MAX_PAUSE_S
    if wish is not None:
        assert pause >= min(wish, MAX_PAUSE_S)
