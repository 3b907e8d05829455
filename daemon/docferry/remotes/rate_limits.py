"""Waiting for one's turn: so many requests a minute, and so many at once for one company."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from docferry.clock import Clock
from docferry.errors import NotNow
from docferry.remotes.protocol import MayGo, always

#: A minute as we count it: requests that leave evenly may arrive bunched.
_WINDOW: Final = 61.0
#: So often somebody who waits is asked whether there is still a reason to, seconds.
GLANCE: Final = 1.0


class PerMinute:
    """Lets `limit` through in any minute, in the order of asking."""

    def __init__(self, limit: int, clock: Clock, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        self._limit = limit
        self._clock = clock
        self._sleep = sleep
        self._passed: deque[float] = deque()
        self._line = anyio.Lock(fast_acquire=True)  # first come, first served

    async def turn(self, may_go: MayGo = always) -> None:
        """Wait until one more may go, and count it; NotNow when it must not any more."""
        if not self._line.locked() and self._pause() <= 0:
            self._passed.append(self._clock.steady())
            return
        async with self._line:
            while may_go() and (pause := self._pause()) > 0:
                await self._sleep(min(pause, GLANCE))
            if not may_go():
                raise NotNow
            self._passed.append(self._clock.steady())

    def _pause(self) -> float:
        now, passed = self._clock.steady(), self._passed
        while passed and passed[0] <= now - _WINDOW:
            passed.popleft()
        return passed[0] + _WINDOW - now if len(passed) >= self._limit else 0.0


class AtOnce:
    """Lets `limit` be inside for each company, in the order of asking; knows only companies that are busy."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: dict[str, _Door] = {}

    def inside(self, company: str) -> _Door:
        """`async with`: a place for this company."""
        door = self._busy.get(company)
        if door is None:
            door = self._busy[company] = _Door(self._busy, company, self._limit)
        return door


class _Door:
    def __init__(self, busy: dict[str, _Door], company: str, limit: int) -> None:
        self._busy = busy
        self._company = company
        self._places = anyio.Semaphore(limit, fast_acquire=True)
        self._people = 0  # inside or waiting

    async def __aenter__(self) -> None:
        self._people += 1
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait()

    async def __aexit__(self, *_: object) -> None:
        is_awaited = self._places.statistics().tasks_waiting > 0
        self._places.release()
        self._leave()
        if is_awaited:  # the next request goes out before this answer is made anything of
            await cancel_shielded_checkpoint()

    async def _wait(self) -> None:
        try:
            await self._places.acquire()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._people -= 1
        if not self._people:
            del self._busy[self._company]
