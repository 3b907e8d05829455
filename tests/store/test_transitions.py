"""Transitions: their guards, their attempts, and the times that they store."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from docferry.errors import LeaseLost
from docferry.model import TRANSITIONS, Outcome, Receipt, State, Transfer
from docferry.store.opening import open_database
from docferry.store.receipt_log import ReceiptLog
from docferry.store.reports import AttemptRow, Reports
from docferry.store.statement import Sql
from store.conftest import StoreEnv

pytestmark = pytest.mark.anyio
FROM_LEASE = sorted((a, b) for a, b in TRANSITIONS if a in (State.LEASED, State.SENDING, State.ASKING))


# -- guards: lease, owner and state, for every transition --


@pytest.mark.parametrize("guard", ["lease", "owner", "state"])
@pytest.mark.parametrize(("was", "to"), FROM_LEASE)
async def test_a_transition_without_the_lease_changes_nothing(env: StoreEnv, was: State, to: State, guard: str) -> None:
    transfer = await env.brought_to(was)
    if guard == "lease":
        await env.change("UPDATE transfer SET lease = lease + 1")
    elif guard == "owner":
        await env.change("UPDATE transfer SET lease_owner = 'another'")
    else:
        elsewhere = {"leased": "sending", "sending": "asking", "asking": "leased"}[was]
        await env.change("UPDATE transfer SET state = :state", state=elsewhere)
    before = await env.everything()
    marks = env.transfers.mark_sending([transfer])
    settles = env.transfers.settle(transfer, Outcome(to if to is not State.SENDING else State.SENT), was=was)
    move, other = (marks, settles) if to is State.SENDING else (settles, marks)
    other.close()
    with pytest.raises(LeaseLost):
        await move
    assert await env.everything() == before


@pytest.mark.parametrize(("was", "to"), FROM_LEASE)
async def test_every_transition_from_a_lease_writes_its_attempt(env: StoreEnv, was: State, to: State) -> None:
    transfer = await env.brought_to(was)
    env.clock.turn(2)
    if to is State.SENDING:
        await env.transfers.mark_sending([transfer])
    else:
        outcome = Outcome(to, "because", "so", receipt=Receipt(200, "corr", '"tag"', None, "answer"))
        await env.transfers.settle(transfer, outcome, was=was)
    ((state, owner, lease),) = await env.rows("SELECT state, lease_owner, lease FROM transfer")
    assert (state, lease) == (to, transfer.lease)
    assert owner == ("me" if to is State.SENDING else None)
    reports = Reports(env.database)
    told = (await reports.attempts(1))[-1]
    began = env.clock.now() - (2 if was is State.SENDING else 0)
    if to is State.SENDING:
        assert told == AttemptRow(lease, began, None, "sending", None, None, None, None, None)
        assert not await env.rows("SELECT * FROM attempt WHERE lease = :lease", lease=lease)
    else:
        assert told == AttemptRow(lease, began, env.clock.now(), to, "so", 200, "corr", '"tag"', "answer")
    row = await reports.by_id(1)
    assert row is not None
    assert row.attempts == lease


@pytest.mark.parametrize("was", [State.WAITING, State.SENT, State.GONE, State.HELD, State.DOUBTFUL])
async def test_a_transition_that_is_not_allowed_is_a_bug(env: StoreEnv, was: State) -> None:
    transfer = replace(await env.brought_to(State.LEASED), state=was)
    with pytest.raises(AssertionError, match="no such transition"):
        await env.transfers.settle(transfer, Outcome(State.SENT), was=was)
    assert await env.column("SELECT state FROM transfer") == ["leased"]


async def test_a_lost_lease_does_not_affect_others_in_the_commit(env: StoreEnv) -> None:
    """Of transitions in one commit, only the one without its lease fails."""
    await env.enqueue(*(f"{number}.pdf" for number in range(8)))
    claimed = await env.claimed()
    await env.change("UPDATE transfer SET lease = 7 WHERE id = :id", id=claimed[3].id)
    lost: list[int] = []

    async def settles(transfer: Transfer) -> None:
        try:
            await env.transfers.settle(transfer, Outcome(State.WAITING), was=State.LEASED)
        except LeaseLost:
            lost.append(transfer.id)

    async with anyio.create_task_group() as group:
        for transfer in claimed:
            group.start_soon(settles, transfer)
    assert lost == [claimed[3].id]
    assert await env.column("SELECT count(*) FROM attempt") == [7]
    assert await env.column("SELECT state FROM transfer WHERE lease = 7") == ["leased"]


async def test_a_stale_lease_is_lost_beside_the_present_one(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    (old,) = await env.claimed()
    await env.transfers.settle(old, Outcome(State.WAITING), was=State.LEASED)
    (new,) = await env.claimed()
    told: dict[int, str] = {}

    async def settles(transfer: Transfer) -> None:
        try:
            await env.transfers.settle(transfer, Outcome(State.WAITING), was=State.LEASED)
            told[transfer.lease] = "moved"
        except LeaseLost:
            told[transfer.lease] = "lost"

    async with anyio.create_task_group() as group:
        group.start_soon(settles, new)
        group.start_soon(settles, old)
    assert told == {1: "lost", 2: "moved"}


# -- times and counters --


async def test_sending_is_committed_with_its_time(env: StoreEnv, location: Path | str) -> None:
    await env.sending("a.pdf")
    async with open_database(location) as other:
        rows = await other.fetch_all(Sql("SELECT state, first_sent, last_sent FROM transfer"))
    assert rows == [("sending", env.clock.now(), env.clock.now())]


async def test_a_doubt_keeps_its_begin_and_end(env: StoreEnv) -> None:
    transfer = await env.sending("a.pdf")
    began = env.clock.now()
    env.clock.turn(20)
    await env.transfers.settle(transfer, Outcome(State.DOUBTFUL), was=State.SENDING)
    assert await env.rows("SELECT first_sent, last_sent FROM transfer") == [(began, began + 20)]
    env.clock.turn(100)
    (asking,) = await env.claimed()
    await env.transfers.mark_sending([asking])
    env.clock.turn(5)
    await env.transfers.settle(asking, Outcome(State.DOUBTFUL), was=State.SENDING)
    assert await env.rows("SELECT first_sent, last_sent FROM transfer") == [(began, began + 125)]


@pytest.mark.parametrize("to", [State.WAITING, State.HELD, State.GONE])
async def test_a_refused_try_leaves_no_time_of_sending(env: StoreEnv, to: State) -> None:
    """Otherwise a foreign file of that name, uploaded between two tries, would count as this document."""
    transfer = await env.sending("a.pdf")
    env.clock.turn(20)
    await env.transfers.settle(transfer, Outcome(to), was=State.SENDING)
    assert await env.rows("SELECT first_sent, last_sent FROM transfer") == [(None, None)]


async def test_a_refused_try_restores_the_times_of_an_earlier_doubt(env: StoreEnv) -> None:
    transfer = await env.asking("a.pdf")
    times = await env.rows("SELECT first_sent, last_sent FROM transfer")
    env.clock.turn(60)
    await env.transfers.mark_sending([transfer])
    env.clock.turn(1)
    await env.transfers.settle(transfer, Outcome(State.WAITING), was=State.SENDING)
    assert await env.rows("SELECT first_sent, last_sent FROM transfer") == times


async def test_the_outcome_counts_tries_and_key_versions(env: StoreEnv) -> None:
    transfer = await env.sending("a.pdf")
    await env.transfers.settle(transfer, Outcome(State.WAITING, fresh_key=True), was=State.SENDING)
    (second,) = await env.claimed()
    assert (second.tries, second.key_version) == (1, 1)
    await env.transfers.settle(second, Outcome(State.WAITING, costs_a_try=False), was=State.LEASED)
    (third,) = await env.claimed()
    assert (third.tries, third.key_version) == (1, 1)


async def test_a_gone_transfer_frees_its_path_and_dedupe_key(env: StoreEnv) -> None:
    transfer = await env.brought_to(State.LEASED)
    await env.transfers.settle(transfer, Outcome(State.GONE), was=State.LEASED)
    assert await env.documents.known("m", [b""]) == {}
    await env.enqueue("a.pdf")
    (again,) = await env.claimed()
    assert again.id != transfer.id


async def test_a_text_that_no_database_stores_fails_no_other_transition(env: StoreEnv) -> None:
    """The text comes from a remote's response, and is stored with a replacement character."""
    await env.enqueue("a.pdf", "b.pdf")
    claimed = await env.claimed()
    await env.transfers.mark_sending(claimed)
    answers = {"a.pdf": Receipt(200, "c\0r", "e\udcff", None, "\ud83d"), "b.pdf": Receipt(200, "corr", "\U0001f600")}
    async with anyio.create_task_group() as group:
        for transfer in claimed:
            outcome = Outcome(State.SENT, receipt=answers[transfer.remote_name])
            group.start_soon(partial(env.transfers.settle, transfer, outcome, was=State.SENDING))
    assert await env.column("SELECT state FROM transfer") == ["sent", "sent"]
    found = await env.rows("SELECT etag, correlation_id FROM attempt ORDER BY transfer_id")
    assert found[1] == ("\U0001f600", "corr")
    assert found[0][0] == "e?"
    assert (await ReceiptLog(env.database, env.clock).audit()).problem_count == 0
