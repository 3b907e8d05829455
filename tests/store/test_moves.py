"""The queue's moves: claims, guards, attempts, sweeps, retries and what the clock does."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from docferry.clock import TurnableClock
from docferry.errors import LeaseLost
from docferry.model import MOVES, Outcome, Receipt, State, Target, Transfer
from docferry.store.database import open_database
from docferry.store.transfers import Pick, Transfers
from store.conftest import ACME, Shop, planned

pytestmark = pytest.mark.anyio
FROM_LEASE = sorted((a, b) for a, b in MOVES if a in (State.LEASED, State.SENDING, State.ASKING))


async def brought_to(shop: Shop, state: State) -> Transfer:
    """A transfer in one of the leased states."""
    if state is State.SENDING:
        return await shop.sending("a.pdf")
    if state is State.ASKING:
        return await shop.asking("a.pdf")
    await shop.enqueue("a.pdf")
    (transfer,) = await shop.claimed()
    return transfer


# -- claims --


async def test_a_claim_leases_what_is_due(shop: Shop) -> None:
    await shop.enqueue("a.pdf", "b.pdf")
    claimed = await shop.claimed()
    assert [(t.state, t.lease, t.remote_name) for t in claimed] == [
        (State.LEASED, 1, "a.pdf"),
        (State.LEASED, 1, "b.pdf"),
    ]
    assert await shop.rows("SELECT state, owner, lease FROM transfer") == [("leased", "me", 1)] * 2
    assert await shop.claimed() == []


async def test_a_claim_brings_what_was_known_of_the_bytes(shop: Shop) -> None:
    """The first who has them says what they are; whoever joins changes nothing."""
    taken = planned("a.pdf", "same", fingerprint="f" * 32, md5="5" * 32)
    await shop.documents.apply("m", [taken, planned("b.pdf", "other")])
    await shop.documents.apply(
        "m", [planned("c.pdf", "same", fingerprint="0" * 32), planned("d.pdf", "other", md5="1")]
    )
    known = {t.remote_name: (t.sha256, t.fingerprint, t.md5) for t in await shop.claimed()}
    assert known == {
        "a.pdf": (sha256(b"same").hexdigest(), "f" * 32, "5" * 32),
        "b.pdf": (sha256(b"other").hexdigest(), None, None),
    }


async def test_a_claim_takes_what_it_was_told_to(shop: Shop) -> None:
    other = Target("codat", "other", "bank")
    await shop.enqueue(*(f"a{n}.pdf" for n in range(9)))
    await shop.enqueue(*(f"b{n}.pdf" for n in range(9)), mapping="n", target=other)
    lanes = {lane.mapping: lane for lane in await shop.transfers.lanes()}
    claimed = await shop.transfers.claim([Pick(lanes["m"], 2), Pick(lanes["n"], 5)], 6)
    assert Counter(t.mapping for t in claimed) in ({"m": 2, "n": 4}, {"m": 1, "n": 5})
    assert await shop.column("SELECT count(*) FROM transfer WHERE state = 'leased'") == [6]


async def test_what_is_not_due_yet_is_not_claimed(shop: Shop) -> None:
    transfer = await brought_to(shop, State.LEASED)
    await shop.transfers.settle(transfer, Outcome(State.WAITING, delay=10), was=State.LEASED)
    assert await shop.claimed() == []
    shop.clock.turn(9.9)
    assert await shop.claimed() == []
    shop.clock.turn(0.2)
    assert [t.lease for t in await shop.claimed()] == [2]


async def test_doubts_are_claimed_before_anything_new(shop: Shop) -> None:
    await shop.doubtful("doubt.pdf")
    await shop.enqueue("new.pdf")
    picks = [Pick(lane, 5) for lane in await shop.transfers.lanes()]
    (first,) = await shop.transfers.claim(picks, 1)
    assert (first.remote_name, first.state) == ("doubt.pdf", State.ASKING)


async def test_lanes_tell_each_lane_once_with_its_earliest(shop: Shop) -> None:
    for company in ("x", "y"):
        for mapping in ("m", "n"):
            names = [f"{company}{mapping}{n}.pdf" for n in range(4)]
            await shop.enqueue(*names, mapping=mapping, target=Target("codat", company, "bank"))
    await shop.change("UPDATE transfer SET next_attempt = id")
    lanes = await shop.transfers.lanes()
    assert sorted((lane.mapping, lane.lane) for lane in lanes) == [
        ("m", "codat/x/bank"),
        ("m", "codat/y/bank"),
        ("n", "codat/x/bank"),
        ("n", "codat/y/bank"),
    ]
    earliest = dict(await shop.rows("SELECT mapping || lane, min(next_attempt) FROM transfer GROUP BY 1"))
    assert {lane.mapping + lane.lane: lane.due for lane in lanes} == earliest


CLAIMANT = """
import sys, anyio
from pathlib import Path
from docferry.clock import TurnableClock
from docferry.store.database import open_database
from docferry.store.transfers import Pick, Transfers

