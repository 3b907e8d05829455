"""Test when receivers are told: begin, reminder and end, over restarts, flaps and failing receivers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from docferry.alerts.conditions import Condition, Observation
from docferry.alerts.tracker import GIVE_UP_S, Kind, Pace, Tracker

PACE = Pace(after=300.0, repeat=86_400.0, collect=30.0)
START = 1_790_000_000.0


@dataclass
class Inbox:
    """Receive and keep messages while it is up."""

    name: str = "ops"
    refresh: float | None = None
    events: tuple[str, ...] = ()
    up: bool = True
    told: list[tuple[float, str, Kind]] = field(default_factory=list)

    def wants(self, event: str) -> bool:
        return not self.events or event in self.events

    def kinds(self, key: str = "disk") -> list[Kind]:
        return [kind for _, told, kind in self.told if told == key]


def condition(key: str, summary: str = "why") -> Condition:
    event, *values = key.split("/")
    return Condition(event, tuple((f"label{at}", value) for at, value in enumerate(values)), summary, "do")


def observation(*keys: str, unknown: Iterable[str] = ()) -> Observation:
    return Observation(tuple(condition(key) for key in keys), frozenset(unknown))


class World:
    """Time, conditions and receivers; observes and delivers every 10 s as the daemon does."""

    def __init__(self, *inboxes: Inbox, pace: Pace = PACE) -> None:
        self.inboxes = list(inboxes)
        self.pace = pace
        self.now = START
        self.tracker = Tracker((), self.inboxes, pace)

    def restart(self) -> None:
        """Lose everything that is not kept."""
        self.tracker = Tracker(self.tracker.copy(), self.inboxes, self.pace)

    def pass_time(self, seconds: float, *keys: str, unknown: Iterable[str] = (), restarts: bool = False) -> None:
        end, step = self.now + seconds, 10.0 if seconds <= 7200 else 60.0
        while self.now < end:
            self.now += step
            self.tracker.observe(observation(*keys, unknown=unknown), self.now)
            if restarts:
                self.restart()
            self.deliver()
            if restarts:
                self.restart()

    def deliver(self) -> None:
        for inbox in self.inboxes:
            items = self.tracker.due(inbox, self.now)
            if not items:
                continue
            if inbox.up:
                inbox.told += [(self.now - START, item.alert.key, item.kind) for item in items]
                self.tracker.delivered(inbox, items, self.now)
            else:
                self.tracker.failed(inbox, items, self.now)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_condition_is_told_once_reminded_and_its_end_told(restarts: bool) -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(2 * 86_400 + 3600, "disk", restarts=restarts)
    assert inbox.kinds() == [Kind.FIRING, Kind.REMINDER, Kind.REMINDER]
    assert inbox.told[0][0] == pytest.approx(10 + 300 + 30, abs=90)
    assert inbox.told[1][0] - inbox.told[0][0] == pytest.approx(86_400, abs=90)
    world.pass_time(3600, restarts=restarts)
    assert inbox.kinds() == [Kind.FIRING, Kind.REMINDER, Kind.REMINDER, Kind.RESOLVED]
    world.pass_time(2 * 86_400, restarts=restarts)
    assert len(inbox.told) == 4
    assert world.tracker.copy() == []


def test_what_is_short_is_not_told() -> None:
    inbox = Inbox()
    world = World(inbox)
    for _ in range(50):
        world.pass_time(280, "disk")
        world.pass_time(10)
    assert inbox.told == []


@pytest.mark.parametrize("restarts", [False, True])
def test_what_flaps_is_one_condition(restarts: bool) -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(400, "disk", restarts=restarts)
    for _ in range(50):
        world.pass_time(280, restarts=restarts)
        world.pass_time(10, "disk", restarts=restarts)
    assert inbox.kinds() == [Kind.FIRING]
    world.pass_time(400, restarts=restarts)
    assert inbox.kinds() == [Kind.FIRING, Kind.RESOLVED]


def test_what_is_unknown_neither_begins_nor_ends() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(400, "folder/a")
    world.pass_time(3600, unknown=["folder"])
    assert inbox.kinds("folder/a") == [Kind.FIRING]
    world.pass_time(400)
    assert inbox.kinds("folder/a") == [Kind.FIRING, Kind.RESOLVED]


def test_what_breaks_together_is_told_together() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(20, "folder/a")
    world.pass_time(900, "folder/a", "folder/b")
    (first, _, _), (second, _, _) = inbox.told
    assert first == second


def test_a_receiver_that_is_down_for_hours_learns_what_holds_and_what_ended() -> None:
    up, down = Inbox("up"), Inbox("down", up=False)
    world = World(up, down)
    world.pass_time(3600, "disk", "folder/a", "folder/b")
    world.pass_time(3600, "disk", "folder/a")
    assert down.told == []
    down.up = True
    world.pass_time(3600, "disk")
    assert up.kinds("disk") == down.kinds("disk") == [Kind.FIRING]
    assert down.kinds("folder/b") == [Kind.RESOLVED]  # it came and went while the receiver was down
    assert down.kinds("folder/a") == up.kinds("folder/a") == [Kind.FIRING, Kind.RESOLVED]


def test_a_recovery_is_not_lost_though_the_condition_is_back() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(400, "disk")
    inbox.up = False
    world.pass_time(400)
    world.pass_time(400, "disk")
    inbox.up = True
    world.pass_time(60, "disk")
    assert inbox.kinds() == [Kind.FIRING, Kind.RESOLVED, Kind.FIRING]


def test_a_recovery_waits_for_a_daemon_that_was_stopped_for_days() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(400, "disk")
    inbox.up = False
    world.pass_time(400)
    world.now += 5 * 86_400
    world.restart()
    inbox.up = True
    world.pass_time(60)
    assert inbox.kinds() == [Kind.FIRING, Kind.RESOLVED]


def test_a_message_is_given_up_after_a_day() -> None:
    inbox = Inbox(up=False)
    world = World(inbox)
    world.pass_time(400, "disk")
    world.pass_time(400)
    assert world.tracker.copy()
    world.pass_time(GIVE_UP_S)
    assert world.tracker.copy() == []
    inbox.up = True
    world.pass_time(3600)
    assert inbox.told == []


def test_a_receiver_gets_its_events_alone_and_a_new_one_what_lasts() -> None:
    disks, folders = Inbox("disks", events=("disk",)), Inbox("folders", events=("folder",))
    world = World(disks, folders)
    world.pass_time(400, "disk", "folder/a")
    assert [key for _, key, _ in disks.told] == ["disk"]
    assert [key for _, key, _ in folders.told] == ["folder/a"]
    fresh = Inbox("fresh")
    world.inboxes.append(fresh)
    world.restart()
    world.pass_time(60, "disk", "folder/a")
    assert [kind for _, _, kind in fresh.told] == [Kind.FIRING] * 2
    assert len(disks.told) == len(folders.told) == 1


def test_one_that_forgets_is_told_again_and_again() -> None:
    inbox = Inbox(refresh=60.0)
    world = World(inbox)
    world.pass_time(300 + 60 + 600, "disk")
    assert inbox.kinds()[0] is Kind.FIRING
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(inbox.told)]
    assert len(gaps) >= 8
    assert max(gaps) <= 80


def test_nobody_is_told_of_what_is_silenced_but_of_its_end_who_knows_it() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.pass_time(400, "folder/a")
    world.tracker.silence({"folder/*": START + 7200, "disk": START + 7200})
    world.pass_time(400, "folder/a", "disk")
    assert inbox.kinds("disk") == []
    world.pass_time(400)
    assert inbox.kinds("folder/a") == [Kind.FIRING, Kind.RESOLVED]
    assert inbox.kinds("disk") == []
    assert world.tracker.copy() == []


def test_a_silence_that_ends_tells_what_lasts() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.tracker.silence({"disk": START + 3600})
    world.pass_time(3590, "disk")
    assert inbox.told == []
    world.pass_time(60, "disk")
    assert inbox.kinds() == [Kind.FIRING]


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    inbox = Inbox()
    world = World(inbox)
    world.now += 10 * 365 * 86_400
    world.pass_time(200, "disk")
    world.now = START
    world.pass_time(400, "disk")
    assert inbox.kinds() == [Kind.FIRING]
    world.pass_time(400)
    assert inbox.kinds() == [Kind.FIRING, Kind.RESOLVED]


def test_a_digest_is_told_once_to_everybody() -> None:
    inbox, late = Inbox("a"), Inbox("b", up=False)
    world = World(inbox, late)
    world.tracker.note_digest(START, world.now, "")
    world.pass_time(600, restarts=True)
    assert inbox.told == []
    world.tracker.note_digest(START + 600, world.now, "all is well")
    world.pass_time(3600, restarts=True)
    late.up = True
    world.pass_time(3600, restarts=True)
    assert inbox.kinds("digest") == late.kinds("digest") == [Kind.NOTE]
    assert world.tracker.last_digest == START + 600


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_repeats_nothing_and_loses_no_end(seed: int) -> None:
    """Conditions change, receivers fail, the daemon restarts: every receiver gets a consistent sequence."""
    chance = random.Random(seed)  # noqa: S311 - a life that its seed repeats
    inboxes = [Inbox("a"), Inbox("b"), Inbox("c", events=("disk",))]
    world = World(*inboxes)
    keys = ["disk", "folder/a", "folder/b"]
    for _ in range(40):
        for inbox in inboxes:
            inbox.up = chance.random() < 0.6
        present = [key for key in keys if chance.random() < 0.5]
        unknown = ["folder"] if chance.random() < 0.2 else []
        present = [key for key in present if key.partition("/")[0] not in unknown]
        world.pass_time(chance.choice([20, 100, 320, 900]), *present, unknown=unknown, restarts=chance.random() < 0.3)
        if chance.random() < 0.3:
            world.restart()
    for inbox in inboxes:
        inbox.up = True
    world.pass_time(3600)
    assert world.tracker.copy() == []
    for inbox in inboxes:
        for key in keys:
            kinds = inbox.kinds(key)
            if not inbox.wants(key.partition("/")[0]):
                assert kinds == []
                continue
            assert kinds.count(Kind.FIRING) <= kinds.count(Kind.RESOLVED)
            for earlier, later in pairwise(kinds):
                # Never told twice that it began. An end without a beginning: it passed while the receiver was down.
                assert (earlier, later) != (Kind.FIRING, Kind.FIRING)
