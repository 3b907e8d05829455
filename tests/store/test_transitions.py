"""The queue's moves: guards, attempts, and what a move remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text

from docferry.errors import LeaseLost
from docferry.model import TRANSITIONS, Outcome, Receipt, State, Transfer
from docferry.store.database import open_database
from docferry.store.reports import AttemptRow, Reports
from store.conftest import Shop

pytestmark = pytest.mark.anyio
FROM_LEASE = sorted((a, b) for a, b in TRANSITIONS if a in (State.LEASED, State.SENDING, State.ASKING))


# -- guards: each of lease, owner and state, for every move --


@pytest.mark.parametrize("guard", ["lease", "owner", "state"])
@pytest.mark.parametrize(("was", "to"), FROM_LEASE)
async def test_a_move_that_is_not_ours_changes_nothing(shop: Shop, was: State, to: State, guard: str) -> None:
    transfer = await shop.brought_to(was)
    if guard == "lease":
        await shop.change("UPDATE transfer SET lease = lease + 1")
    elif guard == "owner":
        await shop.change("UPDATE transfer SET lease_owner = 'another'")
    else:
        elsewhere = {"leased": "sending", "sending": "asking", "asking": "leased"}[was]
        await shop.change("UPDATE transfer SET state = :state", state=elsewhere)
    before = await shop.everything()
    marks = shop.transfers.mark_sending([transfer])
    settles = shop.transfers.settle(transfer, Outcome(to if to is not State.SENDING else State.SENT), was=was)
    move, other = (marks, settles) if to is State.SENDING else (settles, marks)
    other.close()
    with pytest.raises(LeaseLost):
        await move
    assert await shop.everything() == before


@pytest.mark.parametrize(("was", "to"), FROM_LEASE)
async def test_every_move_from_a_lease_is_made_and_what_ends_has_its_attempt(shop: Shop, was: State, to: State) -> None:
    transfer = await shop.brought_to(was)
    shop.clock.turn(2)
    if to is State.SENDING:
        await shop.transfers.mark_sending([transfer])
    else:
        outcome = Outcome(to, "because", "so", receipt=Receipt(200, "corr", '"tag"', None, "answer"))
        await shop.transfers.settle(transfer, outcome, was=was)
    ((state, owner, lease),) = await shop.rows("SELECT state, lease_owner, lease FROM transfer")
    assert (state, lease) == (to, transfer.lease)
    assert owner == ("me" if to is State.SENDING else None)
    reports = Reports(shop.database)
    told = (await reports.attempts(1))[-1]
    began = shop.clock.now() - (2 if was is State.SENDING else 0)
    if to is State.SENDING:
        assert told == AttemptRow(lease, began, None, "sending", None, None, None, None, None)
        assert not await shop.rows("SELECT * FROM attempt WHERE lease = :lease", lease=lease)
    else:
        assert told == AttemptRow(lease, began, shop.clock.now(), to, "so", 200, "corr", '"tag"', "answer")
    row = await reports.by_id(1)
    assert row is not None
    assert row.attempts == lease


@pytest.mark.parametrize("was", [State.WAITING, State.SENT, State.GONE, State.HELD, State.DOUBTFUL])
async def test_a_move_that_nobody_may_make_is_a_bug(shop: Shop, was: State) -> None:
    transfer = replace(await shop.brought_to(State.LEASED), state=was)
    with pytest.raises(AssertionError, match="no such transition"):
        await shop.transfers.settle(transfer, Outcome(State.SENT), was=was)
    assert await shop.column("SELECT state FROM transfer") == ["leased"]


async def test_one_lost_lease_does_not_take_others_with_it(shop: Shop) -> None:
    """TransitionWriter that share a commit: only the one that is lost is told so."""
    await shop.enqueue(*(f"{number}.pdf" for number in range(8)))
    claimed = await shop.claimed()
    await shop.change("UPDATE transfer SET lease = 7 WHERE id = :id", id=claimed[3].id)
    lost: list[int] = []

    async def settles(transfer: Transfer) -> None:
        try:
            await shop.transfers.settle(transfer, Outcome(State.WAITING), was=State.LEASED)
        except LeaseLost:
            lost.append(transfer.id)

    async with anyio.create_task_group() as group:
        for transfer in claimed:
            group.start_soon(settles, transfer)
    assert lost == [claimed[3].id]
    assert await shop.column("SELECT count(*) FROM attempt") == [7]
    assert await shop.column("SELECT state FROM transfer WHERE lease = 7") == ["leased"]


async def test_a_stale_lease_beside_the_present_one_is_told_so(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    (old,) = await shop.claimed()
    await shop.transfers.settle(old, Outcome(State.WAITING), was=State.LEASED)
    (new,) = await shop.claimed()
    told: dict[int, str] = {}

    async def settles(transfer: Transfer) -> None:
        try:
            await shop.transfers.settle(transfer, Outcome(State.WAITING), was=State.LEASED)
            told[transfer.lease] = "moved"
        except LeaseLost:
            told[transfer.lease] = "lost"

    async with anyio.create_task_group() as group:
        group.start_soon(settles, new)
        group.start_soon(settles, old)
    assert told == {1: "lost", 2: "moved"}


# -- what a move remembers --


async def test_intent_is_committed_with_its_time(shop: Shop, location: Path | str) -> None:
    await shop.sending("a.pdf")
    async with open_database(location) as other:
        rows = await other.fetch_all(text("SELECT state, first_sent, last_sent FROM transfer"))
    assert rows == [("sending", shop.clock.now(), shop.clock.now())]


async def test_a_doubt_remembers_when_it_began_and_when_it_ended(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    began = shop.clock.now()
    shop.clock.turn(20)
    await shop.transfers.settle(transfer, Outcome(State.DOUBTFUL), was=State.SENDING)
    assert await shop.rows("SELECT first_sent, last_sent FROM transfer") == [(began, began + 20)]
    shop.clock.turn(100)
    (asking,) = await shop.claimed()
    await shop.transfers.mark_sending([asking])
    shop.clock.turn(5)
    await shop.transfers.settle(asking, Outcome(State.DOUBTFUL), was=State.SENDING)
    assert await shop.rows("SELECT first_sent, last_sent FROM transfer") == [(began, began + 125)]


@pytest.mark.parametrize("to", [State.WAITING, State.HELD, State.GONE])
async def test_what_was_surely_not_taken_was_never_sent(shop: Shop, to: State) -> None:
    """Else a stranger's file of that name, of the days between two tries, would be taken for ours."""
    transfer = await shop.sending("a.pdf")
    shop.clock.turn(20)
    await shop.transfers.settle(transfer, Outcome(to), was=State.SENDING)
    assert await shop.rows("SELECT first_sent, last_sent FROM transfer") == [(None, None)]


