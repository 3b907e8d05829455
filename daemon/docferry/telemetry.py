"""Define the events that metrics count. Without `[metrics]` only the throughput is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from docferry.clock import Clock
from docferry.model import Source, UploadItem

#: The period of the measured rate, seconds.
SPEED_WINDOW_S: Final = 600.0
#: The smallest document whose sent part is counted, bytes; smaller ones are sent in one step.
LARGE: Final = 1024 * 1024
#: The shortest period that gives a rate, seconds: a burst of one second says little about an hour.
_SHORTEST_S: Final = 10.0


class Throughput:
    """Measure the recent documents a second of one remote, in buckets of a minute."""

    def __init__(self) -> None:
        self._minutes: deque[list[float]] = deque()  # [steady seconds of the first upload, uploads]

    def add(self, now: float, documents: int = 1) -> None:
        """Count uploads that ended at `now`, steady seconds."""
        if not self._minutes or now - self._minutes[-1][0] >= 60.0:
            self._minutes.append([now, 0])
        self._minutes[-1][1] += documents

    def rate(self, now: float) -> float | None:
        """Return documents a second; None without an upload within `SPEED_WINDOW_S`."""
        while self._minutes and self._minutes[0][0] < now - SPEED_WINDOW_S:
            self._minutes.popleft()
        if not self._minutes:
            return None
        return sum(count for _, count in self._minutes) / max(now - self._minutes[0][0], _SHORTEST_S)


class Delivery(Struct, frozen=True):
    """Describe a document that arrived, `delay` seconds after it was due."""

    mapping: str
    remote: str
    size: int
    delay: float


class CountedSource(Source):
    """Count the bytes of a source that were given to the connection."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._given = 0
        self._elsewhere: Callable[[], int] | None = None

    @property
    def given(self) -> int:
        """Return the bytes given to the connection so far."""
        if self._elsewhere is not None:
            self._given = min(max(self._elsewhere(), 0), self.size)
        return self._given

    def follow(self, given: Callable[[], int] | None) -> None:
        """Show the progress of another process; None: keep its last value."""
        self._elsewhere = given

    @property
    def size(self) -> int:
        """Return the size of the document in bytes."""
        return self.source.size

    @property
    def md5(self) -> str | None:
        """Return the hex MD5 of the bytes, None unless requested."""
        return self.source.md5

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks of the source; a block counts when the next is requested."""
        self._given = 0
        blocks = self.source.blocks()
        try:
            async for block in blocks:
                yield block
                self._given += len(block)
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()


class Request(Struct, frozen=True, eq=False):
    """Describe a request with documents in flight, and its start in wall seconds."""

    remote: str
    items: Sequence[UploadItem]
    since: float

    @property
    def size(self) -> int:
        """Return the size of its documents in bytes."""
        return sum(item.source.size for item in self.items)

    @property
    def given(self) -> int:
        """Return the bytes of its documents given to the connection so far."""
        return sum(item.source.given for item in self.items if isinstance(item.source, CountedSource))


class Telemetry:
    """Receive events. This base class keeps only the throughput, for `status`; the metrics add counters."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._throughput: dict[str, Throughput] = {}
        self._in_flight: list[Request] = []

    def rate(self, remote: str) -> float | None:
        """Return the recent documents a second of a remote; None if there were none."""
        found = self._throughput.get(remote)
        return None if found is None else found.rate(self._clock.steady())

    def uploaded(self, delivery: Delivery) -> None:
        """Record that a document arrived."""
        self._throughput.setdefault(delivery.remote, Throughput()).add(self._clock.steady())

    @contextmanager
    def sending(self, remote: str, items: Sequence[UploadItem]) -> Iterator[Sequence[UploadItem]]:
        """Count a request with `items` as in flight; observe its duration when it gets a receipt.

        Yields:
            The items, with large sources replaced by counting ones.
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
        """Return the requests in flight, the oldest first."""
        return tuple(self._in_flight)

    def attempt_ended(self, remote: str, outcome: str) -> None:
        """Record the end of an attempt; `outcome` is the new state of the transfer."""

    def request_ended(self, remote: str, seconds: float) -> None:
        """Record that a request with documents got its receipt after this many seconds."""

    def downloaded(self, mapping: str) -> None:
        """Record that a file was downloaded into its folder."""

    def doubt_resolved(self, remote: str, proof: str) -> None:
        """Record that a doubt was resolved. `proof`: the proof of arrival, or "absent"."""

    def alert_failed(self, receiver: str) -> None:
        """Record that a receiver did not accept an alert."""
