"""Test the notifier over a real database: stored state, messages, and a receiver that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from docferry.alerts import notifier as tasks
from docferry.alerts.conditions import Facts
from docferry.alerts.digest import Totals
from docferry.alerts.messages import Message
from docferry.alerts.notifier import Notifier, Sources
from docferry.alerts.receivers import DeliveryError
from docferry.alerts.tracker import Kind
from docferry.clock import TurnableClock
from docferry.settings.alerts import AlertsSettings as Settings
from docferry.store.alerts import Alerts, Observed
from docferry.store.database import Database
from docferry.store.opening import open_database

pytestmark = pytest.mark.anyio

WELL = Facts(
    held=[],
    overdue={},
    gates=[],
    missing_keys={},
    folders={},
    still_written={},
    disk_free=5_000_000_000,
    clock_offsets={},
    projected_finish={},
)
FULL = replace(WELL, disk_free=0)


@dataclass
class Inbox:
    """Receive messages, fail, or hang."""

    name: str = "ops"
    refresh: float | None = None
    problem: Exception | None = None
    hangs: bool = False
    messages: list[Message] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    attempts: int = 0

    def wants(self, event: str) -> bool:
        return event != "nothing"

    async def send(self, message: Message) -> None:
        self.attempts += 1
        if self.hangs:
            await anyio.sleep_forever()
        if self.problem is not None:
            raise self.problem
        self.messages.append(message)
        self.kinds += [item.kind for item in message.items]


@dataclass
class Office:
    """Run a notifier over a database, with given facts."""

    database: Database
    clock: TurnableClock = field(default_factory=TurnableClock)
    facts: Facts = WELL
    failures: Counter[str] = field(default_factory=Counter)
    settings: Settings = field(default_factory=lambda: Settings(after=1, repeat=86_400))

    async def read_facts(self) -> Facts:
        return self.facts

    async def read_totals(self) -> Totals:
        return Totals(uploaded=1, due=2, held=3, gates=0)

    @asynccontextmanager
    async def open(self, *inboxes: Inbox, collect: float = 1.0) -> AsyncIterator[Notifier]:
        """Run it until the end of the block, as one life of the daemon."""
        sources = Sources(self.read_facts, self.read_totals, lambda name: self.failures.update([name]))
        notifier = Notifier(self.settings, Alerts(self.database), inboxes, sources, self.clock, collect=collect)
        async with anyio.create_task_group() as group:
            group.start_soon(notifier.run)
            yield notifier
            group.cancel_scope.cancel()

    async def until(self, condition: Callable[[], Any], step: float = 0.5) -> None:
        """Let time pass until a condition comes true."""
        with anyio.fail_after(60):
            while not condition():
                self.clock.turn(step)
                await anyio.sleep(0.02)  # the tasks look at the clock by themselves

    async def pass_time(self, rounds: int = 40) -> None:
        for _ in range(rounds):
            self.clock.turn(0.5)
            await anyio.sleep(0.02)  # as above


@pytest.fixture
async def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(tasks, "DELIVERY_RETRY_S", (0.05, 0.1))
    async with open_database(tmp_path / "docferry.db") as database:
        yield Office(database)


async def test_lives_one_after_the_other_tell_one_story(office: Office) -> None:
    """The process is killed in every phase: pending, collecting, told, ending, ended."""
    inbox = Inbox()

    async def life(condition: Callable[[], Any]) -> None:
        async with office.open(inbox):
            await office.until(condition)

    async def stored() -> list[Observed]:
        return [alert.observed for alert in await Alerts(office.database).all()]

    async def reached(observed: Observed, step: float = 0.0) -> None:
        with anyio.fail_after(60):
            while await stored() != [observed]:
                office.clock.turn(step)
                await anyio.sleep(0.02)  # between two looks at the database

    office.facts = FULL
    forever = 1e9  # seconds that a message is collected: a life that sees the state, and sends nothing
    async with office.open(inbox, collect=forever):
        await reached(Observed.PENDING)
    async with office.open(inbox, collect=forever):
        await reached(Observed.FIRING, 0.2)
    await life(lambda: inbox.messages)
    async with office.open(inbox):
        await office.pass_time()
    assert inbox.kinds == [Kind.FIRING]
    office.facts = WELL
    async with office.open(inbox, collect=forever):
        await reached(Observed.RESOLVED, 0.2)
    await life(lambda: len(inbox.messages) == 2)
    async with office.open(inbox):
        await office.pass_time()
    assert inbox.kinds == [Kind.FIRING, Kind.RESOLVED]
    assert await stored() == []


async def test_what_was_delivered_in_the_last_moment_is_not_told_again(office: Office) -> None:
    """Stopped as soon as the receiver has the message, before anything was written down."""
    office.facts = FULL
    for _ in range(5):
        inbox = Inbox()
        async with anyio.create_task_group() as group:

            async def send(
                message: Message, inbox: Inbox = inbox, scope: anyio.CancelScope = group.cancel_scope
            ) -> None:
                inbox.messages.append(message)
                scope.cancel()  # heard at the next await

            inbox.send = send  # type: ignore[method-assign]  # an inbox of its own kind
            async with office.open(inbox):
                await office.until(lambda inbox=inbox: inbox.messages)  # type: ignore[misc]  # its type is plain
        again = Inbox()
        async with office.open(again):
            await office.pass_time(10)
        assert len(inbox.messages) == 1
        assert again.messages == []
        office.clock.turn(2 * 86_400)  # then a reminder is due


async def test_one_that_hangs_or_fails_delays_no_other(office: Office) -> None:
    good, failing, hanging = Inbox("good"), Inbox("failing", problem=DeliveryError("down")), Inbox("hung", hangs=True)
    broken = Inbox("broken", problem=ZeroDivisionError("a mistake of ours"))
    office.facts = FULL
    async with office.open(good, failing, hanging, broken):
        await office.until(lambda: good.messages and failing.attempts > 2 and hanging.attempts and broken.attempts > 2)
        failing.problem = None
        await office.until(lambda: failing.messages)
    assert office.failures["failing"] > 2
    assert office.failures["good"] == 0
    assert good.kinds == failing.kinds == [Kind.FIRING]


async def test_a_message_keeps_its_id_over_attempts(office: Office) -> None:
    inbox, seen = Inbox(problem=DeliveryError("the answer was lost")), []

    async def send(message: Message) -> None:
        seen.append(message.id)
        if len(seen) < 4:
            raise DeliveryError("the answer was lost")

    inbox.send = send  # type: ignore[method-assign]  # an inbox of its own kind
    office.facts = FULL
    async with office.open(inbox):
        await office.until(lambda: len(seen) >= 4)
    assert len(set(seen)) == 1


async def test_facts_that_cannot_be_read_end_nothing(office: Office) -> None:
    inbox = Inbox()
    office.facts = FULL
    async with office.open(inbox):
        await office.until(lambda: inbox.messages)
        office.facts = None  # type: ignore[assignment]  # whatever goes wrong in there
        await office.pass_time()
        assert inbox.kinds == [Kind.FIRING]
        office.facts = WELL
        await office.until(lambda: len(inbox.messages) == 2)


async def test_a_database_that_cannot_be_written_is_told_of(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored, but receivers still get their messages."""
    monkeypatch.setattr(tasks, "SAVE_S", 0.05)
    inbox = Inbox()
    blocked, go_on = anyio.Event(), anyio.Event()

    async def replace_never(_alerts: object) -> None:
        blocked.set()
        await go_on.wait()

    rows = Alerts(office.database)
    monkeypatch.setattr(rows, "replace", replace_never)
    office.facts = replace(WELL, queue_problem="the database cannot be written: disk full")
    sources = Sources(office.read_facts, office.read_totals, lambda _: None)
    notifier = Notifier(office.settings, rows, [inbox], sources, office.clock, collect=1.0)
    async with anyio.create_task_group() as group:
        group.start_soon(notifier.run)
        await office.until(lambda: inbox.messages)
        assert blocked.is_set()
        office.facts = WELL
        await office.until(lambda: len(inbox.messages) == 2)
        group.cancel_scope.cancel()
    assert inbox.kinds == [Kind.FIRING, Kind.RESOLVED]


