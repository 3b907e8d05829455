"""What one process has in its hands: loads that are ready, ahead, on their way and in the books; and who goes next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import anyio

from docferry.clock import Clock
from docferry.upload.batch import Batch

#: For each worker so many loads are made ready to go ahead of it: while it sends, the files of the next are opened and
#: their intent is committed, in few large steps instead of many small ones.
AHEAD = 2
#: No more are ahead than were taken within this, seconds: what is opened goes soon; where remotes are slow, none is.
LATELY = 0.2
#: What has been opening for longer hangs, and keeps no worker waiting for it, seconds.
HANGS = 1.0


class Slots:
    """Every load is ready, ahead, running or booking. What runs has a worker; what is ahead is made ready to go, then
    waits for one. How many there are is asked for each load that might start: they are counted as they move."""

    def __init__(
        self,
        clock: Clock,
        *,
        workers: int,
        batch_size: int,
        company_limits: Mapping[str, int],
        several: bool,
        is_wary: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self.workers = workers
        self._company_limits = company_limits  # of each remote, what runs in one company
        self._several = several  # whether more than one company is served
        self._is_wary = is_wary  # of a lane that fails: one load at a time
        self.ready: deque[Batch] = deque()
        # Ahead are those that are opening, with the steady second when they began, and those that can go, as they came.
        self._opening: dict[Batch, float] = {}
        self._turns: dict[Batch, anyio.Event] = {}
        self.running: set[Batch] = set()
        self._booking: set[Batch] = set()  # taken by the remote, and not written down yet: they keep no worker
        self._started = _Count()  # ahead or running
        self._sent = _Count()  # running
        self._taken = deque[float](maxlen=max(1, AHEAD * workers // batch_size))  # when the latest were, steady seconds

    @property
    def are_empty(self) -> bool:
        return not self.ready and self.are_done

    @property
    def are_done(self) -> bool:
        """Whether all that was started has ended."""
        return not (self._opening or self._turns or self.running or self._booking)

    @property
    def have_workers(self) -> bool:
        """Whether a worker has nothing to do, nor will have in a moment."""
        before = self._clock.steady() - HANGS
        return len(self.running) + sum(since > before for since in self._opening.values()) < self.workers

    @property
    def waiting(self) -> list[Batch]:
        """Those that can go and have no worker, as they came."""
        return list(self._turns)

    def add(self, batches: Iterable[Batch]) -> None:
        self.ready.extend(batches)

    # -- who goes next ---------------------------------------------------------------------------------------------

    def is_blocked(self, batch: Batch) -> bool:
        """Whether its own lane or company has all it may have: others need not wait for it."""
        return self._waits_for_lane(batch, self._started) or (self._several and self._fills_company(batch))

    def may_start(self, batch: Batch) -> bool:
        if self._waits_for_lane(batch, self._started) or self._fills_company(batch):
            return False
        return self.have_workers or len(self._opening) + len(self._turns) < self._allowance

    def start(self, batch: Batch) -> None:
        self.ready.remove(batch)
        self._opening[batch] = self._clock.steady()
        self._started.change(batch, 1)

    async def turn(self, batch: Batch) -> bool:
        """What was started can go: wait for a worker. False: it was refused."""
        del self._opening[batch]
        decided = self._turns[batch] = anyio.Event()
        if self._may_run(batch):  # then so may nobody who came before: they were asked when the worker became free
            self._run(batch)
        else:
            await decided.wait()
        return batch in self.running

    def let_go(self) -> None:
        """Whoever waits gets the workers that are free."""
        for batch in self.waiting if len(self.running) < self.workers else ():
            if self._may_run(batch):
                self._run(batch)

    def refuse(self, batch: Batch) -> None:
        """It must not go now, and waits no longer."""
        self._turns.pop(batch).set()
        self._opening[batch] = self._clock.steady()  # until it has ended

    def taken(self, batch: Batch) -> None:
        """The remote has it."""
        self.running.remove(batch)
        self._sent.change(batch, -1)
        self._started.change(batch, -1)
        self._booking.add(batch)
        self._taken.append(self._clock.steady())

    def end(self, batch: Batch) -> None:
        if batch in self._booking:
            self._booking.remove(batch)
            return
        self._started.change(batch, -1)
        if batch in self.running:
            self.running.remove(batch)
            self._sent.change(batch, -1)
        else:
            self._turns.pop(batch, None)
            self._opening.pop(batch, None)

    # -- how many --------------------------------------------------------------------------------------------------

    def running_at(self, remote: str) -> int:
        return self._sent.of_remote[remote]

    def started_at(self, remote: str) -> int:
        return self._started.of_remote[remote]

    def by_lane(self) -> dict[str, int]:
        """The loads that still need a worker, or have one."""
        return Counter(batch.lane for batch in self._unfinished())

    def asking(self) -> set[str]:
        """The companies that are being asked about doubts."""
        return {batch.company for batch in self._unfinished() if batch.asks}

    def _unfinished(self) -> Iterator[Batch]:
        yield from self.ready
        yield from self._opening
        yield from self._turns
        yield from self.running

    def _run(self, batch: Batch) -> None:
        self.running.add(batch)
        self._sent.change(batch, 1)
        self._turns.pop(batch).set()

    def _may_run(self, batch: Batch) -> bool:
        if len(self.running) >= self.workers or self._waits_for_lane(batch, self._sent):
            return False
        return self._sent.of_company[batch.company] < self._company_limit(batch)

    def _waits_for_lane(self, batch: Batch, count: _Count) -> bool:
        return not batch.asks and count.sends_of_lane[batch.lane] > 0 and self._is_wary(batch.lane)

    def _fills_company(self, batch: Batch) -> bool:
        share = self._allowance // 2 if self._several else self._allowance
        return self._started.of_company[batch.company] >= self._company_limit(batch) + share

    def _company_limit(self, batch: Batch) -> int:
        """What runs of a company. Where several are served, one that hangs never has the last worker."""
        spare = 1 if self._several and self.workers > 1 else 0
        return min(self._company_limits.get(batch.remote, self.workers), self.workers - spare)

    @property
    def _allowance(self) -> int:
        """Loads that may be ahead now."""
        before = self._clock.steady() - LATELY
        while self._taken and self._taken[0] < before:
            self._taken.popleft()
        return len(self._taken)


class _Count:
    """Loads, counted by whom they go to."""

    def __init__(self) -> None:
        self.of_remote: Counter[str] = Counter()
        self.of_company: Counter[str] = Counter()
        self.sends_of_lane: Counter[str] = Counter()  # those that do not ask

    def change(self, batch: Batch, by: int) -> None:
        self.of_remote[batch.remote] += by
        self.of_company[batch.company] += by
        if not batch.asks:
            self.sends_of_lane[batch.lane] += by
