"""Compute when a remote will have all due documents, from rate limit, quota and measured rate. Pure."""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

DAY_S: Final = 86_400.0


class Backlog(Struct, frozen=True):
    """Hold the due documents of one remote and the limits that delay them. Times are wall seconds."""

    documents: int
    rate: float | None  # documents a second, measured recently; None: no upload was measured
    per_minute: float | None  # documents a minute that the rate limit allows; None: no limit
    batch: int = 1  # documents in one request
    quota_limit: int | None = None  # requests a day
    quota_left: float | None = None  # requests for new documents, without the reserve
    quota_reset: float | None = None
    closed_until: float | None = None  # end time of a gate of the whole remote
    needs_person: bool = False  # a gate of the whole remote does not open by itself


def finish(backlog: Backlog, now: float) -> float | None:
    """Return the time at which the last due document will have arrived, None if nothing is due or it is unknown."""
    if not backlog.documents or backlog.needs_person:
        return None
    limit = math.inf if backlog.per_minute is None else backlog.per_minute / 60.0
    rate = min(limit, backlog.rate or limit)
    if not rate or math.isinf(rate):
        return None
    start = max(now, backlog.closed_until or now)
    return _within_quota(backlog, start, backlog.documents / rate)


def _within_quota(backlog: Backlog, start: float, seconds: float) -> float:
    """Add the days of waiting for the quota; `seconds` is the duration of the uploads alone."""
    left, reset, limit = backlog.quota_left, backlog.quota_reset, backlog.quota_limit
    if left is None or reset is None or not limit or reset <= start:
        return start + seconds
    requests = math.ceil(backlog.documents / backlog.batch)
    if requests <= left:
        return start + seconds
    beyond = requests - max(left, 0.0)
    full_days, last = divmod(beyond, limit)
    if not last:
        full_days, last = full_days - 1, limit
    return reset + full_days * DAY_S + seconds * last / requests
