"""Test servers that are replaced, restored, full, read-only or refuse docferry: it waits, and sends nothing twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest
from msgspec.structs import replace

from docferry.clock import SystemClock, TurnableClock
from docferry.errors import LeaseLost
from docferry.model import Gate, Outcome, Stamp, State
from docferry.store import database as database_module
from docferry.store.claims import Pick
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.opening import open_database
from docferry.store.owners import HeartbeatOwners, processes
from docferry.store.server_clock import read_server_clock
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer, running_server, running_standby
from store.conftest import planned

pytestmark = pytest.mark.anyio
SET = Sql("INSERT INTO cursor (key, value, updated) VALUES (:key, 'x', 0)")
STATES = Sql("SELECT remote_name, state, reason, lease_owner FROM transfer ORDER BY 1")


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    """Run a server that the test may stop."""
    with running_server() as server:
        yield server


def run_sql(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def claim(transfers: Transfers, most: int) -> list[str]:
    claimed = await transfers.claim([Pick(lane, most) for lane in await transfers.lanes()], most)
    return [transfer.remote_name for transfer in claimed]


# -- another server --


async def test_after_a_promotion_everything_due_is_looked_up_first(own_server: PostgresqlServer) -> None:
    url, clock = own_server.new_database(), SystemClock()
    with running_standby(own_server) as standby:
        name = url.partition("@/")[2].partition("?")[0]
        both = f"postgresql://docferry@/{name}?host={own_server.folder},{standby.folder}"
        async with open_database(both) as database:
            owners = HeartbeatOwners(database, await read_server_clock(database, SystemClock()), "h:1-a", "h")
            await owners.beat()
            documents, transfers = Documents(database, clock), Transfers(database, clock, "h:1-a")
            await documents.apply("m", [planned(f"{n}.pdf", f"{n}") for n in "abc"])
            sent, sending = await transfers.claim([Pick(lane, 2) for lane in await transfers.lanes()], 2)
            await transfers.mark_sending([sent, sending])
            await transfers.settle(sent, Outcome(State.SENT), was=State.SENDING)
            await Gates(database).close(Gate("codat", "rate", "x", clock.now() + 999, 1, clock.now(), False))
            with anyio.fail_after(30):
                while await _is_behind(url, name, standby):  # noqa: ASYNC110 - replication offers no event
                    await anyio.sleep(0.05)
            await anyio.to_thread.run_sync(own_server.stop)
            await anyio.to_thread.run_sync(standby.promote)
            with anyio.fail_after(30), pytest.raises(LeaseLost):
                await transfers.settle(sending, Outcome(State.SENT), was=State.SENDING)
            assert await database.fetch_all(STATES) == [
                ("a.pdf", "sent", None, None),
                ("b.pdf", "doubtful", "old_copy", None),
                ("c.pdf", "doubtful", "old_copy", None),
            ]
            assert transfers.owner != "h:1-a"  # its requests in flight are given up
            assert await Gates(database).all() == {}
            assert [process.is_alive for process in await processes(database)] == [True]
            # A file of which the new server does not know may have been sent by the old one.
            older, newer = planned("d.pdf", "d"), planned("e.pdf", "e")
            stamp = Stamp(1, 1, int((clock.now() + 3600) * 1e9))
            newer = replace(newer, seen_file=replace(newer.seen_file, stamp=stamp))
            await documents.apply("m", [older, newer])
            assert [row[:2] for row in await database.fetch_all(STATES)][3:] == [
                ("d.pdf", "doubtful"),
                ("e.pdf", "waiting"),
            ]
            await owners.beat()  # the change is noticed once
            assert await claim(transfers, 9) == ["b.pdf", "c.pdf", "d.pdf", "e.pdf"]


async def _is_behind(url: str, name: str, standby: PostgresqlServer) -> bool:
    def work() -> bool:
        with psycopg.connect(url) as primary, psycopg.connect(standby.url(name)) as replica:
            written = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            assert written is not None
            query = "SELECT pg_last_wal_replay_lsn() >= CAST(%s AS pg_lsn)"
            return replica.execute(query, written).fetchone() != (True,)

    return await anyio.to_thread.run_sync(work)


@pytest.mark.parametrize("may_identify", [True, False])
async def test_a_restart_is_a_change_only_where_the_role_may_not_identify_the_server(
    own_server: PostgresqlServer, *, may_identify: bool
) -> None:
    url, clock = own_server.new_database(), TurnableClock()
    run_sql(url, "CREATE ROLE plain LOGIN", "GRANT ALL ON SCHEMA public TO plain")
    if not may_identify:
        run_sql(url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    async with open_database(url.replace("docferry@", "plain@")) as database:
        await Documents(database, clock).apply("m", [planned("a.pdf")])
        await anyio.to_thread.run_sync(own_server.stop)
        await anyio.to_thread.run_sync(own_server.start)
        await database.execute(SET, {"key": "after"})
        (row,) = await database.fetch_all(STATES)
        assert row[1] == ("waiting" if may_identify else "doubtful")
        assert database.unknown_commits == (0 if may_identify else 1)


async def test_a_restored_table_is_a_change(postgresql_server: PostgresqlServer) -> None:
    """`pg_restore --clean` makes the tables anew, while docferry waits."""
    url, clock = postgresql_server.new_database(), TurnableClock()
    async with open_database(url) as database:
        await Documents(database, clock).apply("m", [planned("a.pdf")])
        run_sql(url, "CREATE TABLE copy AS SELECT * FROM transfer", "DROP TABLE transfer")
        async with anyio.create_task_group() as group:
            group.start_soon(database.execute, SET, {"key": "meanwhile"})
            await _in_trouble(database, "does not exist")
            run_sql(url, "ALTER TABLE copy RENAME TO transfer")
        assert [row[1] for row in await database.fetch_all(STATES)] == ["doubtful"]


# -- a server that does not serve --


async def _in_trouble(database: Database, said: str) -> None:
    with anyio.fail_after(20):
        while said not in (database.alarm or ""):  # noqa: ASYNC110 - `status` polls it too
            await anyio.sleep(0.01)


@asynccontextmanager
async def _writing_in_trouble(database: Database, said: str) -> AsyncIterator[None]:
    """Write while something is wrong; the body mends it, and the write is then committed."""
    async with anyio.create_task_group() as group:
        group.start_soon(database.execute, SET, {"key": "meanwhile"})
        await _in_trouble(database, said)
        yield
    assert database.alarm is None
    assert await database.fetch_one(Sql("SELECT value FROM cursor WHERE key = 'meanwhile'")) == ("x",)


@pytest.mark.parametrize("code", ["53100", "57P01", "25006", "58030", "XX001"])
async def test_writes_wait_for_the_end_of_an_error_of_the_server(
    postgresql_server: PostgresqlServer, code: str
) -> None:
    url = postgresql_server.new_database()
    async with open_database(url) as database:
        run_sql(
            url,
            f"CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE 'out of order' USING ERRCODE = '{code}'; END $$ "
            "LANGUAGE plpgsql",
            "CREATE TRIGGER fail BEFORE INSERT ON cursor FOR EACH ROW EXECUTE FUNCTION fail()",
        )
        async with _writing_in_trouble(database, "out of order"):
            run_sql(url, "DROP TRIGGER fail ON cursor")


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'docferry' AND datname = "


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", "not permitted to log in"),
        ("ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT 9", "too many connections"),
        ("ALTER ROLE {role} RENAME TO {role}_2", "ALTER ROLE {role}_2 RENAME TO {role}", "does not exist"),
        (
            "ALTER ROLE {role} SET default_transaction_read_only = on",
            "ALTER ROLE {role} RESET default_transaction_read_only",
            "read-only",
        ),
    ],
)
async def test_writes_wait_until_the_role_may_write_again(
    postgresql_server: PostgresqlServer, wrong: str, right: str, said: str
) -> None:
    url = postgresql_server.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    role = f"role_{name}"  # roles belong to all databases of the server
    run_sql(url, f"CREATE ROLE {role} LOGIN", f"GRANT ALL ON SCHEMA public TO {role}")
    async with open_database(url.replace("docferry@", f"{role}@")) as database:
        await database.execute(SET, {"key": "before"})
        run_sql(url, wrong.format(role=role), f"{TERMINATE}'{name}'")
        async with _writing_in_trouble(database, said):
            run_sql(url, right.format(role=role))


async def test_connections_that_were_cut_while_idle_are_opened_again_at_once(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "RETRY_PAUSE_S", 600.0)
    url = postgresql_server.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    async with open_database(url) as database:
        await database.execute(SET, {"key": "a"})
        await database.fetch_one(STATES)
        run_sql(url, f"{TERMINATE}'{name}'")
        with anyio.fail_after(60):  # without the pause after an error
            await database.fetch_one(STATES)
            await database.execute(SET, {"key": "b"})
        assert database.unknown_commits == 0


async def test_a_server_that_keeps_silent_is_reported(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler with an unreachable server does not answer for minutes."""
    monkeypatch.setattr(database_module, "SILENT_S", 0.2)
    url = postgresql_server.new_database()
    async with open_database(url) as database:
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE cursor")
            async with anyio.create_task_group() as group:
                group.start_soon(database.execute, SET, {"key": "meanwhile"})
                await _in_trouble(database, "has not answered for 0.2 s")
                other.rollback()
        assert database.alarm is None


