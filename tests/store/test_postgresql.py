"""Test the behaviour of servers: restarts, refusals, and queues shared by hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import anyio
import psycopg
import pytest

from docferry.clock import ServerClock, TurnableClock
from docferry.errors import DatabaseBusy, LeaseLost, StateError
from docferry.model import Outcome, State
from docferry.store import postgresql
from docferry.store.claims import Pick
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.owners import HeartbeatOwners, processes
from docferry.store.server_clock import read_server_clock
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer, running_server
from store.conftest import planned

pytestmark = pytest.mark.anyio
SET = Sql("INSERT INTO cursor (key, value, updated) VALUES (:key, 'x', 0)")
KEYS = Sql("SELECT key FROM cursor WHERE key NOT LIKE 'server/%' ORDER BY key")


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    """Run a server that the test may stop."""
    with running_server() as server:
        yield server


def server_clock(clock: TurnableClock) -> ServerClock:
    return ServerClock(clock, clock.now(), clock.steady(), clock.steady())


async def keys(database: Database) -> list[str]:
    return [key for (key,) in await database.fetch_all(KEYS)]


async def test_reads_and_writes_wait_for_a_server_that_restarts(own_server: PostgresqlServer) -> None:
    async with open_database(own_server.new_database()) as database:
        await database.execute(SET, {"key": "before"})
        await anyio.to_thread.run_sync(own_server.stop)
        found: list[str] = []

        async def read() -> None:
            found.extend(await keys(database))

        async with anyio.create_task_group() as group:
            group.start_soon(database.execute, SET, {"key": "meanwhile"})
            group.start_soon(read)
            with anyio.fail_after(60):
                while database.alarm is None:  # noqa: ASYNC110 - `status` polls it too
                    await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(own_server.start)
        assert "before" in found
        assert await keys(database) == ["before", "meanwhile"]
        assert database.alarm is None


async def test_a_command_does_not_wait_for_ever(own_server: PostgresqlServer) -> None:
    async with open_database(own_server.new_database(), 0.5) as database:
        await anyio.to_thread.run_sync(own_server.stop)
        with anyio.fail_after(60), pytest.raises(DatabaseBusy, match=r"Start the server"):
            await database.execute(SET, {"key": "late"})
        with anyio.fail_after(60), pytest.raises(DatabaseBusy, match=r"Start the server"):
            await keys(database)
        await anyio.to_thread.run_sync(own_server.start)


async def test_an_unreachable_server_is_reported_without_the_password() -> None:
    with pytest.raises(DatabaseBusy, match="cannot be used now") as raised:
        async with open_database("postgresql://docferry:hidden@127.0.0.1:1/docferry"):
            pass
    assert "hidden" not in str(raised.value)


async def test_a_missing_database_is_reported_with_the_fix(postgresql_server: PostgresqlServer) -> None:
    with pytest.raises(StateError, match=r"refuses docferry.*does not exist.*correct database_url"):
        async with open_database(postgresql_server.url("nowhere")):
            pass


async def test_a_stopped_host_does_not_keep_the_writer_lock(postgresql_server: PostgresqlServer) -> None:
    """A process stopped inside its transaction does not answer; the server ends the transaction."""
    url = postgresql_server.new_database()
    async with open_database(url) as database:
        with closing(psycopg.connect(url, autocommit=True)) as stopped:
            stopped.execute(f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {postgresql.IDLE_TIMEOUT_MS}")
            stopped.execute(f"SELECT pg_advisory_xact_lock({postgresql.WRITER_LOCK})".encode())
            began = time.monotonic()
            with anyio.fail_after(60):
                await database.execute(SET, {"key": "after"})
            assert time.monotonic() - began >= postgresql.IDLE_TIMEOUT_MS / 1000 - 1
    assert postgresql.IDLE_TIMEOUT_MS < 15_000  # before hosts are taken for dead


async def test_text_that_postgresql_cannot_store_is_replaced(postgresql_server: PostgresqlServer) -> None:
    async with open_database(postgresql_server.new_database()) as database:
        await database.execute(SET, {"key": "a\0b\udcff"})
        assert await keys(database) == ["a?b?"]


async def test_several_folders_are_compared_in_one_transaction(postgresql_server: PostgresqlServer) -> None:
    """Each folder is read through a server-side cursor, also while another is open."""
    async with open_database(postgresql_server.new_database()) as database:
        await Documents(database, TurnableClock()).apply("m", [planned(f"{n}/a.pdf") for n in range(3)])
        found = await Documents(database, TurnableClock()).differences("m", [(b"%d" % n, []) for n in range(3)])
        assert found.gone == [b"0/a.pdf", b"1/a.pdf", b"2/a.pdf"]
        query = Sql("SELECT id FROM transfer ORDER BY 1")

        def work(transaction: Transaction) -> int:
            return sum(len(inner) for _ in transaction.fetch_pieces(query) for inner in transaction.fetch_pieces(query))

        assert await database.read(work) == 3


async def test_a_session_that_does_not_know_what_was_prepared_is_noticed(postgresql_server: PostgresqlServer) -> None:
    """A pooler that shows the server's process id may switch sessions between transactions."""
    async with open_database(postgresql_server.new_database()) as database:
        for key in "abcd":
            await database.execute(SET, {"key": key})

        def forget(transaction: Transaction) -> None:
            transaction.start(Sql("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"))  # unnoticed by psycopg

        prepared = Sql("SELECT name FROM pg_prepared_statements")
        assert await database.write(lambda transaction: transaction.fetch_all(prepared))
        await database.write(forget)
        with anyio.fail_after(30):
            await database.execute(SET, {"key": "e"})
        assert await keys(database) == ["a", "b", "c", "d", "e"]
        assert await database.write(lambda transaction: transaction.fetch_all(prepared)) == []