async def test_what_was_surely_not_taken_leaves_earlier_doubts_as_they_were(shop: Shop) -> None:
    transfer = await shop.asking("a.pdf")
    times = await shop.rows("SELECT first_sent, last_sent FROM transfer")
    shop.clock.turn(60)
    await shop.transfers.mark_sending([transfer])
    shop.clock.turn(1)
    await shop.transfers.settle(transfer, Outcome(State.WAITING), was=State.SENDING)
    assert await shop.rows("SELECT first_sent, last_sent FROM transfer") == times


async def test_tries_and_keys_are_counted_as_the_outcome_says(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    await shop.transfers.settle(transfer, Outcome(State.WAITING, fresh_key=True), was=State.SENDING)
    (second,) = await shop.claimed()
    assert (second.tries, second.key_version) == (1, 1)
    await shop.transfers.settle(second, Outcome(State.WAITING, costs_a_try=False), was=State.LEASED)
    (third,) = await shop.claimed()
    assert (third.tries, third.key_version) == (1, 1)


async def test_gone_frees_the_path_and_the_bytes(shop: Shop) -> None:
    transfer = await shop.brought_to(State.LEASED)
    await shop.transfers.settle(transfer, Outcome(State.GONE), was=State.LEASED)
    assert await shop.documents.known("m", [b""]) == {}
    await shop.enqueue("a.pdf")
    (again,) = await shop.claimed()
    assert again.id != transfer.id
