"""Define the events that metrics count. Without `[metrics]` only the throughput is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from docferry.clock import Clock
from docferry.model import Source, UploadItem

#: The measured rate is that of the uploads within this time, seconds.
SPEED_WINDOW_S: Final = 600.0
#: Bytes above which the sent part of a document is counted; smaller documents go at once.
LARGE: Final = 1024 * 1024
#: The shortest time that gives a rate, seconds: a burst of one second says little about an hour.
_SHORTEST_S: Final = 10.0


class Throughput:
    """Documents a second that one remote took lately, kept by the minute."""

    def __init__(self) -> None:
        self._minutes: deque[list[float]] = deque()  # [steady seconds of the first upload, uploads]

    def add(self, now: float, documents: int = 1) -> None:
        """Count uploads that ended at `now`, steady seconds."""
        if not self._minutes or now - self._minutes[-1][0] >= 60.0:
            self._minutes.append([now, 0])
        self._minutes[-1][1] += documents

    def rate(self, now: float) -> float | None:
        """Documents a second; None when nothing was uploaded within `SPEED_WINDOW_S`."""
        while self._minutes and self._minutes[0][0] < now - SPEED_WINDOW_S:
            self._minutes.popleft()
        if not self._minutes:
            return None
        return sum(count for _, count in self._minutes) / max(now - self._minutes[0][0], _SHORTEST_S)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A document that arrived, `delay` seconds after it was due."""

    mapping: str
    remote: str
    size: int
    delay: float


class CountedSource(Source):
    """A source that counts the bytes that were given to the connection."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._given = 0
        self._elsewhere: Callable[[], int] | None = None

    @property
    def given(self) -> int:
        """Bytes that were given to the connection so far."""
        if self._elsewhere is not None:
            self._given = min(max(self._elsewhere(), 0), self.size)
        return self._given

    def follow(self, given: Callable[[], int] | None) -> None:
        """Show what another process has given to the connection; None: what it had given until now."""
        self._elsewhere = given

    @property
    def size(self) -> int:
        """Bytes of the document."""
        return self.source.size

    @property
    def md5(self) -> str | None:
        """Hex MD5 of the bytes, if it was asked for."""
        return self.source.md5

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks of the source; one counts when the next is asked for."""
        self._given = 0
        blocks = self.source.blocks()
        try:
            async for block in blocks:
                yield block
                self._given += len(block)
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request with documents that is in flight, and its start in wall seconds."""

    remote: str
    items: Sequence[UploadItem]
    since: float

    @property
    def size(self) -> int:
        """Bytes of its documents."""
        return sum(item.source.size for item in self.items)

    @property
    def given(self) -> int:
        """Bytes of them that were given to the connection so far."""
        return sum(item.source.given for item in self.items if isinstance(item.source, CountedSource))


class Telemetry:
    """Takes events. This one keeps throughput alone, which `status` needs; the metrics add counters to it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._throughput: dict[str, Throughput] = {}
        self._in_flight: list[Request] = []

    def rate(self, remote: str) -> float | None:
        """Documents a second that a remote took lately; None when it took none."""
        found = self._throughput.get(remote)
        return None if found is None else found.rate(self._clock.steady())

    def uploaded(self, delivery: Delivery) -> None:
        """A document arrived."""
        self._throughput.setdefault(delivery.remote, Throughput()).add(self._clock.steady())

    @contextmanager
    def sending(self, remote: str, items: Sequence[UploadItem]) -> Iterator[Sequence[UploadItem]]:
        """Count a request that carries `items` as in flight; its time is observed when it gets a receipt.

        Yields:
            The items, with large sources replaced by ones that count how much was read of them.
        """
        counted = [
            replace(item, source=CountedSource(item.source)) if item.source.size > LARGE else item for item in items
        ]
        request = Request(remote, counted, self._clock.now())
        began = self._clock.steady()
        self._in_flight.append(request)
        try:
            yield counted
            self.request_ended(remote, self._clock.steady() - began)
        finally:
            self._in_flight.remove(request)

    @property
    def requests(self) -> Sequence[Request]:
        """The requests in flight, the oldest first."""
        return tuple(self._in_flight)

    def attempt_ended(self, remote: str, outcome: str) -> None:
        """An attempt ended; `outcome` is the state that the transfer got."""

    def request_ended(self, remote: str, seconds: float) -> None:
        """A request with documents got its receipt after so many seconds."""

    def downloaded(self, mapping: str) -> None:
        """A file came down and is in its folder."""

    def doubt_resolved(self, remote: str, proof: str) -> None:
        """A doubt ended. `proof`: what showed that the document arrived, or "absent"."""

    def alert_failed(self, receiver: str) -> None:
        """A receiver did not take an alert."""
