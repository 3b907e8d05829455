"""Test the projected finish: the slowest of rate, limit, quota and gates decides."""

from __future__ import annotations

import pytest

from docferry.clock import TurnableClock
from docferry.projection import DAY_S, Backlog, finish
from docferry.telemetry import Delivery, Telemetry

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("backlog", "expected"),
    [
        (Backlog(0, 1.0, 60), None),
        (Backlog(600, None, 60), NOW + 600),
        (Backlog(600, 0.5, 60), NOW + 1200),
        (Backlog(600, 50.0, 60), NOW + 600),
        (Backlog(600, None, None), None),
        (Backlog(600, 1.0, None), NOW + 600),
        (Backlog(600, 1.0, 60, closed_until=NOW + 100), NOW + 700),
        (Backlog(600, 1.0, 60, closed_until=NOW - 100), NOW + 600),
        (Backlog(600, 1.0, 60, needs_person=True), None),
        # 400 of 600 requests are left today; the rest goes after the reset.
        (Backlog(600, 1.0, 60, quota_limit=1000, quota_left=400, quota_reset=NOW + 5000), NOW + 5000 + 200),
        (Backlog(600, 1.0, 60, quota_limit=1000, quota_left=700, quota_reset=NOW + 5000), NOW + 600),
        # 2,500 more than today: two full days, and then 500 on the third.
        (
            Backlog(2600, 1.0, 60, quota_limit=1000, quota_left=100, quota_reset=NOW + 5000),
            NOW + 5000 + 2 * DAY_S + 500,
        ),
        # 20 documents a request: 30 requests for 600 documents.
        (Backlog(600, 1.0, 60, batch=20, quota_limit=1000, quota_left=30, quota_reset=NOW + 5000), NOW + 600),
        # Yesterday's quota says nothing.
        (Backlog(600, 1.0, 60, quota_limit=1000, quota_left=0, quota_reset=NOW - 1), NOW + 600),
    ],
)
def test_the_slowest_decides(backlog: Backlog, expected: float | None) -> None:
    assert finish(backlog, NOW) == expected


def test_the_rate_is_that_of_the_last_ten_minutes() -> None:
    clock = TurnableClock()
    telemetry = Telemetry(clock)
    assert telemetry.rate("codat") is None
    for _ in range(100):
        telemetry.uploaded(Delivery("bank", "codat", 1, 0.0))
        clock.turn(1.0)
    assert telemetry.rate("codat") == pytest.approx(1.0)
    assert telemetry.rate("wootiv") is None
    clock.turn(700.0)
    assert telemetry.rate("codat") is None
