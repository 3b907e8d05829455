"""What one process has in its hands: loads that are ready, on their way, and in the books; counted as they move."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from docferry.work.load import Load


class Hands:
    """Every load is ready, running or booking. How many run is asked for each load that might start: it is counted."""

    def __init__(self) -> None:
        self.ready: deque[Load] = deque()
        self.running: set[Load] = set()
        self.booking: set[Load] = set()  # taken by the remote, and not written down yet: they keep no worker
        self._of_remote: Counter[str] = Counter()  # those that run
        self._of_company: Counter[str] = Counter()
        self._sending: Counter[str] = Counter()  # those that run and do not ask, by lane

    @property
    def are_empty(self) -> bool:
        return not (self.ready or self.running or self.booking)

    def add(self, loads: Iterable[Load]) -> None:
        self.ready.extend(loads)

    def start(self, load: Load) -> None:
        self.ready.remove(load)
        self.running.add(load)
        self._count(load, 1)

    def taken(self, load: Load) -> None:
        """The remote has it."""
        self.running.remove(load)
        self.booking.add(load)
        self._count(load, -1)

    def end(self, load: Load) -> None:
        if load in self.booking:
            self.booking.remove(load)
        else:
            self.running.remove(load)
            self._count(load, -1)

    def running_at(self, remote: str) -> int:
        return self._of_remote[remote]

    def running_in(self, company: str) -> int:
        return self._of_company[company]

    def sends_in(self, lane: str) -> bool:
        """Whether something of this lane is being sent."""
        return self._sending[lane] > 0

    def by_lane(self) -> dict[str, int]:
        """The loads that still need a worker."""
        return Counter(load.lane for load in self._unfinished())

    def asking(self) -> set[str]:
        """The companies that are being asked about doubts."""
        return {load.company for load in self._unfinished() if load.asks}

    def _unfinished(self) -> Iterator[Load]:
        yield from self.ready
        yield from self.running

    def _count(self, load: Load, change: int) -> None:
        self._of_remote[load.remote] += change
        self._of_company[load.company] += change
        if not load.asks:
            self._sending[load.lane] += change