async def test_a_read_is_repeated_whose_connection_is_lost_at_its_end(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.new_database()
    async with open_database(url) as database:
        cut: list[int] = []

        def work(transaction: Transaction) -> int:
            (pid,) = transaction.fetch_one(Sql("SELECT pg_backend_pid()"))
            if not cut:
                cut.append(pid)
                run_sql(url, f"SELECT pg_terminate_backend({pid}, 10000)")  # and wait for its end
            return int(pid)

        assert await database.read(work) not in cut


async def test_a_commit_that_ends_with_a_shutdown_is_unknown(postgresql_server: PostgresqlServer) -> None:
    """The server may have committed already, so leases of that time are given up."""
    async with open_database(postgresql_server.new_database()) as database:
        await database.execute(
            Sql(
                "CREATE FUNCTION cut() RETURNS trigger AS $$ BEGIN IF nextval('cuts') = 1 THEN "
                "RAISE 'shutting down' USING ERRCODE = '57P01'; END IF; RETURN NULL; END $$ LANGUAGE plpgsql"
            )
        )
        await database.execute(Sql("CREATE SEQUENCE cuts"))
        await database.execute(
            Sql(
                "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON cursor DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION cut()"
            )
        )
        await database.execute(SET, {"key": "meanwhile"})
        assert database.unknown_commits == 1


@pytest.mark.parametrize(("server_has", "transaction_has"), [("off", "on"), ("remote_apply", "remote_apply")])
async def test_a_transaction_waits_for_the_disk_whatever_the_server_has(
    postgresql_server: PostgresqlServer, server_has: str, transaction_has: str
) -> None:
    url = postgresql_server.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    run_sql(url, f"ALTER DATABASE {name} SET synchronous_commit = {server_has}")
    query = Sql("SELECT current_setting('synchronous_commit')")
    async with open_database(url) as database:
        assert await database.fetch_one(query) == (server_has,)
        assert await database.write(lambda transaction: transaction.fetch_one(query)) == (transaction_has,)


# -- clocks --


async def test_the_shared_clock_is_that_of_the_server(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[], float] = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 240.0)  # this host is four minutes late
    async with open_database(postgresql_server.new_database()) as database:
        clock = await read_server_clock(database, SystemClock())
        assert abs(clock.now() - real()) < 5
        assert abs(clock.local() - real() + 240.0) < 5
        await HeartbeatOwners(database, await read_server_clock(database, SystemClock()), "h:1-a", "h").beat()
        assert abs(clock.now() - real()) < 5
        monkeypatch.setattr(time, "time", lambda: real() + 86_400.0)
        assert abs(clock.now() - real()) < 5
