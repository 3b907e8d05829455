"""Limit the requests in a minute, and the requests in flight for one company."""

from __future__ import annotations

from collections import deque
from typing import Final, Self

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from docferry.clock import Clock
from docferry.errors import NotNow
from docferry.remotes.protocol import ALWAYS_PERMITTED, SendPermit

#: A minute plus a margin, seconds: requests sent evenly may arrive bunched.
_WINDOW_S: Final = 61.0
#: The interval at which a waiting request checks its permit, seconds.
PERMIT_POLL_S: Final = 1.0
#: Up to this number, companies without requests are kept: many are free only for a moment between two requests.
_KEPT_COMPANIES: Final = 100


class MinuteLimiter:
    """Allow `limit` requests in any minute, first come, first served."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._passed: deque[float] = deque()  # steady seconds
        self._queue = anyio.Lock(fast_acquire=True)

    async def acquire(self, permit: SendPermit = ALWAYS_PERMITTED) -> None:
        """Wait until one more request is allowed, and count it. Raises NotNow if the permit was withdrawn."""
        if not self._queue.locked() and self._pause() <= 0:
            self._passed.append(self._clock.steady())
            return
        async with self._queue:
            while permit.is_granted and (pause := self._pause()) > 0:
                await self._clock.sleep(min(pause, PERMIT_POLL_S))
            if not permit.is_granted:
                raise NotNow
            self._passed.append(self._clock.steady())

    def _pause(self) -> float:
        now, passed = self._clock.steady(), self._passed
        while passed and passed[0] <= now - _WINDOW_S:
            passed.popleft()
        return passed[0] + _WINDOW_S - now if len(passed) >= self._limit else 0.0


class CompanyLimiter:
    """Allow `limit` requests in flight for each company, first come, first served."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: dict[str, _CompanySlots] = {}  # the companies with requests, and some of the others

    def slot(self, company: str) -> _CompanySlots:
        """Return a context manager that holds one slot of a company."""
        slots = self._busy.get(company)
        if slots is None:
            slots = self._busy[company] = _CompanySlots(self._busy, company, self._limit)
        return slots


class _CompanySlots:
    def __init__(self, busy: dict[str, _CompanySlots], company: str, limit: int) -> None:
        self._busy = busy
        self._company = company
        self._limit = limit
        self._slots = anyio.Semaphore(limit, fast_acquire=True)
        self._users = 0  # holding a slot, or waiting for one

    async def __aenter__(self) -> Self:
        self._users += 1
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        is_awaited = self._users > self._limit
        self._slots.release()
        self._leave()
        if is_awaited:  # the next request starts before this response is processed
            await cancel_shielded_checkpoint()

    async def _wait(self) -> None:
        try:
            await self._slots.acquire()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and len(self._busy) > _KEPT_COMPANIES:
            del self._busy[self._company]
