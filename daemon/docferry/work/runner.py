"""Claims what is due, gives it to carriers, and lets nothing wait on anything but its own lane."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Collection, Mapping

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
from docferry.work.carry import Carrier, Load
from docferry.work.choose import Scene, choose, closed_by, company_of, gates_of, needs_a_person, next_due
from docferry.work.upkeep import Upkeep

log = logs.get("runner")

#: How often the queue is looked at when nothing hurries it: another command may have changed it. Seconds.
POLL = 1.0
#: So often it is read even when the database seems to be as it was, seconds.
LOOK = 5.0
#: Documents that are claimed at once, for each worker: a visit to the database costs as much for one as for many.
AHEAD = 8
#: Loads of one company that are opened while as many as its remote allows are on their way.
OPENING = 4
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
        self._clock = clock
        self._upkeep = upkeep
        self._workers = workers
        self._company_limits = company_limits
        self._batches = batches
        self._reserve = reserve
        uploads = carrier.uploads.values()
        places = {(upload.to, upload.company_id) for upload in uploads}
        self._several = len(places) > 1 or any(upload.placeholders for upload in uploads)
        self._ready: deque[Load] = deque()
        self._running: list[Load] = []
        self._booking: list[Load] = []  # taken by the remote, and not written down yet: they keep no worker
        self._wake = anyio.Event()
        self._stopping = False
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
        self._stopping = True
        self._wake.set()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def in_flight_at(self, remote: str) -> int:
        return sum(load.transfers[0].target.remote == remote for load in self._running)

    @property
    def in_hand(self) -> bool:
        """Whether something is claimed or being carried."""
        return bool(self._ready or self._running or self._booking or self._filling)

    def worth_waiting(self, patience: float, doubts_patience: float) -> float | None:
        """Wall seconds of the next thing due within `patience` (for doubts `doubts_patience`), None when none is."""
        now = self._clock.now()
        mappings, gates = self.carrier.uploads.keys(), self.carrier.closed
        times = [
            due
            for lane in self._lanes
            if not ((gate := closed_by(lane.lane, gates)) and gate.until > now and needs_a_person(gate))
            and (due := next_due([lane], mappings, gates)) is not None
            and due - now <= (doubts_patience if lane.doubtful else patience)
        ]
        return min(times, default=None)

    async def look(self) -> None:
        """Read the lanes and gates afresh."""
        self._lanes = await self._transfers.lanes()
        closings = -1
        while closings != self.carrier.closings:  # one that was closed while we read must not be forgotten
            closings = self.carrier.closings
            gates = await self._gates.all()
        self.carrier.closed = gates | {gate.key: gate for gate in self.carrier.closing}

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
                while not (self._stopping and not self._running and not self._booking):
                    self._wake = anyio.Event()
                    self.beat = self._clock.steady()
                    self._database.assert_ours()
                    await self._upkeep.turn()
                    if not self._stopping:
                        self._filling = True
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
        """What was claimed before a gate closed on its way is not carried against it."""
        now, gates = self._clock.now(), self.carrier.closed
        for load in list(self._ready) if gates else ():
            on_the_way = gates_of(load.lane, gates)
            if any(gate.until > now and not (load.asks and gate.lets_doubts_pass) for gate in on_the_way):
                await self.carrier.hand_back(load)
                self._ready.remove(load)

    async def _fill(self) -> None:
        self._claimed = False
        # What is blocked behind its own company must not keep others from being claimed.
        startable = sum(self._may_start(load) for load in self._ready)
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
            room=max(2, AHEAD // self._batches.size) * self._workers - startable,
            mappings=self.carrier.uploads.keys(),
            gates=self.carrier.closed,
            in_hand=self._in_hand(),
            company_limit=(2 if self._several else AHEAD) * self._workers,
            asking={load.company for load in self._in_hands() if load.asks}
            | ({company_of(lane) for lane in await self._asking_elsewhere()}),
            batch=self._batches.of,
            wary={lane for lane, count in self.carrier.tally.strikes.items() if count >= WARY},
        )
        picks = choose(self._lanes, scene)
        if not picks:
            return
        claimed = await self._transfers.claim(picks, room=scene.room * self._batches.size)
        self._claimed = bool(claimed)
        try:
            places = await self._documents.places([transfer.id for transfer in claimed])
        except BaseException:
            self._ready += [Load([transfer], {}) for transfer in claimed]  # to be handed back
            raise
        self._ready += [Load(transfers, places) for transfers in await self._batches.loads(claimed)]

    async def _asking_elsewhere(self) -> Collection[str]:
        return await self._transfers.asking_elsewhere() if any(lane.doubtful for lane in self._lanes) else ()

    def _in_hands(self) -> list[Load]:
        return [*self._ready, *self._running]

    def _in_hand(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for load in self._in_hands():
            held[load.lane] = held.get(load.lane, 0) + 1
        return held

    def _dispatch(self, group: TaskGroup) -> None:
        """Start what may start: a free worker, room in its company, and no more than one where things fail."""
        left = {remote: self._left(remote) - self.in_flight_at(remote) for remote in self.carrier.remotes}
        while (load := self._take(left)) is not None:
            left[load.transfers[0].target.remote] -= 1
            group.start_soon(self._work, group, load, name=f"carry {load.lane}")

    def _take(self, left: Mapping[str, float]) -> Load | None:
        """The next load that may start, with what is `left` of each remote's quota; it is running from now on."""
        if self._stopping or len(self._running) >= self._workers:
            return None
        startable = (each for each in self._ready if each.asks or left[each.transfers[0].target.remote] > 0)
        load = next((each for each in startable if self._may_start(each)), None)
        if load is not None:
            self._ready.remove(load)
            self._running.append(load)
        return load

    def _may_start(self, load: Load) -> bool:
        running = sum(other.company == load.company for other in self._running)
        if self.carrier.tally.strikes.get(load.lane, 0) >= WARY and not load.asks:
            return not any(other.lane == load.lane and not other.asks for other in self._running)
        # Where several companies are served, one that hangs never has the last worker.
        spare = 1 if self._several and self._workers > 1 else 0
        remote = load.transfers[0].target.remote
        # The remote itself holds its limit; some more open their files meanwhile.
        limit = self._company_limits.get(remote, self._workers) + OPENING
        return running < min(limit, self._workers - spare)

    async def _work(self, group: TaskGroup, load: Load) -> None:
        remote = load.transfers[0].target.remote

        def taken() -> None:
            self._running.remove(load)
            self._booking.append(load)
            if not self.carrier.closed:  # else what is ready may have to be given back first
                self._dispatch(group)

        try:
            await self.carrier.carry(load, taken)
            await self._guard_quota(remote)
        finally:
            (self._booking if load in self._booking else self._running).remove(load)
            self._wake.set()

    def _left(self, remote: str) -> float:
        """Requests that the daily quota of a remote allows new documents, apart from its reserve."""
        health = self.carrier.remotes[remote].health
        if not health.limit or health.remaining is None or health.reset is None or health.reset <= self._clock.now():
            return math.inf
        return health.remaining - health.limit * self._reserve.get(remote, 0.0)

    async def _guard_quota(self, remote: str) -> None:
        """Close the remote for new documents when only the reserve of its daily quota is left."""
        if self._left(remote) > 0:
            return
        health, known = self.carrier.remotes[remote].health, self.carrier.closed.get(remote)
        if health.reset is not None and (known is None or known.until < health.reset):
            detail = f"{health.remaining} of {health.limit} requests are left today; kept for doubtful documents"
            may_ask = bool(health.remaining)
            gate = Gate(remote, Reason.QUOTA, detail, health.reset, 1, self._clock.now(), lets_doubts_pass=may_ask)
            await self.carrier.close(gate)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _nap(self) -> float:
        if self._stopping:
            return POLL
        due = next_due(self._lanes, self.carrier.uploads.keys(), self.carrier.closed)
        if due is None or (self._ready and len(self._running) < self._workers):
            return POLL
        if len(self._running) >= self._workers or len(self._ready) >= self._workers:
            return POLL
        wait = due - self._clock.now()
        if wait <= 0:
            # What is due and was not claimed waits for something in hand, which wakes us when it ends.
            return 0.0 if self._claimed else POLL
        return min(POLL, wait)

    async def _hand_back(self) -> None:
        for load in self._ready:
            with contextlib.suppress(LeaseLost):
                await self.carrier.hand_back(load)
        self._ready.clear()
