"""Hosts that write the same rows in any order never wait for each other in a circle."""

from __future__ import annotations

import random
from collections.abc import Iterator

import anyio
import psycopg
import pytest

from docferry.clock import TurnableClock
from docferry.errors import LeaseLost
from docferry.model import Outcome, State
from docferry.store.claims import Pick
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.receipt_log import ReceiptLog
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer, running_server
from store.conftest import planned

pytestmark = pytest.mark.anyio
ROUNDS = 40
FILES = [f"{number}.pdf" for number in range(12)]
OUTCOMES = [Outcome(State.SENT), Outcome(State.GONE), Outcome(State.HELD, "refused", "no"), Outcome(State.WAITING)]


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    with running_server() as server:
        yield server


async def host(url: str, name: str, dice: random.Random) -> None:
    """Plan, remove, send and retry the same documents as the others, in random order."""
    clock = TurnableClock()
    async with open_database(url, host=name) as database:
        documents, transfers = Documents(database, clock), Transfers(database, clock, name)

        async def plan() -> None:
            files = dice.sample(FILES, 8)
            await documents.apply(
                "m", [planned(each, str(dice.randrange(30)), mtime=dice.randrange(9)) for each in files]
            )

        async def remove() -> None:
            await documents.mark_gone("m", [each.encode() for each in dice.sample(FILES, 6)])

        async def send() -> None:
            claimed = await transfers.claim([Pick(lane, 6) for lane in await transfers.lanes()], 6)
            dice.shuffle(claimed)
            for transfer in claimed:
                try:
                    await transfers.mark_sending([transfer])
                    await transfers.settle(transfer, dice.choice(OUTCOMES), was=State.SENDING)
                except LeaseLost:
                    continue  # another host reclaimed it

        async def retry() -> None:
            await transfers.retry(everything=True)
            await transfers.reclaim({dice.choice(["h0", "h1"])})

        async with anyio.create_task_group() as group:
            for act in (plan, remove, send, retry):
                group.start_soon(repeat, act)
        assert (await ReceiptLog(database, clock).audit()).problem_count == 0


async def repeat(act: object) -> None:
    for _ in range(ROUNDS):
        await act()  # type: ignore[operator]  # one of the functions above


async def test_hosts_that_write_the_same_rows_do_not_deadlock(own_server: PostgresqlServer) -> None:
    url = own_server.new_database()
    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(host, url, f"h{number}", random.Random(number))  # noqa: S311 - repeatable
    log = await anyio.Path(own_server.folder / "log").read_text()
    assert [line for line in log.splitlines() if "ERROR" in line or "deadlock" in line] == []


@pytest.mark.parametrize("code", ["40P01", "40001"], ids=["deadlock", "serialization"])
async def test_a_transaction_that_the_server_sacrificed_is_repeated(
    postgresql_server: PostgresqlServer, code: str
) -> None:
    """Another program may lock rows in another order, such as an operator's session."""
    url, clock = postgresql_server.new_database(), TurnableClock()
    async with open_database(url) as database:
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("CREATE SEQUENCE attempts")
            other.execute(
                "CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN IF nextval('attempts') = 1 THEN "
                f"RAISE EXCEPTION 'sacrificed' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
            )
            other.execute("CREATE TRIGGER fail BEFORE INSERT ON transfer FOR EACH ROW EXECUTE FUNCTION fail()")
        with anyio.fail_after(30):
            applied = await Documents(database, clock).apply("m", [planned("a.pdf")])
        assert applied.queued == 1
        assert database.trouble is None
        assert await database.fetch_all(Sql("SELECT last_value FROM attempts")) != [(1,)]
