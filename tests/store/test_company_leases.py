"""Test the leases of companies between processes that share a PostgreSQL queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import closing
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from docferry.clock import TurnableClock
from docferry.model import Outcome, State, Target, Transfer
from docferry.store import claims
from docferry.store.claims import ClaimTerms, Lane, Pick
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.pipeline import PipelinedTransaction
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer
from store.conftest import StoreEnv, planned

pytestmark = pytest.mark.anyio
ACME, BEST = (Target("codat", company, "bank") for company in ("acme", "best"))
SENT = Outcome(State.SENT)
#: Blocks of the table that this session has read lately.
FETCHED = Sql("SELECT pg_stat_get_xact_blocks_fetched('transfer'::regclass)")


@pytest.fixture
async def env(url: str) -> AsyncIterator[StoreEnv]:
    clock = TurnableClock()
    async with open_database(url) as database:
        yield StoreEnv(database, clock, Documents(database, clock), Transfers(database, clock, "h1:1-a"))


@pytest.fixture
def url(postgresql_server: PostgresqlServer) -> str:
    return postgresql_server.new_database()


async def claimed(transfers: Transfers, most: int = 1, ask_for: str | None = None) -> list[Transfer]:
    picks = [Pick(lane, most) for lane in await transfers.lanes()]
    return await transfers.claim(picks, 100, [] if ask_for is None else [ask_for])


async def send(transfers: Transfers, *sent: Transfer) -> None:
    await transfers.mark_sending(sent)
    await transfers.settle_all(sent, SENT, was=State.SENDING)


async def test_a_company_is_claimed_by_one_process_at_a_time(env: StoreEnv) -> None:
    other = env.other("h2:2-b")
    await env.enqueue("a1.pdf", "a2.pdf", "a3.pdf")
    await env.enqueue("b.pdf", target=BEST)
    first = await claimed(env.transfers, ask_for=None)
    assert sorted(t.remote_name for t in first) == ["a1.pdf", "b.pdf"]
    assert [(lane.lane, lane.elsewhere) for lane in await other.lanes()] == [("codat/acme/bank", True)]
    assert [(lane.lane, lane.elsewhere) for lane in await env.transfers.lanes()] == [("codat/acme/bank", False)]
    assert await claimed(other) == []
    await send(env.transfers, *first)
    second = await claimed(other)  # nothing of it is in flight any more
    assert [t.remote_name for t in second] == ["a2.pdf"]
    assert await claimed(env.transfers) == []


async def test_a_lookup_keeps_the_company_too(env: StoreEnv) -> None:
    await env.doubtful("doubt.pdf")
    await env.enqueue("a.pdf")
    lanes = [lane for lane in await env.transfers.lanes() if lane.doubtful]
    (asking,) = await env.transfers.claim([Pick(lane, 20) for lane in lanes], 20)
    assert asking.state is State.ASKING
    assert await claimed(env.other("h2:2-b")) == []


async def test_objects_have_no_company(env: StoreEnv) -> None:
    await env.enqueue("1.pdf", "2.pdf", target=Target("wootiv"))
    assert len(await claimed(env.transfers)) == 1
    assert len(await claimed(env.other("h2:2-b"))) == 1


async def test_a_process_lets_another_one_have_its_turn(env: StoreEnv) -> None:
    other = env.other("h2:2-b")
    await env.enqueue(*(f"{number}.pdf" for number in range(6)))
    first = await claimed(env.transfers)
    assert await claimed(other, ask_for="codat/acme") == []
    first += await claimed(env.transfers)  # its lease is not over yet
    assert len(first) == 2
    await env.change("UPDATE company_lease SET since = since - 10")
    assert await claimed(env.transfers) == []
    await send(env.transfers, *first)
    assert await claimed(env.transfers) == []
    second = await claimed(other)
    assert len(second) == 1
    assert await claimed(other) != []  # nobody asked for it since


async def test_a_process_goes_on_when_nobody_takes_its_turn(env: StoreEnv) -> None:
    await env.enqueue("1.pdf", "2.pdf")
    await claimed(env.transfers)
    assert await claimed(env.other("h2:2-b"), ask_for="codat/acme") == []
    await env.change("UPDATE company_lease SET since = since - 10, asked = asked - 10")
    assert len(await claimed(env.transfers)) == 1


async def test_the_company_of_a_dead_process_is_free_once_its_leases_are_reclaimed(env: StoreEnv) -> None:
    other = env.other("h2:2-b")
    await env.enqueue("1.pdf", "2.pdf")
    (sending,) = await claimed(env.transfers)
    await env.transfers.mark_sending([sending])
    assert await claimed(other) == []
    await other.reclaim({"h1:1-a"})
    assert sorted(t.state for t in await claimed(other)) == [State.ASKING, State.LEASED]


@pytest.mark.parametrize("has_row", [False, True])
async def test_a_claim_that_waited_for_another_one_takes_nothing(env: StoreEnv, url: str, has_row: bool) -> None:
    """The second claim reads the queue as it was before the first one was committed."""
    await env.enqueue("1.pdf", "2.pdf", "3.pdf")
    if has_row:
        await send(env.transfers, *await claimed(env.transfers))
    picks = [Pick(lane, 1) for lane in await env.transfers.lanes()]
    now = env.clock.now()
    second: list[Transfer] = []

    def claim(connection: Any, owner: str) -> list[Transfer]:
        transaction = PipelinedTransaction(connection)
        with transaction.pipeline():
            return claims.claim(transaction, ClaimTerms(owner, now), picks, 1)

    async def claim_second() -> None:
        second.extend(await anyio.to_thread.run_sync(claim, two, "h2:2-b"))

    with closing(psycopg.connect(url)) as one, closing(psycopg.connect(url)) as two:
        assert len(claim(one, "h1:1-a")) == 1
        async with anyio.create_task_group() as group:
            group.start_soon(claim_second)
            with anyio.fail_after(20):
                while not await env.column("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):  # noqa: ASYNC110 - the server has no event
                    await anyio.sleep(0.01)
            one.commit()
        assert second == []


async def test_many_claims_never_share_a_company(env: StoreEnv, url: str) -> None:
    for company in range(4):
        names = [f"{company}-{number}.pdf" for number in range(25)]
        await env.documents.apply("m", [planned(name, target=Target("codat", f"c{company}", "k")) for name in names])
    shared = Sql("""
        SELECT company_id FROM transfer WHERE state IN ('leased', 'sending', 'asking')
        GROUP BY 1 HAVING count(DISTINCT lease_owner) > 1
    """)
    rounds = 0

    async def work(number: int) -> None:
        nonlocal rounds
        random = Random(number)  # noqa: S311 - a reproducible order
        async with open_database(url) as database:
            transfers = Transfers(database, env.clock, f"h{number}:{number}-x")
            while lanes := await transfers.lanes():
                some = random.sample(lanes, min(2, len(lanes)))
                mine = await transfers.claim([Pick(lane, 3) for lane in some], 4, {"codat/c0"})
                assert await database.fetch_all(shared) == []
                await send(transfers, *mine) if mine else await anyio.sleep(0.01)
                rounds += bool(mine)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(work, number)
    assert await env.column("SELECT DISTINCT state FROM transfer") == ["sent"]
    assert rounds > 12


async def test_what_was_in_flight_since_the_last_vacuum_costs_nothing(url: str, env: StoreEnv) -> None:
    """A bitmap scan reads the rows of all dead index entries each time; an index scan marks them once."""
    await env.enqueue(*(f"{number}.pdf" for number in range(3_000)))
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET random_page_cost = 1000".encode())  # it prefers bitmaps
        connection.execute("ALTER TABLE transfer SET (autovacuum_enabled = off)")
        connection.execute("UPDATE transfer SET state = 'sending', lease_owner = id")
        connection.execute("UPDATE transfer SET state = 'sent', lease_owner = NULL")
    await env.enqueue("new.pdf")
    async with open_database(url) as database:
        await _assert_dead_entries_cost_nothing(database, env.clock.now())


async def _assert_dead_entries_cost_nothing(database: Database, now: float) -> None:
    def blocks(work: Callable[[Transaction], Any]) -> Callable[[Transaction], int]:
        def counted(transaction: Transaction) -> int:
            before = transaction.fetch_one(FETCHED)[0]
            work(transaction)
            return int(transaction.fetch_one(FETCHED)[0] - before)

        return counted

    def lanes(transaction: Transaction) -> list[Lane]:
        return claims.lanes(transaction, "h1:1-a")

    def claim(transaction: Transaction) -> list[Transfer]:
        return claims.claim(transaction, ClaimTerms("h1:1-a", now), [Pick(lanes(transaction)[0], 1)], 1)

    await database.read(lanes)  # it marks the dead entries
    assert await database.read(blocks(lanes)) < 30
    assert await database.write(blocks(claim)) < 30


def test_a_lane_is_here_unless_said_otherwise() -> None:
    assert not Lane("m", "codat/a/b", 0.0, doubtful=False).elsewhere
