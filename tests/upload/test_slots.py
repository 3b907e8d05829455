"""Test the slots of one process: prefetch, start, and counting."""

from __future__ import annotations

from itertools import count

import anyio
import pytest
from anyio.abc import TaskGroup

from docferry.clock import TurnableClock
from docferry.model import State, Target, Transfer
from docferry.upload.batch import Batch
from docferry.upload.slots import PREFETCH, PREFETCH_WINDOW_S, SlotLimits, Slots

WORKERS = 4
NUMBERS = count(1)


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock()


@pytest.fixture
def wary() -> set[str]:
    return set()


@pytest.fixture
def slots(clock: TurnableClock, wary: set[str]) -> Slots:
    return made(clock, wary)


class Failing:
    """Report the lanes with failing requests."""

    def __init__(self, lanes: set[str]) -> None:
        self._lanes = lanes

    def is_failing(self, lane: str) -> bool:
        return lane in self._lanes


def made(clock: TurnableClock, wary: set[str], *, several: bool = True, limit: int = 9, batch_size: int = 1) -> Slots:
    return Slots(clock, SlotLimits(WORKERS, batch_size, {"codat": limit}, several), Failing(wary))


def load_of(company: str, state: State = State.LEASED) -> Batch:
    number = next(NUMBERS)
    target = Target("codat", company, "bank")
    transfer = Transfer(number, "", "m", target, "", "", 1, state, 1, 0, 0, 0.0, 0.0, None, None, None, None)
    return Batch([transfer], {})


def ready(slots: Slots, number: int, company: str = "acme", state: State = State.LEASED) -> list[Batch]:
    batches = [load_of(company, state) for _ in range(number)]
    slots.add(batches)
    return batches


def started(slots: Slots) -> list[Batch]:
    """Start as many batches as may start, and return them in their order."""
    begun = []
    while (batch := next(filter(slots.may_start, slots.ready), None)) is not None:
        slots.start(batch)
        begun.append(batch)
    return begun


async def brought(slots: Slots, number: int, company: str = "acme") -> None:
    """Take `number` batches through every step, one after the other."""
    for batch in ready(slots, number, company):
        assert slots.may_start(batch)
        slots.start(batch)
        assert await slots.acquire(batch)
        slots.release_early(batch)
        slots.end(batch)
    assert slots.is_empty


