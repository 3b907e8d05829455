"""Claim due transfers, start their processing in the slots, and let a batch wait only for its own lane."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from itertools import filterfalse, islice

import anyio
from anyio import TaskHandle
from anyio.abc import TaskGroup, TaskStatus
from msgspec import Struct

from docferry import logs
from docferry.errors import LeaseLost, StatementRefused
from docferry.model import Transfer
from docferry.remotes.protocol import SendPermit
from docferry.store.claims import Lane, company_of
from docferry.upload.batch import Batch
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.company_shares import CompanyShares
from docferry.upload.context import UploadContext
from docferry.upload.gates import GateManager
from docferry.upload.maintenance import Maintenance
from docferry.upload.quota import QuotaGuard
from docferry.upload.selection import SelectionInput, last_gate, needs_a_person, next_due, select
from docferry.upload.slots import SlotLimits, Slots
from docferry.upload.uploader import Uploader

log = logs.get("scheduler")

#: The interval between two reads of the queue with and without batches in hand, seconds: another process may change it.
BUSY_POLL_S = 1.0
IDLE_POLL_S = 2.0
#: The interval of reads while the database looks unchanged, seconds.
FORCED_POLL_S = 5.0
#: The interval at which the confirmed heartbeat of a shared queue is checked, seconds.
CONFIRMATION_POLL_S = 1.0
#: Documents claimed at once for each worker: a call to the database costs as much for one as for many.
CLAIM_FACTOR = 8


class SchedulerLimits(Struct, frozen=True):
    """Hold the settings of the scheduler."""

    workers: int
    per_company: Mapping[str, int]  # requests in flight for one company, by remote
    quota_reserve: Mapping[str, float]  # the share of the daily quota reserved for doubts, by remote


class Scheduler:
    """Run one process's share of the work of the queue."""

    def __init__(
        self,
        context: UploadContext,
        limits: SchedulerLimits,
        uploader: Uploader,
        gate_manager: GateManager,
        batch_trials: BatchTrials,
        maintenance: Maintenance,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._uploader = uploader
        self._gate_manager = gate_manager
        self._batch_trials = batch_trials
        self._maintenance = maintenance
        self._workers = limits.workers
        self._quota = QuotaGuard(context.remotes, gate_manager, context.clock, limits.quota_reserve)
        self._shares = CompanyShares(context.queue.owners, context.uploads, context.clock)
        self._serves_several = _serves_several(context)
        slot_limits = SlotLimits(limits.workers, batch_trials.size, limits.per_company, self._serves_several)
        self._slots = Slots(context.clock, slot_limits, gate_manager)
        self._tasks: dict[Batch, TaskHandle[None]] = {}  # of the started batches, to cancel them
        self._stopping = False
        self._claiming = False  # set if a claim may find transfers that `_slots` does not have yet
        self._has_claimed = False  # whether the last read of the queue led to a claim
        self._lanes: list[Lane] = []
        self._read_stamp: tuple[int, int, int] | None = None  # the database's stamp at the last read of the queue
        self._read_at = 0.0  # steady seconds
        self.ended = anyio.Event()
        self.beat = self._clock.steady()  # the time of the last iteration, for the watchdog

    # -- for other packages --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Read the queue soon, because a transfer may be due."""
        self._context.wakeups.queue_changed()

    def stop(self) -> None:
        """Claim nothing more; `run` returns after everything in flight has ended."""
        self._stopping = self._gate_manager.stopping = True
        self.wake()

    @property
    def in_flight(self) -> int:
        """Return the number of requests in flight."""
        return len(self._slots.running)

    def in_flight_at(self, remote: str) -> int:
        """Return the number of requests in flight at a remote."""
        return self._slots.running_at(remote)

    @property
    def is_busy(self) -> bool:
        """Return whether anything is claimed or being processed."""
        return self._claiming or not self._slots.is_empty

    def next_due_within(self, patience: float, doubts_patience: float) -> float | None:
        """Return the wall time of the next transfer due within `patience` seconds, or None.

        Doubts count within `doubts_patience` seconds. Lanes that wait for a person do not count.
        """
        now = self._clock.now()
        mappings, gates = self._context.uploads.keys(), self._gate_manager.closed
        times = [
            due
            for lane in self._lanes
            if not ((gate := last_gate(lane, gates)) and gate.until > now and needs_a_person(gate))
            and (due := next_due([lane], mappings, gates)) is not None
            and due - now <= (doubts_patience if lane.doubtful else patience)
        ]
        return min(times, default=None)

    async def refresh(self) -> None:
        """Read the lanes and the gates."""
        lanes, remotes = await self._context.queue.transfers.lanes(), self._context.remotes
        # Skip remotes that are no longer configured: the next scan plans their documents again.
        self._lanes = [lane for lane in lanes if lane.lane.partition("/")[0] in remotes]
        await self._quota.refresh_gates()

    # -- the loop ------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Prepare the queue before the first claim."""
        await self._maintenance.prepare()
        await self._gate_manager.prepare()
        await self._batch_trials.prepare()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Process the queue until `stop`; a cancellation also cancels the requests in flight."""
        try:
            async with anyio.create_task_group() as group:
                task_status.started()
                if not self._context.queue.owners.is_local:
                    group.start_soon(self._cancel_unconfirmed, name="unconfirmed heartbeat")
                while not (self._stopping and self._slots.is_idle):
                    self._context.wakeups.upload.clear()
                    self.beat = self._clock.steady()
                    self._context.queue.database.assert_unchanged()
                    try:
                        await self._maintenance.run_due()
                        self._reject_blocked()
                        if not self._stopping:
                            await self._fill(group)
                    except StatementRefused:  # it was logged, and is an alarm
                        await anyio.sleep(BUSY_POLL_S)
                    with anyio.move_on_after(self._nap()):
                        await self._context.wakeups.upload.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._release_ready()
            self.ended.set()

    async def _cancel_unconfirmed(self) -> None:
        """Cancel the requests in flight without a confirmed heartbeat, or after their leases were given up.

        Other hosts soon take over the transfers, and look them up after `list_lag`.
        """
        transfers, owner = self._context.queue.transfers, self._context.queue.transfers.owner
        logged = False
        while not (self._stopping and self._slots.is_idle):
            await anyio.sleep(CONFIRMATION_POLL_S)
            if self._context.queue.owners.is_confirmed:
                logged = False
            elif self._tasks:
                if not logged:
                    log.error("heartbeat_unconfirmed", "the database did not answer; uploads are cut until it does")
                logged = True
                self._cut()
            if transfers.owner != owner:
                log.warning("leases_given_up", "the database lost track of a commit; uploads are cut and looked up")
                owner = transfers.owner
                self._cut()

    def _cut(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    async def _fill(self, group: TaskGroup) -> None:
        """Claim and start as many batches as the slots allow."""
        self._claiming = True
        try:
            for remote in {batch.remote for batch in self._slots.ready}:
                await self._quota.guard(remote)  # lookups and downloads also use the quota
            await self.release_blocked()
            await self.claim()
            self._dispatch(group)
        finally:
            self._claiming = False

    async def release_blocked(self) -> None:
        """Release claimed batches that a gate now blocks.

        Others may start during a release, so each batch is searched in `ready` again.
        """
        while self._gate_manager.closed and (batch := next(filter(self._is_blocked, self._slots.ready), None)):
            self._slots.ready.remove(batch)
            await self._uploader.release(batch)

    def _reject_blocked(self) -> None:
        """Reject prefetched batches that a gate or a stop now blocks."""
        for batch in self._slots.prefetched if self._gate_manager.closed or self._stopping else ():
            if self._stopping or self._is_blocked(batch):
                self._slots.reject(batch)

    def _is_blocked(self, batch: Batch) -> bool:
        return self._gate_manager.blocks(batch.lane, is_lookup=batch.is_lookup)

    async def claim(self) -> None:
        """Claim transfers for the free slots."""
        self._has_claimed = False
        # Batches blocked by their own company must not prevent claims for others.
        startable = sum(1 for _ in islice(filterfalse(self._slots.is_blocked, self._slots.ready), self._workers))
        if startable >= self._workers:
            return
        stamp, steady = self._context.queue.database.stamp, self._clock.steady()
        looks_same = stamp is not None and stamp == self._read_stamp and steady - self._read_at < FORCED_POLL_S
        if not self._lanes and looks_same:
            return  # nothing waited, and nothing was written since
        if not self._context.queue.owners.is_confirmed:
            return  # other hosts may soon take over newly claimed transfers
        await self.refresh()
        self._read_stamp, self._read_at = stamp, steady
        batch_size = self._batch_trials.size
        in_hand = self._slots.by_lane()
        choice = self._shares.choose(self._lanes, in_hand)
        inputs = SelectionInput(
            now=self._clock.now(),
            room=max(2, CLAIM_FACTOR // batch_size) * self._workers - startable,
            mappings=self._context.uploads.keys() - self._context.queue.owners.unreadable,
            gates=self._gate_manager.closed,
            in_hand=in_hand,
            company_limit=(2 if self._serves_several else CLAIM_FACTOR) * self._workers,
            in_lookup=self._slots.in_lookup() | {company_of(lane) for lane in await self._lookups_elsewhere()},
            batch_size=self._batch_trials.batch_size,
            failing=self._gate_manager.failing_lanes(),
        )
        picks = select(choice.lanes, inputs)
        if not picks and not choice.ask_for:
            return
        claimed = await self._context.queue.transfers.claim(picks, inputs.room * batch_size, choice.ask_for)
        self._has_claimed = bool(claimed)
        try:
            places, refused = await self._context.queue.documents.places_or_errors([each.id for each in claimed])
            claimed = await self._hold_refused(claimed, dict(refused))
            batches = await self._batch_trials.make_batches(claimed)
        except BaseException:
            self._slots.add(Batch([transfer], {}) for transfer in claimed)  # waiting for release
            raise
        self._context.senders.claimed(sum(transfer.size for transfer in transfers) for transfers in batches)
        self._slots.add(Batch(transfers, places) for transfers in batches)

    async def _hold_refused(
        self, claimed: Sequence[Transfer], refused: Mapping[int, StatementRefused]
    ) -> list[Transfer]:
        """Hold claimed transfers whose documents cannot be read, and return the others."""
        transfers = self._context.queue.transfers
        for transfer in claimed:
            if transfer.id in refused:
                await transfers.hold(transfer.id, transfer.state, transfers.owner, refused[transfer.id])
        return [transfer for transfer in claimed if transfer.id not in refused]

    async def _lookups_elsewhere(self) -> Collection[str]:
        """Return the lanes that another process looks up, except for companies leased to one process."""
        is_local = self._context.queue.owners.is_local
        if not any(lane.doubtful and (is_local or "/" not in lane.lane) for lane in self._lanes):
            return ()
        return await self._context.queue.transfers.asking_elsewhere()

    def _dispatch(self, group: TaskGroup) -> None:
        """Start the ready batches that have a worker or may be prefetched."""
        if self._stopping:
            return
        self._slots.grant_free_slots()
        blocked = set[tuple[str, bool]]()  # lanes found blocked: skip their other batches
        for batch in list(self._slots.ready):
            key = batch.lane, batch.is_lookup
            if key in blocked:
                continue
            if self._has_quota(batch) and self._slots.may_start(batch) and not self._is_blocked(batch):
                self._slots.start(batch)
                self._tasks[batch] = group.start_soon(self._process, group, batch, name=batch.lane)
            else:
                blocked.add(key)

    def _has_quota(self, batch: Batch) -> bool:
        return batch.is_lookup or self._quota.remaining(batch.remote) > self._slots.started_at(batch.remote)

    def _may_send(self, batch: Batch) -> bool:
        """Return whether a started batch may be sent: no stop, gate or quota forbids it now."""
        others = self._slots.running_at(batch.remote) - (batch in self._slots.running)
        has_quota = batch.is_lookup or self._quota.remaining(batch.remote) > others
        return has_quota and self._context.queue.owners.is_confirmed and not (self._stopping or self._is_blocked(batch))

    async def _process(self, group: TaskGroup, batch: Batch) -> None:
        try:
            await self._uploader.process(batch, _SlotPermit(self, group, batch))
            await self._quota.guard(batch.remote)
        finally:
            del self._tasks[batch]
            self._slots.end(batch)
            if self._needs_no_claim:
                self._slots.grant_free_slots()
            else:
                self.wake()

    @property
    def _needs_no_claim(self) -> bool:
        """Return whether all workers are busy and enough batches are ready."""
        if self._stopping or self._gate_manager.closed:
            return False
        return len(self._slots.ready) >= self._workers and not self._slots.has_free_worker

    def _nap(self) -> float:
        """Return the seconds until the next read of the queue."""
        if self._stopping:
            return BUSY_POLL_S
        most = IDLE_POLL_S if self._slots.is_empty else BUSY_POLL_S
        due = next_due(self._lanes, self._context.uploads.keys(), self._gate_manager.closed)
        if due is None or self._slots.ready or not self._slots.has_free_worker:
            return most
        wait = due - self._clock.now()
        if wait <= 0:
            # Due transfers that were not claimed wait for a batch in hand, which wakes this loop at its end.
            return 0.0 if self._has_claimed else BUSY_POLL_S
        return min(most, wait)

    async def _release_ready(self) -> None:
        for batch in self._slots.ready:
            with contextlib.suppress(LeaseLost):
                await self._uploader.release(batch)
        self._slots.ready.clear()


class _SlotPermit(SendPermit):
    """Grant a batch a slot, and check stop, gates and quota again."""

    def __init__(self, scheduler: Scheduler, group: TaskGroup, batch: Batch) -> None:
        self._scheduler = scheduler
        self._group = group
        self._batch = batch

    async def acquire(self) -> bool:
        return self.is_granted and await self._scheduler._slots.acquire(self._batch) and self.is_granted

    @property
    def is_granted(self) -> bool:
        return self._scheduler._may_send(self._batch)

    def release(self) -> None:
        self._scheduler._slots.release_early(self._batch)
        self._scheduler._dispatch(self._group)


def _serves_several(context: UploadContext) -> bool:
    """Return whether the mappings may lead to several companies."""
    uploads = context.uploads.values()
    companies = {(upload.to, upload.company_id) for upload in uploads}
    return len(companies) > 1 or any(upload.placeholders for upload in uploads)
