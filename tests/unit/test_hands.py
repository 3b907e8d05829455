"""What one process has in its hands: who may be made ready, who may go, and that all is counted as it moves."""

from __future__ import annotations

from itertools import count

import anyio
import pytest
from anyio.abc import TaskGroup

from docferry.clock import TurnableClock
from docferry.model import State, Target, Transfer
from docferry.work.hands import AHEAD, LATELY, Hands
from docferry.work.load import Load

WORKERS = 4
NUMBERS = count(1)


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock()


@pytest.fixture
def wary() -> set[str]:
    return set()


@pytest.fixture
def hands(clock: TurnableClock, wary: set[str]) -> Hands:
    return made(clock, wary)


def made(clock: TurnableClock, wary: set[str], *, several: bool = True, limit: int = 9, batch: int = 1) -> Hands:
    limits = {"codat": limit}
    return Hands(clock, workers=WORKERS, batch=batch, company_limits=limits, several=several, is_wary=wary.__contains__)


def load_of(company: str, state: State = State.LEASED) -> Load:
    number = next(NUMBERS)
    target = Target("codat", company, "bank")
    transfer = Transfer(number, "", "m", target, "", "", 1, state, 1, 0, 0, 0.0, 0.0, None, None, None, None)
    return Load([transfer], {})


def ready(hands: Hands, number: int, company: str = "acme", state: State = State.LEASED) -> list[Load]:
    loads = [load_of(company, state) for _ in range(number)]
    hands.add(loads)
    return loads


def started(hands: Hands) -> list[Load]:
    """As many as may start, in their order."""
    begun = []
    while (load := next(filter(hands.may_start, hands.ready), None)) is not None:
        hands.start(load)
        begun.append(load)
    return begun


async def brought(hands: Hands, number: int, company: str = "acme") -> None:
    """So many, from the first to the last step, one after the other."""
    for load in ready(hands, number, company):
        assert hands.may_start(load)
        hands.start(load)
        assert await hands.turn(load)
        hands.taken(load)
        hands.end(load)
    assert hands.are_empty


class Queue:
    """Loads that wait for their turn, each in a task of its own, and what became of them."""

    def __init__(self, hands: Hands, group: TaskGroup) -> None:
        self._hands, self._group = hands, group
        self.granted: list[Load] = []
        self.refused: list[Load] = []

    async def join(self, loads: list[Load]) -> None:
        for load in loads:
            self._group.start_soon(self._wait, load)
        await anyio.wait_all_tasks_blocked()

    async def _wait(self, load: Load) -> None:
        (self.granted if await self._hands.turn(load) else self.refused).append(load)


def test_nothing_is_ahead_before_anything_was_taken(hands: Hands) -> None:
    ready(hands, 20)
    ready(hands, 20, "other")
    assert len(started(hands)) == WORKERS


@pytest.mark.anyio
@pytest.mark.parametrize(("batch", "ahead"), [(1, AHEAD * WORKERS), (3, 2), (100, 1)])
async def test_no_more_are_ahead_than_were_taken_lately(clock: TurnableClock, batch: int, ahead: int) -> None:
    hands = made(clock, set(), several=False, batch=batch)
    await brought(hands, 30)
    clock.turn(LATELY / 2)
    ready(hands, 50)
    async with anyio.create_task_group() as group:
        queue = Queue(hands, group)
        first = started(hands)
        await queue.join(first)
        assert len(queue.granted) == WORKERS
        more = started(hands)
        await queue.join(more)
        assert len(hands.waiting) == ahead
        clock.turn(LATELY)
        for load in queue.granted:
            hands.end(load)
        hands.let_go()
        await anyio.wait_all_tasks_blocked()
        assert started(hands) == [] or len(hands.waiting) + len(hands.running) <= WORKERS
        for load in hands.waiting:
            hands.refuse(load)