class Queue:
    """Batches that wait for a slot, each in a task of its own, and their results."""

    def __init__(self, slots: Slots, group: TaskGroup) -> None:
        self._slots, self._group = slots, group
        self.granted: list[Batch] = []
        self.refused: list[Batch] = []

    async def join(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._group.start_soon(self._wait, batch)
        await anyio.wait_all_tasks_blocked()

    async def _wait(self, batch: Batch) -> None:
        (self.granted if await self._slots.acquire(batch) else self.refused).append(batch)


def test_nothing_is_ahead_before_anything_was_taken(slots: Slots) -> None:
    ready(slots, 20)
    ready(slots, 20, "other")
    assert len(started(slots)) == WORKERS


@pytest.mark.anyio
@pytest.mark.parametrize(("batch_size", "ahead"), [(1, PREFETCH * WORKERS), (3, PREFETCH * WORKERS // 3), (100, 1)])
async def test_no_more_are_ahead_than_were_taken_lately(clock: TurnableClock, batch_size: int, ahead: int) -> None:
    slots = made(clock, set(), several=False, batch_size=batch_size)
    await brought(slots, 30)
    clock.turn(PREFETCH_WINDOW_S / 2)
    ready(slots, 50)
    async with anyio.create_task_group() as group:
        queue = Queue(slots, group)
        first = started(slots)
        await queue.join(first)
        assert len(queue.granted) == WORKERS
        more = started(slots)
        await queue.join(more)
        assert len(slots.prefetched) == ahead
        clock.turn(PREFETCH_WINDOW_S)
        for batch in queue.granted:
            slots.end(batch)
        slots.grant_free_slots()
        await anyio.wait_all_tasks_blocked()
        assert len(slots.running) == min(ahead, WORKERS)
        assert len(started(slots)) == WORKERS - len(slots.running)
        for batch in slots.prefetched:
            slots.reject(batch)


@pytest.mark.anyio
async def test_a_folder_that_hangs_keeps_no_worker_from_another_company(slots: Slots, clock: TurnableClock) -> None:
    """After many accepted batches, no started batch of one company is opened."""
    await brought(slots, 2 * WORKERS)
    ready(slots, 50)
    assert len(started(slots)) > WORKERS
    others = ready(slots, 3, "other")
    early = started(slots)
    assert len(early) < len(others)
    clock.turn(60.0)
    assert early + started(slots) == others
    for batch in others:
        assert await slots.acquire(batch)


@pytest.mark.anyio
async def test_many_companies_are_no_reason_to_have_more_ahead(slots: Slots, clock: TurnableClock) -> None:
    """No batch is prefetched for a remote that does not answer."""
    for number in range(60):
        ready(slots, 1, f"company {number}")
    async with anyio.create_task_group() as group:
        queue = Queue(slots, group)
        await queue.join(started(slots))
        clock.turn(60.0)
        assert started(slots) == []
        assert (len(queue.granted), slots.prefetched) == (WORKERS, [])


@pytest.mark.anyio
async def test_a_remote_that_hangs_never_has_the_last_worker(slots: Slots) -> None:
    await brought(slots, 30)
    ready(slots, 50)
    async with anyio.create_task_group() as group:
        queue = Queue(slots, group)
        await queue.join(started(slots))
        await queue.join(started(slots))
        assert len(queue.granted) == len(slots.running) == WORKERS - 1
        assert slots.prefetched
        for batch in ready(slots, 3, "other"):
            slots.start(batch)
            assert await slots.acquire(batch)
            slots.release_early(batch)
            slots.end(batch)
        for batch in slots.prefetched:
            slots.reject(batch)


@pytest.mark.anyio
async def test_who_waits_goes_in_the_order_of_coming(clock: TurnableClock) -> None:
    slots = made(clock, set(), several=False)
    await brought(slots, 30)
    ready(slots, 3 * WORKERS)
    async with anyio.create_task_group() as group:
        queue = Queue(slots, group)
        batches = started(slots)
        batches += started(slots)
        await queue.join(batches)
        assert queue.granted == batches[:WORKERS]
        slots.reject(batches[WORKERS])
        slots.release_early(batches[0])
        slots.end(batches[1])
        slots.grant_free_slots()
        await anyio.wait_all_tasks_blocked()
        assert queue.granted[WORKERS:] == batches[WORKERS + 1 : WORKERS + 3]
        assert queue.refused == [batches[WORKERS]]
        for batch in slots.prefetched:
            slots.reject(batch)
    for batch in batches:
        if batch is not batches[1]:
            slots.end(batch)
    slots.ready.clear()
    assert slots.is_empty
    assert (slots.by_lane(), slots.started_at("codat"), slots.running_at("codat")) == ({}, 0, 0)


@pytest.mark.anyio
async def test_one_that_is_cancelled_between_its_turn_and_the_news_of_it_has_a_worker(slots: Slots) -> None:
    await brought(slots, 30)
    ready(slots, 3 * WORKERS)
    async with anyio.create_task_group() as group:
        queue = Queue(slots, group)
        batches = started(slots)
        await queue.join(batches)
        waited = slots.prefetched[0]
        slots.end(batches[0])
        slots.grant_free_slots()
        assert waited in slots.running
        group.cancel_scope.cancel()
    for batch in batches[1:]:
        slots.end(batch)
    assert slots.is_idle
    assert slots.running_at("codat") == slots.started_at("codat") == 0


@pytest.mark.anyio
async def test_where_things_fail_one_goes_at_a_time_and_questions_are_no_sends(slots: Slots, wary: set[str]) -> None:
    wary.add("codat/acme/bank")
    (first, second) = ready(slots, 2)
    (question,) = ready(slots, 1, state=State.ASKING)
    slots.start(first)
    assert not slots.may_start(second)
    assert slots.is_blocked(second)
    assert slots.may_start(question)
    slots.start(question)
    assert slots.in_lookup() == {"codat/acme"}
    assert await slots.acquire(first)
    slots.end(first)
    assert slots.may_start(second)
