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
from docferry.work.batches import Batches
from docferry.work.carry import Carrier
from docferry.work.choose import Scene, choose, closed_by, company_of, gates_of, needs_a_person, next_due
from docferry.work.gatekeeper import Gatekeeper
from docferry.work.hands import Hands
from docferry.work.load import Load
from docferry.work.upkeep import Upkeep

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


class Runner:
    """One process's share of the queue."""

    def __init__(
        self,
        *,
        database: Database,
        transfers: Transfers,
        documents: Documents,
        gates: Gates,
        carrier: Carrier,
        keeper: Gatekeeper,
        clock: Clock,
        upkeep: Upkeep,
        workers: int,
        company_limits: Mapping[str, int],
        batches: Batches,
        reserve: Mapping[str, float],
    ) -> None:
        self._database = database
        self._transfers = transfers
        self._documents = documents
        self._gates = gates
        self.carrier = carrier
        self._keeper = keeper
        self._clock = clock
        self._upkeep = upkeep
        self._workers = workers
        self._batches = batches
        self._reserve = reserve
        uploads = carrier.uploads.values()
        places = {(upload.to, upload.company_id) for upload in uploads}
        self._several = len(places) > 1 or any(upload.placeholders for upload in uploads)
        self._hands = Hands(
            clock,
            workers=workers,
            batch=batches.size,
            company_limits=company_limits,
            several=self._several,
            is_wary=lambda lane: keeper.tally.strikes.get(lane, 0) >= WARY,
        )
        self._wake = anyio.Event()
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
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends when what is in flight has ended."""
        self._stopping = self._keeper.stopping = True
        self._wake.set()

    @property
    def in_flight(self) -> int:
        return len(self._hands.running)

    def in_flight_at(self, remote: str) -> int:
        return self._hands.running_at(remote)

    @property
    def is_busy(self) -> bool:
        """Whether something is claimed or being carried."""
        return self._filling or not self._hands.are_empty

    def worth_waiting(self, patience: float, doubts_patience: float) -> float | None:
        """Wall seconds of the next thing due within `patience` (for doubts `doubts_patience`), None when none is."""
        now = self._clock.now()
        mappings, gates = self.carrier.uploads.keys(), self._keeper.closed
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
        while closings != self._keeper.closings:  # one that was closed while we read must not be forgotten
            closings = self._keeper.closings
            gates = await self._gates.all()
        gates |= {gate.key: gate for gate in self._keeper.closing}
        now, remotes = self._clock.now(), self.carrier.remotes
        for key, gate in self._keeper.closed.items():
            if key in remotes and key not in gates and gate.until > now:
                self._outdated[key] = remotes[key].health.last_answer  # whoever opened it may know more
        self._keeper.closed = gates

    # -- the loop --------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """What has to be known and put right before anything is claimed."""
        await self._upkeep.prepare()
        await self._batches.prepare()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry until stopped; cancel it to cut what is in flight."""
        try:
            async with anyio.create_task_group() as group:
                task_status.started()
                while not (self._stopping and self._hands.are_done):
                    self._wake = anyio.Event()
                    self.beat = self._clock.steady()
                    self._database.assert_ours()
                    await self._upkeep.turn()
                    self._refuse()
                    if not self._stopping:
                        self._filling = True
                        for remote in {load.remote for load in self._hands.ready}:
                            await self._guard_quota(remote)  # others than the workers spend it too
                        await self._give_back()
                        await self._fill()
                        self._dispatch(group)
                        self._filling = False
                    with anyio.move_on_after(self._nap()):
                        await self._wake.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._hand_back()
            self.ended.set()

    async def _give_back(self) -> None:
        """What was claimed before a gate closed on its way is not carried against it. While one is handed back, others
        may start: none is looked at that is no longer ready."""
        while self._keeper.closed and (load := next(filter(self._is_barred, self._hands.ready), None)) is not None:
            self._hands.ready.remove(load)
            await self.carrier.hand_back(load)

    def _refuse(self) -> None:
        """Nor does go what was made ready before, or before we were to stop."""
        for load in self._hands.waiting if self._keeper.closed or self._stopping else ():
            if self._stopping or self._is_barred(load):
                self._hands.refuse(load)

    def _is_barred(self, load: Load) -> bool:
        now, on_the_way = self._clock.now(), gates_of(load.lane, self._keeper.closed)
        return any(gate.until > now and not (load.asks and gate.lets_doubts_pass) for gate in on_the_way)

    async def _fill(self) -> None:
        self._claimed = False
        # What is blocked behind its own company must not keep others from being claimed.
        startable = sum(1 for _ in islice(filterfalse(self._hands.is_blocked, self._hands.ready), self._workers))
        if startable >= self._workers:
            return
        stamp, steady = self._database.stamp, self._clock.steady()
        seems_same = stamp is not None and stamp == self._looked_at and steady - self._looked < LOOK
        if not self._lanes and seems_same:
            return  # nothing waited, and nobody has written anything since
        await self.look()
        self._looked_at, self._looked = stamp, steady
        scene = Scene(
            now=self._clock.now(),
            room=max(2, CLAIMED // self._batches.size) * self._workers - startable,
            mappings=self.carrier.uploads.keys(),
            gates=self._keeper.closed,
            in_hand=self._hands.by_lane(),
            company_limit=(2 if self._several else CLAIMED) * self._workers,
            asking=self._hands.asking() | {company_of(lane) for lane in await self._asking_elsewhere()},
            batch=self._batches.of,
            wary={lane for lane, count in self._keeper.tally.strikes.items() if count >= WARY},
        )
        picks = choose(self._lanes, scene)
        if not picks:
            return
        claimed = await self._transfers.claim(picks, room=scene.room * self._batches.size)
        self._claimed = bool(claimed)
        try:
            places = await self._documents.places([transfer.id for transfer in claimed])
            loads = await self._batches.loads(claimed)
        except BaseException:
            self._hands.add(Load([transfer], {}) for transfer in claimed)  # to be handed back
            raise
        self._hands.add(Load(transfers, places) for transfers in loads)

    async def _asking_elsewhere(self) -> Collection[str]:
        return await self._transfers.asking_elsewhere() if any(lane.doubtful for lane in self._lanes) else ()

    def _dispatch(self, group: TaskGroup) -> None:
        """Start what may start: a free worker, room in its company, and no more than one where things fail."""
        if self._stopping:
            return
        self._hands.let_go()
        refused = set[tuple[str, bool]]()  # whoever goes the same way need not be asked for
        for load in list(self._hands.ready):
            way = load.lane, load.asks
            if way in refused:
                continue
            if self._may_ask(load) and self._hands.may_start(load) and not self._is_barred(load):
                self._hands.start(load)
                group.start_soon(self._work, group, load, name=load.lane)
            else:
                refused.add(way)

    def _may_ask(self, load: Load) -> bool:
        """Whether the remote's quota has a request for it, beside those that are on their way."""
        return load.asks or self._left(load.remote) > self._hands.started_at(load.remote)

    def _may_go(self, load: Load) -> bool:
        """Whether what is ready to go may still do so, and has not been overtaken by a stop, a gate or the quota."""
        others = self._hands.running_at(load.remote) - (load in self._hands.running)
        quota = load.asks or self._left(load.remote) > others
        return quota and not (self._stopping or self._is_barred(load))

    async def _work(self, group: TaskGroup, load: Load) -> None:
        async def turn() -> bool:  # much may have changed before a worker was free
            return self._may_go(load) and await self._hands.turn(load) and self._may_go(load)

        def taken() -> None:
            self._hands.taken(load)
            self._dispatch(group)

        try:
            await self.carrier.carry(load, turn, lambda: self._may_go(load), taken)
            await self._guard_quota(load.remote)
        finally:
            self._hands.end(load)
            if self._goes_on_by_itself:
                self._hands.let_go()
            else:
                self._wake.set()

    @property
    def _goes_on_by_itself(self) -> bool:
        """All workers are busy, and what they carry next is here: nothing is to be done until one of them has ended."""
        if self._stopping or self._keeper.closed:
            return False
        return len(self._hands.ready) >= self._workers and not self._hands.have_workers

    def _left(self, remote: str) -> float:
        """Requests that the daily quota of a remote allows new documents, apart from its reserve."""
        health = self.carrier.remotes[remote].health
        if not health.limit or health.remaining is None or health.reset is None or health.reset <= self._clock.now():
            return math.inf
        if remote in self._outdated and self._outdated[remote] == health.last_answer:
            return math.inf
        return health.remaining - health.limit * self._reserve.get(remote, 0.0)

    async def _guard_quota(self, remote: str) -> None:
        """Close the remote for new documents when only the reserve of its daily quota is left."""
        if self._left(remote) > 0:
            return
        health, known = self.carrier.remotes[remote].health, self._keeper.closed.get(remote)
        if health.reset is not None and (known is None or known.until < health.reset):
            detail = f"{health.remaining} of {health.limit} requests are left today; kept for doubtful documents"
            may_ask = bool(health.remaining)
            gate = Gate(remote, Reason.QUOTA, detail, health.reset, 1, self._clock.now(), lets_doubts_pass=may_ask)
            await self._keeper.close(gate)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _nap(self) -> float:
        if self._stopping:
            return POLL
        most = IDLE if self._hands.are_empty else POLL
        due = next_due(self._lanes, self.carrier.uploads.keys(), self._keeper.closed)
        if due is None or self._hands.ready or not self._hands.have_workers:
            return most
        wait = due - self._clock.now()
        if wait <= 0:
            # What is due and was not claimed waits for something in hand, which wakes us when it ends.
            return 0.0 if self._claimed else POLL
        return min(most, wait)

    async def _hand_back(self) -> None:
        for load in self._hands.ready:
            with contextlib.suppress(LeaseLost):
                await self.carrier.hand_back(load)
        self._hands.ready.clear()
