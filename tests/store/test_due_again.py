"""What becomes due again: what the dead held, what a person retries, what a turned clock had put off."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.clock import TurnableClock
from docferry.errors import LeaseLost
from docferry.model import Outcome, State
from docferry.store.database import open_database
from docferry.store.transfers import Transfers
from store.conftest import ACME, Shop

pytestmark = pytest.mark.anyio


# -- dead owners --


async def test_a_sweep_takes_back_what_the_dead_held(shop: Shop) -> None:
    await shop.asking("asked.pdf")
    await shop.sending("sent.pdf")
    await shop.enqueue("leased.pdf")
    await shop.claimed()
    await shop.enqueue("other.pdf")
    alive = shop.other("alive")
    (theirs,) = await shop.claimed(transfers=alive)
    doubt_since = await shop.column("SELECT last_sent FROM transfer WHERE remote_name = 'asked.pdf'")
    shop.clock.turn(50)
    assert await alive.lease_owners() == {"me", "alive"}
    assert await alive.reclaim({"me"}) == 3
    states = dict(await shop.rows("SELECT remote_name, state FROM transfer"))
    assert states == {
        "asked.pdf": State.DOUBTFUL,
        "sent.pdf": State.DOUBTFUL,
        "leased.pdf": State.WAITING,
        "other.pdf": State.LEASED,
    }
    # Nobody saw that try end: the list must lag from now on, but not anew for what was only asked about.
    now = shop.clock.now()
    assert await shop.column("SELECT last_sent FROM transfer WHERE remote_name = 'sent.pdf'") == [now]
    assert await shop.column("SELECT last_sent FROM transfer WHERE remote_name = 'asked.pdf'") == doubt_since
    assert await shop.column("SELECT lease_owner FROM transfer WHERE lease_owner IS NOT NULL") == ["alive"]
    ended = await shop.rows("SELECT state, ended FROM attempt WHERE ended = :now ORDER BY state", now=now)
    assert ended == [("doubtful", now), ("doubtful", now), ("waiting", now)]
    await alive.settle(theirs, Outcome(State.WAITING), was=State.LEASED)


async def test_whoever_was_taken_for_dead_can_no_longer_move(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    await shop.other("heir").reclaim({"me"})
    with pytest.raises(LeaseLost):
        await shop.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)
    assert await shop.column("SELECT state FROM transfer") == ["doubtful"]


async def test_nobody_is_dead_without_a_name(shop: Shop) -> None:
    await shop.sending("a.pdf")
    assert await shop.other("heir").reclaim(set()) == 0
    assert await shop.column("SELECT state FROM transfer") == ["sending"]


async def test_asking_elsewhere_is_what_others_ask(shop: Shop) -> None:
    await shop.asking("a.pdf")
    assert await shop.transfers.asking_elsewhere() == set()
    assert await shop.other("neighbour").asking_elsewhere() == {ACME.lane}


# -- a person says: again --


@pytest.mark.parametrize(
    ("reason", "becomes"), [("undecidable", State.DOUBTFUL), ("refused", State.WAITING), ("gave_up", State.WAITING)]
)
async def test_retry_asks_first_where_it_may_have_arrived(shop: Shop, reason: str, becomes: State) -> None:
    await shop.held("a.pdf", reason)
    await shop.change("UPDATE transfer SET tries = 9, next_attempt = 9e12")
    shop.clock.turn(100)
    assert await shop.transfers.retry(ids=[1]) == 1
    statement = "SELECT state, tries, reason, next_attempt, due_since FROM transfer"
    assert await shop.rows(statement) == [(becomes, 0, None, shop.clock.now(), shop.clock.now())]


async def test_retry_reaches_only_what_was_named(shop: Shop) -> None:
    await shop.held("a.pdf", "refused")
    await shop.held("b.pdf", "too_large")
    assert await shop.transfers.retry() == 0
    assert await shop.transfers.retry(mapping="elsewhere") == 0
    assert await shop.transfers.retry(reason="too_large", mapping="m") == 1
    assert await shop.column("SELECT remote_name FROM transfer WHERE state = 'held'") == ["a.pdf"]
    assert await shop.transfers.retry(everything=True) == 2
    assert await shop.column("SELECT state FROM transfer") == ["waiting", "waiting"]


@pytest.mark.parametrize("state", [State.LEASED, State.SENDING, State.ASKING])
async def test_retry_leaves_alone_what_is_in_hand(shop: Shop, state: State) -> None:
    await shop.brought_to(state)
    assert await shop.transfers.retry(everything=True) == 0
    assert await shop.column("SELECT state FROM transfer") == [state]


async def test_retry_keeps_what_a_doubt_is_about(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    await shop.transfers.settle(transfer, Outcome(State.DOUBTFUL, "batch"), was=State.SENDING)
    assert await shop.transfers.retry(everything=True) == 1
    assert await shop.rows("SELECT state, reason FROM transfer") == [("doubtful", "batch")]


async def test_what_is_final_stays_final(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    await shop.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)
    assert await shop.transfers.retry(everything=True) == 0
    assert await shop.transfers.retry(ids=[1]) == 0
    assert await shop.other("heir").reclaim({"me"}) == 0
    assert await shop.claimed() == []


# -- the clock --


async def test_two_processes_turn_the_clock_once(tmp_path: Path) -> None:
    clock = TurnableClock()
    async with open_database(tmp_path / "docferry.db") as database:
        shop = Shop(database, clock, None, None)  # type: ignore[arg-type]  # only its look at the tables is needed
        one, two = Transfers(database, clock, "one"), Transfers(database, clock, "two")
        await shop.change(
            "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, dedupe_key, size, state, lease, tries, "
            "key_version, created, due_since, next_attempt, updated, first_sent, last_sent) VALUES "
            "('u', 'm', 'codat', 'codat', 'n', 'o', 1, 'doubtful', 0, 0, 0, :t, :t, :t + 60, :t, :t - 5, :t - 3)",
            t=clock.now(),
        )
        before = clock.now()
        await one.shift_times(clock.now() - clock.steady())
        clock.wall += 86_400
        await one.shift_times(clock.now() - clock.steady())
        await two.shift_times(clock.now() - clock.steady())
        columns = "next_attempt, first_sent, last_sent, due_since"
        day = before + 86_400
        assert await shop.rows(f"SELECT {columns} FROM transfer") == [(day + 60, day - 5, day - 3, day)]  # noqa: S608 - ours


async def test_what_comes_from_the_future_is_due_now(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    shop.clock.turn(-86_400)
    assert await shop.claimed() == []
    assert await shop.transfers.reset_future_rows() == 1
    assert len(await shop.claimed()) == 1


@pytest.mark.parametrize("state", [State.SENDING, State.HELD])
async def test_a_doubt_from_the_future_is_looked_for_where_it_may_stand(shop: Shop, state: State) -> None:
    """Killed with a wrong clock while it was sent, or held as undecidable then: the list is read from long before, or
    what arrived would not be seen there, and go twice.
    """
    if state is State.SENDING:
        await shop.sending("a.pdf")
    else:
        asked = await shop.asking("a.pdf")
        await shop.transfers.settle(asked, Outcome(State.HELD, "undecidable", "why"), was=State.ASKING)
    shop.clock.turn(-86_400)
    now = shop.clock.now()
    heir = shop.other("heir")
    await heir.reset_future_rows()
    await heir.reclaim({"me"})
    await heir.retry(reason="undecidable")
    (doubt,) = await shop.claimed(transfers=heir)
    assert doubt.state is State.ASKING
    assert doubt.first_sent is not None
    assert doubt.first_sent < now - 86_400
    assert doubt.last_sent is not None
    assert doubt.last_sent <= now