# -- leases by heartbeat --


async def test_leases_of_a_process_without_heartbeat_are_taken_over(postgresql_server: PostgresqlServer) -> None:
    """The server's clock decides, whatever time the hosts have."""
    url, clock, skewed = postgresql_server.new_database(), TurnableClock(), TurnableClock(wall=5.0)
    async with open_database(url) as one, open_database(url) as two:
        first, second = (
            HeartbeatOwners(one, server_clock(clock), "h1:1-a", "h1"),
            HeartbeatOwners(two, server_clock(skewed), "h2:2-b", "h2"),
        )
        assert not first.is_confirmed
        await first.beat()
        await second.beat()
        assert first.is_confirmed
        transfers = Transfers(one, clock, "h1:1-a")
        await Documents(one, clock).apply("m", [planned("a.pdf")])
        (transfer,) = await transfers.claim([Pick(lane, 5) for lane in await transfers.lanes()], 5)
        await transfers.mark_sending([transfer])
        assert await second.dead(await Transfers(two, skewed, "h2:2-b").lease_owners()) == set()
        assert [(p.host, p.is_alive, p.held) for p in await processes(two)] == [
            ("h1", True, {"sending": 1}),
            ("h2", True, {}),
        ]
        await two.execute(Sql("UPDATE process SET heartbeat = heartbeat - 31 WHERE host = 'h1'"))
        heir = Transfers(two, skewed, "h2:2-b")
        dead = await second.dead(await heir.lease_owners())
        assert dead == {"h1:1-a"}
        assert await heir.reclaim(dead) == 1
        await second.remove(dead)
        assert [(p.host, p.is_alive) for p in await processes(two)] == [("h1", False), ("h2", True)]
        await HeartbeatOwners(one, server_clock(clock), "h1:3-c", "h1").join()
        assert [(p.owner, p.is_alive) for p in await processes(two)] == [("h1:3-c", True), ("h2:2-b", True)]
        with pytest.raises(LeaseLost):
            await transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)