async def test_rows_that_nobody_wrote_end_nothing(office: Office) -> None:
    from docferry.store.statement import Sql

    statement = Sql("INSERT INTO alert VALUES ('', :key, 1, :labels, 's', 'a', :observed, 1, 1, NULL)")
    rows = (("disk", "[]", "exploded"), ("queue", "no json", "firing"), ("key/a", "5", "firing"))
    values = [{"key": key, "labels": labels, "observed": observed} for key, labels, observed in rows]
    await office.database.execute_many(statement, values)
    inbox = Inbox()
    office.facts = FULL
    async with office.open(inbox):
        await office.until(lambda: inbox.messages)


async def test_a_silence_is_heard_while_it_runs(office: Office) -> None:
    inbox = Inbox()
    await Alerts(office.database).silence("disk", office.clock.now() + 3600, office.clock.now())
    office.facts = FULL
    async with office.open(inbox) as notifier:
        await office.pass_time()
        assert inbox.messages == []
        assert notifier.lasting == []
        await Alerts(office.database).silence("disk", 0.0, office.clock.now())
        await office.until(lambda: inbox.messages)
        assert [alert.key for alert in notifier.lasting] == ["disk"]


async def test_a_digest_comes_daily_and_once(office: Office) -> None:
    inbox = Inbox()
    office.settings = Settings(after=1, digest="07:00")
    for _ in range(2):
        async with office.open(inbox):
            await office.pass_time(20)
    assert inbox.messages == []  # the first day began after seven, or before: none is owed for it
    office.clock.turn(86_400)
    async with office.open(inbox):
        await office.until(lambda: inbox.messages)
    async with office.open(inbox):
        await office.pass_time(20)
    assert inbox.kinds == [Kind.NOTE]
    assert "all is well" in inbox.messages[0].text
