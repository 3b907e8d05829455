"""Claims what is due, gives it to carriers, and lets nothing wait on anything but its own lane."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from itertools import filterfalse, islice

import anyio
from anyio.abc import TaskGroup, TaskStatus

from docferry import logs
from docferry.clock import Clock
from docferry.errors import LeaseLost
from docferry.model import Gate, Reason
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.transfers import Lane, Transfers
from docferry.upload.batch import Batch
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.gates import GateManager
from docferry.upload.maintenance import Maintenance
from docferry.upload.selection import SelectionInput, choose, closed_by, company_of, gates_of, needs_a_person, next_due
from docferry.upload.slots import Slots
from docferry.upload.uploader import Uploader
from docferry.wakeups import Wakeups

log = logs.get("runner")

#: How often the queue is looked at while something is in hand, and when there is nothing: another command may have
#: changed it. Seconds.
POLL = 1.0
IDLE = 2.0
#: So often it is read even when the database seems to be as it was, seconds.
LOOK = 5.0
#: Documents that are claimed at once, for each worker: a visit to the database costs as much for one as for many.
CLAIMED = 8
#: Failures in a row after which a lane gets one worker at a time.
WARY = 2


class Scheduler:
    """One process's share of the queue."""

    def __init__(
        self,
        *,
        database: Database,
        transfers: Transfers,
        documents: Documents,
        gates: Gates,
        uploader: Uploader,
        gate_manager: GateManager,
        clock: Clock,
        wakeups: Wakeups,
        maintenance: Maintenance,
        workers: int,
        company_limits: Mapping[str, int],
        batch_trials: BatchTrials,
        reserve: Mapping[str, float],
    ) -> None:
        self._database = database
        self._transfers = transfers
        self._documents = documents
        self._gates = gates
        self.uploader = uploader
        self._gate_manager = gate_manager
        self._clock = clock
        self._maintenance = maintenance
        self._workers = workers
        self._batch_trials = batch_trials
        self._reserve = reserve
        uploads = uploader.uploads.values()
        places = {(upload.to, upload.company_id) for upload in uploads}
        self._several = len(places) > 1 or any(upload.placeholders for upload in uploads)
        self._slots = Slots(
            clock,
            workers=workers,
            batch_size=batch_trials.size,
            company_limits=company_limits,
            several=self._several,
            is_wary=lambda lane: gate_manager.counters.strikes.get(lane, 0) >= WARY,
        )
        self._wakeups = wakeups
        self._stopping = False
        self._outdated: dict[str, float | None] = {}  # of remotes, when the answer came whose quota counts no more
        self._filling = False  # something may be claimed and not in hand yet
        self._claimed = False  # whether the last look at the queue brought something
        self.ended = anyio.Event()
        self._lanes: list[Lane] = []
        self._looked_at: tuple[int, int, int] | None = None  # the database's stamp when the queue was last looked at
        self._looked = 0.0  # when that was, steady seconds
        self.beat = clock.steady()  # when the loop last came round, for the watchdog

    # -- what others say to the runner -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may be due."""
        self._wakeups.queue_changed()

    def stop(self) -> None:
        """Claim nothing more; `run` ends when what is in flight has ended."""
        self._stopping = self._gate_manager.stopping = True
        self._wakeups.queue_changed()

    @property
    def in_flight(self) -> int:
        return len(self._slots.running)

    def in_flight_at(self, remote: str) -> int:
        return self._slots.running_at(remote)

    @property
    def is_busy(self) -> bool:
        """Whether something is claimed or being carried."""
        return self._filling or not self._slots.are_empty

    def next_due_within(self, patience: float, doubts_patience: float) -> float | None:
        """Wall seconds of the next thing due within `patience` (for doubts `doubts_patience`), None when none is."""
        now = self._clock.now()
        mappings, gates = self.uploader.uploads.keys(), self._gate_manager.closed
        times = [
            due
            for lane in self._lanes
            if not ((gate := closed_by(lane, gates)) and gate.until > now and needs_a_person(gate))
            and (due := next_due([lane], mappings, gates)) is not None
            and due - now <= (doubts_patience if lane.doubtful else patience)
        ]
        return min(times, default=None)

    async def look(self) -> None:
        """Read the lanes and gates afresh."""
        self._lanes = await self._transfers.lanes()
        closings = -1
        while closings != self._gate_manager.closings:  # one that was closed while we read must not be forgotten
            closings = self._gate_manager.closings
            gates = await self._gates.all()
        gates |= {gate.key: gate for gate in self._gate_manager.closing}
        now, remotes = self._clock.now(), self.uploader.remotes
        for key, gate in self._gate_manager.closed.items():
            if key in remotes and key not in gates and gate.until > now:
                self._outdated[key] = remotes[key].health.last_answer  # whoever opened it may know more
        self._gate_manager.closed = gates

    # -- the loop --------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """What has to be known and put right before anything is claimed."""
        await self._maintenance.prepare()
        await self._batch_trials.prepare()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry until stopped; cancel it to cut what is in flight."""
        try:
            async with anyio.create_task_group() as group:
                task_status.started()
                while not (self._stopping and self._slots.are_done):
                    self._wakeups.upload.clear()
                    self.beat = self._clock.steady()
                    self._database.assert_ours()
                    await self._maintenance.turn()
                    self._refuse()
                    if not self._stopping:
                        self._filling = True
                        for remote in {batch.remote for batch in self._slots.ready}:
                            await self._guard_quota(remote)  # others than the workers spend it too
                        await self._return_blocked()
                        await self._claim()
                        self._dispatch(group)
                        self._filling = False
                    with anyio.move_on_after(self._nap()):
                        await self._wakeups.upload.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._release_all()
            self.ended.set()

    async def _return_blocked(self) -> None:
        """What was claimed before a gate closed on its way is not carried against it. While one is handed back, others
        may start: none is looked at that is no longer ready."""
        while (
            self._gate_manager.closed and (batch := next(filter(self._is_barred, self._slots.ready), None)) is not None
        ):
            self._slots.ready.remove(batch)
            await self.uploader.release(batch)

    def _refuse(self) -> None:
        """Nor does go what was made ready before, or before we were to stop."""
        for batch in self._slots.waiting if self._gate_manager.closed or self._stopping else ():
            if self._stopping or self._is_barred(batch):
                self._slots.refuse(batch)

    def _is_barred(self, batch: Batch) -> bool:
        now, on_the_way = self._clock.now(), gates_of(batch.lane, self._gate_manager.closed)
        return any(gate.until > now and not (batch.asks and gate.lets_doubts_pass) for gate in on_the_way)

    async def _claim(self) -> None:
        self._claimed = False
        # What is blocked behind its own company must not keep others from being claimed.
        startable = sum(1 for _ in islice(filterfalse(self._slots.is_blocked, self._slots.ready), self._workers))
        if startable >= self._workers:
            return
        stamp, steady = self._database.stamp, self._clock.steady()
        seems_same = stamp is not None and stamp == self._looked_at and steady - self._looked < LOOK
        if not self._lanes and seems_same:
            return  # nothing waited, and nobody has written anything since
        await self.look()
        self._looked_at, self._looked = stamp, steady
        inputs = SelectionInput(
            now=self._clock.now(),
            room=max(2, CLAIMED // self._batch_trials.size) * self._workers - startable,
            mappings=self.uploader.uploads.keys(),
            gates=self._gate_manager.closed,
            in_hand=self._slots.by_lane(),
            company_limit=(2 if self._several else CLAIMED) * self._workers,
            asking=self._slots.asking() | {company_of(lane) for lane in await self._asking_elsewhere()},
            batch_size=self._batch_trials.of,
            wary={lane for lane, count in self._gate_manager.counters.strikes.items() if count >= WARY},
        )
        picks = choose(self._lanes, inputs)
        if not picks:
            return
        claimed = await self._transfers.claim(picks, room=inputs.room * self._batch_trials.size)
        self._claimed = bool(claimed)
        try:
            places = await self._documents.places([transfer.id for transfer in claimed])
            batches = await self._batch_trials.batches(claimed)
        except BaseException:
            self._slots.add(Batch([transfer], {}) for transfer in claimed)  # to be handed back
            raise
        self._slots.add(Batch(transfers, places) for transfers in batches)

    async def _asking_elsewhere(self) -> Collection[str]:
        return await self._transfers.asking_elsewhere() if any(lane.doubtful for lane in self._lanes) else ()

    def _dispatch(self, group: TaskGroup) -> None:
        """Start what may start: a free worker, room in its company, and no more than one where things fail."""
        if self._stopping:
            return
        self._slots.let_go()
        refused = set[tuple[str, bool]]()  # whoever goes the same way need not be asked for
        for batch in list(self._slots.ready):
            way = batch.lane, batch.asks
            if way in refused:
                continue
            if self._may_ask(batch) and self._slots.may_start(batch) and not self._is_barred(batch):
                self._slots.start(batch)
                group.start_soon(self._work, group, batch, name=batch.lane)
            else:
                refused.add(way)

    def _may_ask(self, batch: Batch) -> bool:
        """Whether the remote's quota has a request for it, beside those that are on their way."""
        return batch.asks or self._left(batch.remote) > self._slots.started_at(batch.remote)

    def _may_go(self, batch: Batch) -> bool:
        """Whether what is ready to go may still do so, and has not been overtaken by a stop, a gate or the quota."""
        others = self._slots.running_at(batch.remote) - (batch in self._slots.running)
        quota = batch.asks or self._left(batch.remote) > others
        return quota and not (self._stopping or self._is_barred(batch))

    async def _work(self, group: TaskGroup, batch: Batch) -> None:
        async def turn() -> bool:  # much may have changed before a worker was free
            return self._may_go(batch) and await self._slots.turn(batch) and self._may_go(batch)

        def taken() -> None:
            self._slots.taken(batch)
            self._dispatch(group)

        try:
            await self.uploader.carry(batch, turn, lambda: self._may_go(batch), taken)
            await self._guard_quota(batch.remote)
        finally:
            self._slots.end(batch)
            if self._goes_on_by_itself:
                self._slots.let_go()
            else:
                self._wakeups.queue_changed()

    @property
    def _goes_on_by_itself(self) -> bool:
        """All workers are busy, and what they carry next is here: nothing is to be done until one of them has ended."""
        if self._stopping or self._gate_manager.closed:
            return False
        return len(self._slots.ready) >= self._workers and not self._slots.have_workers

    def _left(self, remote: str) -> float:
        """Requests that the daily quota of a remote allows new documents, apart from its reserve."""
        health = self.uploader.remotes[remote].health
        if not health.limit or health.remaining is None or health.reset is None or health.reset <= self._clock.now():
            return math.inf
        if remote in self._outdated and self._outdated[remote] == health.last_answer:
            return math.inf
        return health.remaining - health.limit * self._reserve.get(remote, 0.0)

    async def _guard_quota(self, remote: str) -> None:
        """Close the remote for new documents when only the reserve of its daily quota is left."""
        if self._left(remote) > 0:
            return
        health, known = self.uploader.remotes[remote].health, self._gate_manager.closed.get(remote)
        if health.reset is not None and (known is None or known.until < health.reset):
            detail = f"{health.remaining} of {health.limit} requests are left today; kept for doubtful documents"
            may_ask = bool(health.remaining)
            gate = Gate(remote, Reason.QUOTA, detail, health.reset, 1, self._clock.now(), lets_doubts_pass=may_ask)
            await self._gate_manager.close(gate)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _nap(self) -> float:
        if self._stopping:
            return POLL
        most = IDLE if self._slots.are_empty else POLL
        due = next_due(self._lanes, self.uploader.uploads.keys(), self._gate_manager.closed)
        if due is None or self._slots.ready or not self._slots.have_workers:
            return most
        wait = due - self._clock.now()
        if wait <= 0:
            # What is due and was not claimed waits for something in hand, which wakes us when it ends.
            return 0.0 if self._claimed else POLL
        return min(most, wait)

    async def _release_all(self) -> None:
        for batch in self._slots.ready:
            with contextlib.suppress(LeaseLost):
                await self.uploader.release(batch)
        self._slots.ready.clear()