async def test_a_heartbeat_is_confirmed_for_15_seconds(postgresql_server: PostgresqlServer) -> None:
    clock = TurnableClock()
    async with open_database(postgresql_server.new_database()) as database:
        owners = HeartbeatOwners(database, server_clock(clock), "h:1-a", "h")
        await owners.beat()
        clock.turn(14.9)
        assert owners.is_confirmed
        clock.turn(0.2)
        assert not owners.is_confirmed
        await owners.beat()
        assert owners.is_confirmed
        await owners.leave()
        assert await processes(database) == []


async def test_after_a_commit_with_an_unknown_result_leases_are_given_up(own_server: PostgresqlServer) -> None:
    """The server dies between the commit and its response."""
    clock = TurnableClock()
    url = own_server.new_database()
    async with open_database(url) as database:
        owners, transfers = (
            HeartbeatOwners(database, server_clock(clock), "h:1-a", "h"),
            Transfers(database, clock, "h:1-a"),
        )
        await owners.beat()
        await Documents(database, clock).apply("m", [planned("a.pdf")])
        (transfer,) = await transfers.claim([Pick(lane, 5) for lane in await transfers.lanes()], 5)

        # A deferred trigger ends the session during COMMIT, once.
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "CREATE FUNCTION cut() RETURNS trigger AS $$ BEGIN IF nextval('cuts') = 1 THEN "
                "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$ LANGUAGE plpgsql"
            )
            other.execute("CREATE SEQUENCE cuts")
            other.execute(
                "CREATE CONSTRAINT TRIGGER cut AFTER UPDATE ON transfer DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION cut()"
            )
        with pytest.raises(LeaseLost):
            await transfers.mark_sending([transfer])
        assert database.unknown_commits == 1
        assert transfers.owner == "h:1-a#1"
        assert await owners.dead(await transfers.lease_owners()) == {"h:1-a"}
        assert await transfers.reclaim({"h:1-a"}) == 1


async def test_the_time_is_that_of_the_server(postgresql_server: PostgresqlServer) -> None:
    """A machine whose clock is five minutes ahead keeps the server's time from its first heartbeat on."""
    ahead = TurnableClock(wall=time.time() + 300)
    async with open_database(postgresql_server.new_database()) as database:
        clock = await read_server_clock(database, ahead)
        assert abs(clock.now() - time.time()) < 30  # how long the statement took
        assert clock.local() - clock.now() > 250
        ahead.turn(200)
        assert clock.now() - time.time() > 150
        owners = HeartbeatOwners(database, clock, "h:1-a", "h")
        await owners.join()
        assert abs(clock.now() - time.time()) < 30
        await owners.beat()
        (process,) = await processes(database)
        assert process.clock_offset is not None
        assert process.clock_offset > 400


async def test_a_jump_of_the_server_clock_shifts_times_once(postgresql_server: PostgresqlServer) -> None:
    """Each host notices the jump; the first one shifts the times for all."""
    url, clock = postgresql_server.new_database(), TurnableClock()
    async with open_database(url) as database:
        first, second = Transfers(database, clock, "h1:1-a"), Transfers(database, clock, "h2:2-b")
        await Documents(database, clock).apply("m", [planned("a.pdf")])
        boots = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]
        due = [lane.due for lane in await first.lanes()]
        with pytest.MonkeyPatch.context() as patch:
            for transfers, boot in zip((first, second), boots, strict=True):
                patch.setenv("SYSTEMD_BOOT_ID", boot)
                assert await transfers.shift_times(5.0) == 0.0
            clock.wall += 600
            shifted = []
            for transfers, boot in zip((first, second), boots, strict=True):
                patch.setenv("SYSTEMD_BOOT_ID", boot)
                shifted.append(await transfers.shift_times(605.0))
        assert shifted == [600.0, 0.0]
        assert [lane.due for lane in await first.lanes()] == [due[0] + 600]