async def main():
    async with open_database(Path(sys.argv[1])) as database:
        transfers, found = Transfers(database, TurnableClock(), sys.argv[2]), []
        print("ready", flush=True)
        sys.stdin.readline()
        async def claims():
            while lanes := await transfers.lanes():
                found.extend(t.id for t in await transfers.claim([Pick(lane, 3) for lane in lanes], 3))
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(claims)
        print(*found)

anyio.run(main)
"""


async def test_no_two_claimants_get_the_same(shop: Shop, tmp_path: Path) -> None:
    """Eight claimants in two processes over 500 rows."""
    await shop.enqueue(*(f"{number}.pdf" for number in range(500)))

    def race() -> list[int]:
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMANT, str(tmp_path / "docferry.db"), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        ]
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        return [int(number) for program in programs for number in program.communicate(timeout=60)[0].split()]

    found = await anyio.to_thread.run_sync(race)
    assert len(found) == 500
    assert len(set(found)) == 500
    assert await shop.column("SELECT DISTINCT lease FROM transfer") == [1]


# -- guards: each of lease, owner and state, for every move --


@pytest.mark.parametrize("guard", ["lease", "owner", "state"])
@pytest.mark.parametrize(("was", "to"), FROM_LEASE)
async def test_a_move_that_is_not_ours_changes_nothing(shop: Shop, was: State, to: State, guard: str) -> None:
    transfer = await brought_to(shop, was)
    if guard == "lease":
        await shop.change("UPDATE transfer SET lease = lease + 1")
    elif guard == "owner":
        await shop.change("UPDATE transfer SET owner = 'another'")
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
async def test_every_move_from_a_lease_is_made_with_its_attempt(shop: Shop, was: State, to: State) -> None:
    transfer = await brought_to(shop, was)
    shop.clock.turn(2)
    if to is State.SENDING:
        await shop.transfers.mark_sending([transfer])
    else:
        outcome = Outcome(to, "because", "so", receipt=Receipt(200, "corr", '"tag"', None, "answer"))
        await shop.transfers.settle(transfer, outcome, was=was)
    ((state, owner, lease),) = await shop.rows("SELECT state, owner, lease FROM transfer")
    assert (state, lease) == (to, transfer.lease)
    assert owner == ("me" if to is State.SENDING else None)
    statement = "SELECT state, ended, status, correlation_id, etag, proof, detail FROM attempt WHERE lease = :lease"
    (attempt,) = await shop.rows(statement, lease=lease)
    if to is State.SENDING:
        assert attempt == ("sending", None, None, None, None, None, None)
    else:
        assert attempt == (to, shop.clock.now(), 200, "corr", '"tag"', "answer", "so")


@pytest.mark.parametrize("was", [State.WAITING, State.SENT, State.GONE, State.HELD, State.DOUBTFUL])
async def test_a_move_that_nobody_may_make_is_a_bug(shop: Shop, was: State) -> None:
    transfer = replace(await brought_to(shop, State.LEASED), state=was)
    with pytest.raises(AssertionError, match="no such move"):
        await shop.transfers.settle(transfer, Outcome(State.SENT), was=was)
    assert await shop.column("SELECT state FROM transfer") == ["leased"]


async def test_one_lost_lease_does_not_take_others_with_it(shop: Shop) -> None:
    """Moves that share a commit: only the one that is lost is told so."""
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


async def test_intent_is_committed_with_its_time(shop: Shop, tmp_path: Path) -> None:
    await shop.sending("a.pdf")
    with sqlite3.connect(tmp_path / "docferry.db") as other:
        rows = other.execute("SELECT state, first_sent, last_sent FROM transfer").fetchall()
    other.close()
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
    assert (second.tries, second.generation) == (1, 1)
    await shop.transfers.settle(second, Outcome(State.WAITING, costs_a_try=False), was=State.LEASED)
    (third,) = await shop.claimed()
    assert (third.tries, third.generation) == (1, 1)


async def test_gone_frees_the_path_and_the_bytes(shop: Shop) -> None:
    transfer = await brought_to(shop, State.LEASED)
    await shop.transfers.settle(transfer, Outcome(State.GONE), was=State.LEASED)
    assert await shop.documents.known("m", [b""]) == {}
    await shop.enqueue("a.pdf")
    (again,) = await shop.claimed()
    assert again.id != transfer.id


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
    assert await alive.owners() == {"me", "alive"}
    assert await alive.sweep({"me"}) == 3
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
    assert await shop.column("SELECT owner FROM transfer WHERE owner IS NOT NULL") == ["alive"]
    ended = await shop.rows("SELECT state, ended FROM attempt WHERE ended = :now ORDER BY state", now=now)
    assert ended == [("doubtful", now), ("doubtful", now), ("waiting", now)]
    await alive.settle(theirs, Outcome(State.WAITING), was=State.LEASED)


async def test_whoever_was_taken_for_dead_can_no_longer_move(shop: Shop) -> None:
    transfer = await shop.sending("a.pdf")
    await shop.other("heir").sweep({"me"})
    with pytest.raises(LeaseLost):
        await shop.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)
    assert await shop.column("SELECT state FROM transfer") == ["doubtful"]


async def test_nobody_is_dead_without_a_name(shop: Shop) -> None:
    await shop.sending("a.pdf")
    assert await shop.other("heir").sweep(set()) == 0
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
    await brought_to(shop, state)
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
    assert await shop.other("heir").sweep({"me"}) == 0
    assert await shop.claimed() == []


# -- what is accounted for --


async def test_what_was_sent_explains_names_and_digests(shop: Shop) -> None:
    first = await shop.sending("a.pdf")
    await shop.transfers.settle(first, Outcome(State.SENT), was=State.SENDING)
    middle = shop.clock.now() + 5
    shop.clock.turn(10)
    second = await shop.sending("b.pdf")
    await shop.transfers.settle(second, Outcome(State.SENT), was=State.SENDING)
    found = await shop.transfers.accounted(ACME, names_since=0, digests_since=middle)
    assert found.names == {"a.pdf": 1, "b.pdf": 1}
    assert found.digests == {second.sha256: 1}
    until = await shop.transfers.accounted(ACME, names_since=0, digests_since=0, until=middle)
    assert (until.names, until.digests) == ({"a.pdf": 1}, {first.sha256: 1})
    stranger = Target("codat", "stranger", "bank")
    assert (await shop.transfers.accounted(stranger, names_since=0, digests_since=0)).names == {}


async def test_what_may_or_may_not_show_yet_is_unsettled(shop: Shop) -> None:
    old = await shop.sending("old.pdf")
    await shop.transfers.settle(old, Outcome(State.SENT), was=State.SENDING)
    shop.clock.turn(100)
    await shop.held("too large.pdf", "too_large")
    await shop.held("undecidable.pdf", "undecidable")
    fresh = await shop.sending("fresh.pdf")
    await shop.transfers.settle(fresh, Outcome(State.SENT), was=State.SENDING)
    asked = await shop.asking("asked.pdf")
    await shop.sending("wire.pdf")
    doubt = await shop.sending("doubt.pdf")
    await shop.transfers.settle(doubt, Outcome(State.DOUBTFUL), was=State.SENDING)
    await shop.enqueue("leased.pdf")
    await shop.transfers.claim([Pick(each, 1) for each in await shop.transfers.lanes() if not each.doubtful], 1)
    await shop.enqueue("waits.pdf")
    since = shop.clock.now() - 50
    found = await shop.transfers.unsettled(ACME, sent_since=since, apart_from=[asked.id])
    assert found.names == {"fresh.pdf": 1, "wire.pdf": 1, "doubt.pdf": 1, "undecidable.pdf": 1}
    assert (await shop.transfers.unsettled(ACME, sent_since=since, apart_from=[])).names["asked.pdf"] == 1


# -- the clock --


async def test_two_processes_turn_the_clock_once(tmp_path: Path) -> None:
    clock = TurnableClock()
    async with open_database(tmp_path / "docferry.db") as database:
        shop = Shop(database, clock, None, None)  # type: ignore[arg-type]  # only its look at the tables is needed
        one, two = Transfers(database, clock, "one"), Transfers(database, clock, "two")
        await shop.change(
            "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, once, size, state, lease, tries, "
            "generation, created, due_since, next_attempt, updated, first_sent, last_sent) VALUES "
            "('u', 'm', 'codat', 'codat', 'n', 'o', 1, 'doubtful', 0, 0, 0, :t, :t, :t + 60, :t, :t - 5, :t - 3)",
            t=clock.now(),
        )
        before = clock.now()
        await one.turned(clock.now() - clock.steady())
        clock.wall += 86_400
        await one.turned(clock.now() - clock.steady())
        await two.turned(clock.now() - clock.steady())
        columns = "next_attempt, first_sent, last_sent, due_since"
        day = before + 86_400
        assert await shop.rows(f"SELECT {columns} FROM transfer") == [(day + 60, day - 5, day - 3, day)]  # noqa: S608 - ours


async def test_what_comes_from_the_future_is_due_now(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    shop.clock.turn(-86_400)
    assert await shop.claimed() == []
    assert await shop.transfers.from_the_future() == 1
    assert len(await shop.claimed()) == 1


@pytest.mark.parametrize("state", [State.SENDING, State.HELD])
async def test_a_doubt_from_the_future_is_looked_for_where_it_may_stand(shop: Shop, state: State) -> None:
    """Killed with a wrong clock while it was sent, or held as undecidable then: the list is read from long before, or
    what arrived would not be seen there, and go twice."""
    if state is State.SENDING:
        await shop.sending("a.pdf")
    else:
        asked = await shop.asking("a.pdf")
        await shop.transfers.settle(asked, Outcome(State.HELD, "undecidable", "why"), was=State.ASKING)
    shop.clock.turn(-86_400)
    now = shop.clock.now()
    heir = shop.other("heir")
    await heir.from_the_future()
    await heir.sweep({"me"})
    await heir.retry(reason="undecidable")
    (doubt,) = await shop.claimed(transfers=heir)
    assert doubt.state is State.ASKING
    assert doubt.first_sent is not None
    assert doubt.first_sent < now - 86_400
    assert doubt.last_sent is not None
    assert doubt.last_sent <= now
