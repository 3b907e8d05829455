"""Run a Hypothesis state machine of the queue, on SQLite and PostgreSQL: no order of operations loses a transfer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from docferry.clock import TurnableClock
from docferry.errors import LeaseLost
from docferry.model import FINAL, IN_FLIGHT, TRANSITIONS, Outcome, State, Transfer
from docferry.store import schema
from docferry.store.claims import Pick
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from store.conftest import planned

T = TypeVar("T")
OUTCOMES = {
    before: sorted(after for b, after in TRANSITIONS if b is before and after is not State.SENDING)
    for before in IN_FLIGHT
}


class Queue(RuleBasedStateMachine):
    """Two owners of one database, and a model of the leases that they hold."""

    template: Path
    new_database: Callable[[], str] | None = None  # returns a PostgreSQL URL; None: SQLite

    @initialize()
    def opens(self) -> None:
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal("asyncio"))
        self.database = self.stack.enter_context(self.portal.wrap_async_context_manager(open_database(self.location())))
        self.clock = TurnableClock()
        self.documents = Documents(self.database, self.clock)
        self.births = 0
        self.owners: list[Transfers] = []
        self.held: dict[str, list[Transfer]] = {}
        self.made = 0
        self.states: dict[int, str] = {}
        for _ in range(2):
            self.born()

    def location(self) -> Path | str:
        if self.new_database is not None:
            return self.new_database()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copy(self.template, folder / "docferry.db")
        return folder / "docferry.db"

    def born(self) -> None:
        self.births += 1
        owner = Transfers(self.database, self.clock, f"owner{self.births}")
        self.owners.append(owner)
        self.held[owner.owner] = []

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def do(self, verb: Callable[..., Awaitable[T]], *args: Any, **more: Any) -> T:
        async def run() -> T:
            return await verb(*args, **more)

        return self.portal.call(run)

    def rows(self, statement: str) -> list[Any]:
        return self.do(self.database.fetch_all, Sql(statement))

    @rule(count=st.integers(1, 4))
    def enqueue(self, count: int) -> None:
        plans = [planned(f"{self.made + number}.pdf") for number in range(count)]
        self.made += count
        assert self.do(self.documents.apply, "m", plans).queued == count

    @rule(who=st.integers(0, 1), most=st.integers(1, 4))
    def claim(self, who: int, most: int) -> None:
        owner = self.owners[who]
        picks = [Pick(lane, most) for lane in self.do(owner.lanes)]
        self.held[owner.owner] += self.do(owner.claim, picks, most)

    @rule(who=st.integers(0, 1), which=st.integers(0, 9))
    def mark(self, who: int, which: int) -> None:
        owner = self.owners[who]
        able = [each for each in self.held[owner.owner] if each.state is not State.SENDING]
        if able:
            transfer = able[which % len(able)]
            self.do(owner.mark_sending, [transfer])
            self.held[owner.owner].remove(transfer)
            self.held[owner.owner].append(replace(transfer, state=State.SENDING))

    @rule(who=st.integers(0, 1), which=st.integers(0, 9), how=st.integers(0, 9), delay=st.floats(0, 100))
    def settle(self, who: int, which: int, how: int, delay: float) -> None:
        owner = self.owners[who]
        if held := self.held[owner.owner]:
            transfer = held.pop(which % len(held))
            able = OUTCOMES[transfer.state]
            to = able[how % len(able)]
            reason = "undecidable" if to is State.HELD and transfer.state is State.ASKING else None
            self.do(owner.settle, transfer, Outcome(to, reason, delay=delay), was=transfer.state)

    @rule(who=st.integers(0, 1))
    def dies(self, who: int) -> None:
        """Kill an owner and reclaim its leases; its late writes fail."""
        dead = self.owners.pop(who)
        held = self.held.pop(dead.owner)
        self.born()
        assert self.do(self.owners[0].reclaim, {dead.owner}) == len(held)
        for transfer in held:
            with pytest.raises(LeaseLost):
                self.do(dead.settle, transfer, Outcome(State.GONE), was=transfer.state)

    @rule()
    def retry(self) -> None:
        self.do(self.owners[0].retry, everything=True)

    @rule(seconds=st.floats(0, 1000))
    def time_passes(self, seconds: float) -> None:
        self.clock.turn(seconds)

    @rule(seconds=st.sampled_from([-86_400.0, 86_400.0, 10.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        drift = self.clock.now() - self.clock.steady()
        self.do(self.owners[0].shift_times, drift)
        self.clock.wall += seconds
        for owner in self.owners:
            self.do(owner.shift_times, self.clock.now() - self.clock.steady())

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.made)
    def vanishes(self, number: int) -> None:
        self.do(self.documents.mark_gone, "m", [f"{number % self.made}.pdf".encode()])

    @invariant()
    def nothing_is_lost_or_forgotten(self) -> None:
        if not hasattr(self, "database"):
            return
        rows = self.rows("SELECT id, state, lease_owner, lease FROM transfer")
        now = {number: state for number, state, *_ in rows}
        assert len(now) == self.made
        assert all(state in set(State) for state in now.values())
        for number, before in self.states.items():
            assert before not in FINAL or now[number] == before
            assert (before, now[number]) != (State.DOUBTFUL, State.WAITING)
        self.states = now
        leased = {(number, owner, lease, state) for number, state, owner, lease in rows if owner is not None}
        believed = {(t.id, who, t.lease, t.state) for who, held in self.held.items() for t in held}
        assert leased == believed
        assert all((owner is not None) == (state in IN_FLIGHT) for _, state, owner, _ in rows)

    @invariant()
    def only_gone_transfers_give_up_their_key(self) -> None:
        """A key that is never freed blocks the same content forever; a key freed early lets it be sent twice."""
        if hasattr(self, "database"):
            keys = self.rows("SELECT state, dedupe_key LIKE 'gone:%' FROM transfer")
            assert all((state == State.GONE) == bool(is_free) for state, is_free in keys)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "docferry.db"
    schema.prepare(path)
    return path


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_sequence_of_operations_loses_a_transfer(template: Path, kind: str, request: pytest.FixtureRequest) -> None:
    Queue.template, Queue.new_database = template, None
    if kind == "postgresql":
        Queue.new_database = staticmethod(request.getfixturevalue("postgresql_server").new_database)
    runs = settings(
        max_examples=25, stateful_step_count=30, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    run_state_machine_as_test(Queue, settings=runs)
