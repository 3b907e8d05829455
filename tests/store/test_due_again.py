"""Transfers that become due again: after a crash, a retry, or a jump of the clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.clock import TurnableClock
from docferry.errors import LeaseLost
from docferry.model import Outcome, State, Target
from docferry.store.opening import open_database
from docferry.store.transfers import Transfers
from store.conftest import ACME, StoreEnv

pytestmark = pytest.mark.anyio


# -- dead owners --


async def test_leases_of_dead_owners_are_reclaimed(env: StoreEnv) -> None:
    await env.asking("asked.pdf")
    await env.sending("sent.pdf")
    await env.enqueue("leased.pdf")
    await env.claimed()
    await env.enqueue("other.pdf", target=Target("wootiv"))  # a company belongs to one process at a time
    alive = env.other("alive")
    (theirs,) = await env.claimed(transfers=alive)
    doubt_since = await env.column("SELECT last_sent FROM transfer WHERE remote_name = 'asked.pdf'")
    env.clock.turn(50)
    assert await alive.lease_owners() == {"me", "alive"}
    assert await alive.reclaim({"me"}) == 3
    states = dict(await env.rows("SELECT remote_name, state FROM transfer"))
    assert states == {
        "asked.pdf": State.DOUBTFUL,
        "sent.pdf": State.DOUBTFUL,
        "leased.pdf": State.WAITING,
        "other.pdf": State.LEASED,
    }
    # Nobody observed the end of the sending, so `list_lag` counts from now. A lookup does not renew it.
    now = env.clock.now()
    assert await env.column("SELECT last_sent FROM transfer WHERE remote_name = 'sent.pdf'") == [now]
    assert await env.column("SELECT last_sent FROM transfer WHERE remote_name = 'asked.pdf'") == doubt_since
    assert await env.column("SELECT lease_owner FROM transfer WHERE lease_owner IS NOT NULL") == ["alive"]
    ended = await env.rows("SELECT state, ended FROM attempt WHERE ended = :now ORDER BY state", now=now)
    assert ended == [("doubtful", now), ("doubtful", now), ("waiting", now)]
    await alive.settle(theirs, Outcome(State.WAITING), was=State.LEASED)


async def test_a_reclaimed_lease_is_lost(env: StoreEnv) -> None:
    transfer = await env.sending("a.pdf")
    await env.other("heir").reclaim({"me"})
    with pytest.raises(LeaseLost):
        await env.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)
    assert await env.column("SELECT state FROM transfer") == ["doubtful"]


async def test_reclaiming_from_nobody_changes_nothing(env: StoreEnv) -> None:
    await env.sending("a.pdf")
    assert await env.other("heir").reclaim(set()) == 0
    assert await env.column("SELECT state FROM transfer") == ["sending"]


async def test_lookups_of_other_processes_are_told_apart(env: StoreEnv) -> None:
    await env.asking("a.pdf")
    assert await env.transfers.asking_elsewhere() == set()
    assert await env.other("neighbour").asking_elsewhere() == {ACME.lane}


# -- retry --


@pytest.mark.parametrize(
    ("reason", "becomes"), [("undecidable", State.DOUBTFUL), ("refused", State.WAITING), ("gave_up", State.WAITING)]
)
async def test_retry_makes_an_undecidable_transfer_doubtful(env: StoreEnv, reason: str, becomes: State) -> None:
    await env.held("a.pdf", reason)
    await env.change("UPDATE transfer SET tries = 9, next_attempt = 9e12")
    env.clock.turn(100)
    assert await env.transfers.retry(ids=[1]) == 1
    statement = "SELECT state, tries, reason, next_attempt, due_since FROM transfer"
    assert await env.rows(statement) == [(becomes, 0, None, env.clock.now(), env.clock.now())]


async def test_retry_changes_only_the_named_transfers(env: StoreEnv) -> None:
    await env.held("a.pdf", "refused")
    await env.held("b.pdf", "too_large")
    assert await env.transfers.retry() == 0
    assert await env.transfers.retry(mapping="elsewhere") == 0
    assert await env.transfers.retry(reason="too_large", mapping="m") == 1
    assert await env.column("SELECT remote_name FROM transfer WHERE state = 'held'") == ["a.pdf"]
    assert await env.transfers.retry(everything=True) == 2
    assert await env.column("SELECT state FROM transfer") == ["waiting", "waiting"]


@pytest.mark.parametrize("state", [State.LEASED, State.SENDING, State.ASKING])
async def test_retry_does_not_change_leased_transfers(env: StoreEnv, state: State) -> None:
    await env.brought_to(state)
    assert await env.transfers.retry(everything=True) == 0
    assert await env.column("SELECT state FROM transfer") == [state]


async def test_retry_keeps_the_reason_of_a_doubt(env: StoreEnv) -> None:
    transfer = await env.sending("a.pdf")
    await env.transfers.settle(transfer, Outcome(State.DOUBTFUL, "batch"), was=State.SENDING)
    assert await env.transfers.retry(everything=True) == 1
    assert await env.rows("SELECT state, reason FROM transfer") == [("doubtful", "batch")]


async def test_a_final_state_never_changes(env: StoreEnv) -> None:
    transfer = await env.sending("a.pdf")
    await env.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)
    assert await env.transfers.retry(everything=True) == 0
    assert await env.transfers.retry(ids=[1]) == 0
    assert await env.other("heir").reclaim({"me"}) == 0
    assert await env.claimed() == []


# -- the clock --


async def test_two_processes_shift_times_once(tmp_path: Path) -> None:
    clock = TurnableClock()
    async with open_database(tmp_path / "docferry.db") as database:
        env = StoreEnv(database, clock, None, None)  # type: ignore[arg-type]  # only its access to the tables is used
        one, two = Transfers(database, clock, "one"), Transfers(database, clock, "two")
        await env.change(
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
        assert await env.rows(f"SELECT {columns} FROM transfer") == [(day + 60, day - 5, day - 3, day)]  # noqa: S608 - ours


async def test_a_row_from_the_future_is_due_now(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    env.clock.turn(-86_400)
    assert await env.claimed() == []
    assert await env.transfers.reset_future_rows() == 1
    assert len(await env.claimed()) == 1


@pytest.mark.parametrize("state", [State.SENDING, State.HELD])
async def test_a_doubt_from_the_future_is_looked_up_from_long_before(env: StoreEnv, state: State) -> None:
    """The wrong clock may have sent it at any time, and a list of recent uploads could lack it."""
    if state is State.SENDING:
        await env.sending("a.pdf")
    else:
        asked = await env.asking("a.pdf")
        await env.transfers.settle(asked, Outcome(State.HELD, "undecidable", "why"), was=State.ASKING)
    env.clock.turn(-86_400)
    now = env.clock.now()
    heir = env.other("heir")
    await heir.reset_future_rows()
    await heir.reclaim({"me"})
    await heir.retry(reason="undecidable")
    (doubt,) = await env.claimed(transfers=heir)
    assert doubt.state is State.ASKING
    assert doubt.first_sent is not None
    assert doubt.first_sent < now - 86_400
    assert doubt.last_sent is not None
    assert doubt.last_sent <= now