@pytest.mark.anyio
async def test_a_folder_that_hangs_keeps_no_worker_from_another_company(hands: Hands, clock: TurnableClock) -> None:
    """Many were taken; then nothing that one company has started comes as far as its turn."""
    await brought(hands, 30)
    ready(hands, 50)
    assert len(started(hands)) > WORKERS
    others = ready(hands, 3, "other")
    early = started(hands)
    assert len(early) < len(others)
    clock.turn(60.0)
    assert early + started(hands) == others
    for load in others:
        assert await hands.turn(load)


@pytest.mark.anyio
async def test_many_companies_are_no_reason_to_have_more_ahead(hands: Hands, clock: TurnableClock) -> None:
    """Where a remote does not answer, nothing waits behind the workers."""
    for number in range(60):
        ready(hands, 1, f"company {number}")
    async with anyio.create_task_group() as group:
        queue = Queue(hands, group)
        await queue.join(started(hands))
        clock.turn(60.0)
        assert started(hands) == []
        assert (len(queue.granted), hands.waiting) == (WORKERS, [])


@pytest.mark.anyio
async def test_a_remote_that_hangs_never_has_the_last_worker(hands: Hands) -> None:
    await brought(hands, 30)
    ready(hands, 50)
    async with anyio.create_task_group() as group:
        queue = Queue(hands, group)
        await queue.join(started(hands))
        await queue.join(started(hands))
        assert len(queue.granted) == len(hands.running) == WORKERS - 1
        assert hands.waiting
        for load in ready(hands, 3, "other"):
            hands.start(load)
            assert await hands.turn(load)
            hands.taken(load)
            hands.end(load)
        for load in hands.waiting:
            hands.refuse(load)


@pytest.mark.anyio
async def test_who_waits_goes_in_the_order_of_coming(clock: TurnableClock) -> None:
    hands = made(clock, set(), several=False)
    await brought(hands, 30)
    ready(hands, 3 * WORKERS)
    async with anyio.create_task_group() as group:
        queue = Queue(hands, group)
        loads = started(hands)
        loads += started(hands)
        await queue.join(loads)
        assert queue.granted == loads[:WORKERS]
        hands.refuse(loads[WORKERS])
        hands.taken(loads[0])
        hands.end(loads[1])
        hands.let_go()
        await anyio.wait_all_tasks_blocked()
        assert queue.granted[WORKERS:] == loads[WORKERS + 1 : WORKERS + 3]
        assert queue.refused == [loads[WORKERS]]
        for load in hands.waiting:
            hands.refuse(load)
    for load in loads:
        if load is not loads[1]:
            hands.end(load)
    hands.ready.clear()
    assert hands.are_empty
    assert (hands.by_lane(), hands.started_at("codat"), hands.running_at("codat")) == ({}, 0, 0)


@pytest.mark.anyio
async def test_one_that_is_cancelled_between_its_turn_and_the_news_of_it_has_a_worker(hands: Hands) -> None:
    await brought(hands, 30)
    ready(hands, 3 * WORKERS)
    async with anyio.create_task_group() as group:
        queue = Queue(hands, group)
        loads = started(hands)
        await queue.join(loads)
        waited = hands.waiting[0]
        hands.end(loads[0])
        hands.let_go()
        assert waited in hands.running
        group.cancel_scope.cancel()
    for load in loads[1:]:
        hands.end(load)
    assert hands.are_done
    assert hands.running_at("codat") == hands.started_at("codat") == 0


@pytest.mark.anyio
async def test_where_things_fail_one_goes_at_a_time_and_questions_are_no_sends(hands: Hands, wary: set[str]) -> None:
    wary.add("codat/acme/bank")
    (first, second) = ready(hands, 2)
    (question,) = ready(hands, 1, state=State.ASKING)
    hands.start(first)
    assert not hands.may_start(second)
    assert hands.is_blocked(second)
    assert hands.may_start(question)
    hands.start(question)
    assert hands.asking() == {"codat/acme"}
    assert await hands.turn(first)
    hands.end(first)
    assert hands.may_start(second)
