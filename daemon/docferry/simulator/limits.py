"""Implement Codat's rate limits: requests a minute by address, a daily quota, concurrency by company."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from docferry.clock import Clock, iso
from docferry.simulator.options import SimulatorOptions

#: The quota in the headers if none is set.
_NO_QUOTA = 10_000_000
_MINUTE = 60.0


class Limits:
    """Count requests, and return the seconds to wait at a limit."""

    def __init__(self, options: SimulatorOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        self._day = ""
        self._used = 0
        self._in_flight: Counter[str] = Counter()
        self.peak_concurrency: Counter[str] = Counter()

    def minute(self, address: str) -> float | None:
        """Count a request of `address`. Return the seconds to wait if it exceeds the limit of 60 seconds."""
        limit = self._options.requests_per_minute
        if not limit:
            return None
        now, recent = self._clock.steady(), self._recent[address]
        while recent and recent[0] <= now - _MINUTE:
            recent.popleft()
        if len(recent) >= limit:
            return recent[0] + _MINUTE - now
        recent.append(now)
        return None

    def day(self) -> float | None:
        """Count a request of today. Return the seconds to wait if the quota is used up."""
        now = self._now()
        self._start_day(now)
        quota = self._options.daily_quota
        if quota is not None and self._used >= quota:
            return (self._midnight(now) - now).total_seconds()
        self._used += 1
        return None

    def acquire(self, company: str) -> bool:
        """Count a concurrent request of a company. Return False if it exceeds the limit."""
        limit = self._options.concurrent_per_company
        if limit and self._in_flight[company] >= limit:
            return False
        self._in_flight[company] += 1
        self.peak_concurrency[company] = max(self.peak_concurrency[company], self._in_flight[company])
        return True

    def release(self, company: str) -> None:
        """Count the end of a concurrent request."""
        self._in_flight[company] -= 1

    def in_flight(self, company: str) -> int:
        """Return the number of running requests of a company."""
        return self._in_flight[company]

    def headers(self) -> dict[str, str]:
        """Return the rate headers of every response."""
        now = self._now()
        self._start_day(now)
        quota = _NO_QUOTA if self._options.daily_quota is None else self._options.daily_quota
        midnight = self._midnight(now)
        reset = iso(midnight.timestamp()) if self._options.reset_format == "iso" else format_datetime(midnight, True)
        return {
            "X-Rate-Limit-Limit": str(quota),
            "X-Rate-Limit-Remaining": str(max(0, quota - self._used)),
            "X-Rate-Limit-Reset": reset or "",
        }

    def reset(self) -> None:
        """Reset all counts."""
        self._recent.clear()
        self._used = 0
        self.peak_concurrency.clear()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now() + self._options.date_skew, UTC)

    def _start_day(self, now: datetime) -> None:
        if (today := now.date().isoformat()) != self._day:
            self._day, self._used = today, 0

    @staticmethod
    def _midnight(now: datetime) -> datetime:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
