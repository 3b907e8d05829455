"""Codat's rate limits: requests a minute by address, a daily quota, and requests at once by company."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from docferry.clock import Clock, iso
from docferry.simulator.options import SimulatorOptions

#: What the headers say when no quota is set.
_NO_QUOTA = 10_000_000
_MINUTE = 60.0


class Limits:
    """Counts, and says after how many seconds to come again."""

    def __init__(self, options: SimulatorOptions, clock: Clock) -> None:
        self._switches = options
        self._clock = clock
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        self._day = ""
        self._used = 0
        self._at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()

    def minute(self, address: str) -> float | None:
        """Count a request of `address`; seconds to wait when it is one too many in sixty seconds."""
        limit = self._switches.requests_per_minute
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
        """Count a request of today; seconds to wait when the quota is used up."""
        now = self._now()
        self._turn(now)
        quota = self._switches.daily_quota
        if quota is not None and self._used >= quota:
            return (self._midnight(now) - now).total_seconds()
        self._used += 1
        return None

    def enter(self, company: str) -> bool:
        """Count a request among those at once; False when it is one too many."""
        limit = self._switches.concurrent_per_company
        if limit and self._at_once[company] >= limit:
            return False
        self._at_once[company] += 1
        self.most_at_once[company] = max(self.most_at_once[company], self._at_once[company])
        return True

    def leave(self, company: str) -> None:
        self._at_once[company] -= 1

    def at_once(self, company: str) -> int:
        """How many requests of a company are running."""
        return self._at_once[company]

    def headers(self) -> dict[str, str]:
        """The rate headers of every answer."""
        now = self._now()
        self._turn(now)
        quota = _NO_QUOTA if self._switches.daily_quota is None else self._switches.daily_quota
        midnight = self._midnight(now)
        reset = iso(midnight.timestamp()) if self._switches.reset_format == "iso" else format_datetime(midnight, True)
        return {
            "X-Rate-Limit-Limit": str(quota),
            "X-Rate-Limit-Remaining": str(max(0, quota - self._used)),
            "X-Rate-Limit-Reset": reset or "",
        }

    def reset(self) -> None:
        self._recent.clear()
        self._used = 0
        self.most_at_once.clear()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now() + self._switches.date_skew, UTC)

    def _turn(self, now: datetime) -> None:
        if (today := now.date().isoformat()) != self._day:
            self._day, self._used = today, 0

    @staticmethod
    def _midnight(now: datetime) -> datetime:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
