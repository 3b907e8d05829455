"""Count the batches of one process from claim to outcome, and grant the slots for requests in flight."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import anyio
from msgspec import Struct

from docferry.clock import Clock
from docferry.upload.batch import Batch

#: Prefetched batches for each worker. While the worker sends, the next files are opened and their intent is committed,
#: in few large steps.
PREFETCH = 4
#: The period whose accepted batches limit prefetching, seconds. So opened files are sent soon, and slow remotes get no
#: prefetch.
PREFETCH_WINDOW_S = 0.2
#: The time after which an opening batch counts as hanging, seconds: no worker waits for it.
OPEN_STALL_S = 1.0


class LaneFailures(Protocol):
    """Report the lanes with failing requests."""

    def is_failing(self, lane: str) -> bool:
        """Return whether a lane gets one batch at a time."""


class SlotLimits(Struct, frozen=True):
    """Hold the limits of one process."""

    workers: int  # requests in flight
    batch_size: int  # the largest number of documents in one request
    per_company: Mapping[str, int]  # requests in flight for one company, by remote
    serves_several: bool  # whether the mappings lead to more than one company


class Slots:
    """Move each batch through ready, opening, prefetched, running and recording.

    A running batch has a slot. A prefetched batch is ready to send and waits for a slot. A recording batch was accepted
    by the remote and has no slot; only its outcome is not committed yet.
    """

    def __init__(self, clock: Clock, limits: SlotLimits, failures: LaneFailures) -> None:
        self._clock = clock
        self._limits = limits
        self._failures = failures
        self.workers = limits.workers
        self.ready: deque[Batch] = deque()
        self.running: set[Batch] = set()
        self._opening: dict[Batch, float] = {}  # with the steady second of their begin
        self._prefetched: dict[Batch, anyio.Event] = {}  # in the order of arrival
        self._recording: set[Batch] = set()
        self._started = _BatchCount()  # opening, prefetched or running
        self._sending = _BatchCount()  # running
        most = max(1, PREFETCH * limits.workers // limits.batch_size)
        self._accepted = deque[float](maxlen=most)  # the steady seconds of the latest accepted batches

    @property
    def is_empty(self) -> bool:
        """Return whether no batch is held."""
        return not self.ready and self.is_idle

    @property
    def is_idle(self) -> bool:
        """Return whether every started batch has ended."""
        return not (self._opening or self._prefetched or self.running or self._recording)

    @property
    def has_free_worker(self) -> bool:
        """Return whether a worker is idle and not needed by an opening batch."""
        free = self.workers - len(self.running)
        if free <= 0 or len(self._opening) < free:  # called several times a batch, and mostly true
            return free > 0
        before = self._clock.steady() - OPEN_STALL_S
        if next(iter(self._opening.values())) > before:  # the oldest
            return False
        return sum(since > before for since in self._opening.values()) < free

    @property
    def prefetched(self) -> list[Batch]:
        """Return the batches that wait for a slot, in the order of arrival."""
        return list(self._prefetched)

    def add(self, batches: Iterable[Batch]) -> None:
        """Add claimed batches to the ready ones."""
        self.ready.extend(batches)

    # -- from ready to ended -------------------------------------------------------------------------------------

    def is_blocked(self, batch: Batch) -> bool:
        """Return whether the lane or the company of a batch is at its limit, so that others may go first."""
        return self._waits_for_lane(batch, self._started) or (
            self._limits.serves_several and self._company_is_full(batch)
        )

    def may_start(self, batch: Batch) -> bool:
        """Return whether a ready batch may open its files now."""
        if self._waits_for_lane(batch, self._started) or self._company_is_full(batch):
            return False
        return self.has_free_worker or len(self._opening) + len(self._prefetched) < self._prefetch_limit

    def start(self, batch: Batch) -> None:
        """Move a batch from ready to opening."""
        self.ready.remove(batch)
        self._opening[batch] = self._clock.steady()
        self._started.add(batch, 1)

    async def acquire(self, batch: Batch) -> bool:
        """Wait for a slot for an opened batch; return False after `reject`."""
        del self._opening[batch]
        decided = self._prefetched[batch] = anyio.Event()
        # Earlier batches were offered the slot when it became free, so this one does not overtake them.
        if self._may_run(batch):
            self._run(batch)
        else:
            await decided.wait()
        return batch in self.running

    def grant_free_slots(self) -> None:
        """Give the free slots to prefetched batches, in the order of arrival."""
        for batch in self.prefetched if len(self.running) < self.workers else ():
            if self._may_run(batch):
                self._run(batch)

    def reject(self, batch: Batch) -> None:
        """End the wait of a prefetched batch without a slot."""
        self._prefetched.pop(batch).set()
        self._opening[batch] = self._clock.steady()  # until `end`

    def release_early(self, batch: Batch) -> None:
        """Free the slot of a batch that the remote has accepted, before its outcome is committed."""
        self.running.remove(batch)
        self._sending.add(batch, -1)
        self._started.add(batch, -1)
        self._recording.add(batch)
        self._accepted.append(self._clock.steady())

    def end(self, batch: Batch) -> None:
        """Remove a started batch."""
        if batch in self._recording:
            self._recording.remove(batch)
            return
        self._started.add(batch, -1)
        if batch in self.running:
            self.running.remove(batch)
            self._sending.add(batch, -1)
        else:
            self._prefetched.pop(batch, None)
            self._opening.pop(batch, None)

    # -- counts --------------------------------------------------------------------------------------------------

    def running_at(self, remote: str) -> int:
        """Return the number of running batches of a remote."""
        return self._sending.by_remote[remote]

    def started_at(self, remote: str) -> int:
        """Return the number of opening, prefetched and running batches of a remote."""
        return self._started.by_remote[remote]

    def by_lane(self) -> dict[str, int]:
        """Return the number of batches with a slot or waiting for one, by lane."""
        return Counter(batch.lane for batch in self._unfinished())

    def in_lookup(self) -> set[str]:
        """Return the companies with a running lookup."""
        return {batch.company for batch in self._unfinished() if batch.is_lookup}

    def _unfinished(self) -> Iterator[Batch]:
        yield from self.ready
        yield from self._opening
        yield from self._prefetched
        yield from self.running

    def _run(self, batch: Batch) -> None:
        self.running.add(batch)
        self._sending.add(batch, 1)
        self._prefetched.pop(batch).set()

    def _may_run(self, batch: Batch) -> bool:
        if len(self.running) >= self.workers or self._waits_for_lane(batch, self._sending):
            return False
        return self._sending.by_company[batch.company] < self._company_limit(batch)

    def _waits_for_lane(self, batch: Batch, count: _BatchCount) -> bool:
        return not batch.is_lookup and count.sends_by_lane[batch.lane] > 0 and self._failures.is_failing(batch.lane)

    def _company_is_full(self, batch: Batch) -> bool:
        prefetch = self._prefetch_limit // 2 if self._limits.serves_several else self._prefetch_limit
        return self._started.by_company[batch.company] >= self._company_limit(batch) + prefetch

    def _company_limit(self, batch: Batch) -> int:
        """Return the slots that one company may have; with several companies, one company never gets all slots."""
        spare = 1 if self._limits.serves_several and self.workers > 1 else 0
        return min(self._limits.per_company.get(batch.remote, self.workers), self.workers - spare)

    @property
    def _prefetch_limit(self) -> int:
        before = self._clock.steady() - PREFETCH_WINDOW_S
        while self._accepted and self._accepted[0] < before:
            self._accepted.popleft()
        return len(self._accepted)


class _BatchCount:
    """Count batches by remote, company and lane during their moves, because each dispatch reads the counts."""

    def __init__(self) -> None:
        self.by_remote: Counter[str] = Counter()
        self.by_company: Counter[str] = Counter()
        self.sends_by_lane: Counter[str] = Counter()  # without lookups

    def add(self, batch: Batch, change: int) -> None:
        self.by_remote[batch.remote] += change
        self.by_company[batch.company] += change
        if not batch.is_lookup:
            self.sends_by_lane[batch.lane] += change
