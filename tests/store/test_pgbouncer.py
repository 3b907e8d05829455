"""Test a shared queue behind pgbouncer in transaction mode: each transaction may get another session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from docferry.clock import SystemClock
from docferry.model import Outcome, State, Target
from docferry.store.claims import Pick
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.owners import HeartbeatOwners, processes
from docferry.store.reports import Reports
from docferry.store.server_clock import read_server_clock
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from pgbouncer import running_pgbouncer
from postgresql_server import PostgresqlServer
from store.conftest import planned

pytestmark = pytest.mark.anyio
HOSTS, DOCUMENTS = 4, 40
ADVISORY_LOCKS = Sql("""
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")


async def test_hosts_behind_pgbouncer_send_each_document_once(postgresql_server: PostgresqlServer) -> None:
    """There are more hosts than sessions, so any state left in a session would reach another host."""
    name = postgresql_server.new_database().partition("@/")[2].partition("?")[0]
    sent: list[str] = []

    async def work(database: Database, host: str) -> None:
        clock = await read_server_clock(database, SystemClock())
        await HeartbeatOwners(database, clock, f"{host}:1", host).beat()
        target = Target("codat", host, "bank")
        plans = [planned(f"{host}-{n}.pdf", target=target) for n in range(DOCUMENTS)]
        await Documents(database, clock).apply(host, plans)
        transfers = Transfers(database, clock, f"{host}:1")
        while lanes := await transfers.lanes():
            claimed = await transfers.claim([Pick(lane, 4) for lane in lanes], 4)
            if not claimed:  # other hosts have the companies that are left
                await anyio.sleep(0.01)
                continue
            async with anyio.create_task_group() as group:
                for transfer in claimed:
                    group.start_soon(transfers.mark_sending, [transfer])
            await transfers.settle_all(claimed, Outcome(State.SENT), was=State.SENDING)
            sent.extend(transfer.remote_name for transfer in claimed)

    with running_pgbouncer(str(postgresql_server.folder)) as pgbouncer:
        async with anyio.create_task_group() as group:
            for number in range(HOSTS):
                group.start_soon(_on_a_host, pgbouncer.url(name), f"h{number}", work)
        async with open_database(pgbouncer.url(name)) as database:
            assert sorted(sent) == sorted(f"h{h}-{n}.pdf" for h in range(HOSTS) for n in range(DOCUMENTS))
            assert {row.state for row in await Reports(database).rows()} == {"sent"}
            assert len(await processes(database)) == HOSTS
            assert await database.read(_pieces) == HOSTS * DOCUMENTS
            # Nothing stays in the sessions.
            for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
                assert await database.fetch_one(Sql(f"SELECT current_setting('{setting}')")) == ("0",)
            assert await database.fetch_all(Sql("SELECT name FROM pg_prepared_statements")) == []
            assert await database.fetch_one(ADVISORY_LOCKS) == (0,)
            assert await database.fetch_one(Sql("SELECT to_regclass('pg_temp.plan')")) == (None,)


async def _on_a_host(url: str, host: str, work: Callable[[Database, str], Awaitable[None]]) -> None:
    async with open_database(url) as database:
        await work(database, host)


def _pieces(transaction: Transaction) -> int:
    return sum(len(rows) for rows in transaction.fetch_pieces(Sql("SELECT id FROM transfer")))


async def test_a_restart_of_pgbouncer_is_waited_for(postgresql_server: PostgresqlServer) -> None:
    name = postgresql_server.new_database().partition("@/")[2].partition("?")[0]
    with running_pgbouncer(str(postgresql_server.folder)) as pgbouncer:
        async with open_database(pgbouncer.url(name)) as database:
            documents = Documents(database, SystemClock())
            await documents.apply("m", [planned("a.pdf")])
            await anyio.to_thread.run_sync(pgbouncer.stop)
            async with anyio.create_task_group() as group:
                group.start_soon(documents.apply, "m", [planned("b.pdf")])
                with anyio.fail_after(20):
                    while database.alarm is None:  # noqa: ASYNC110 - `status` polls it too
                        await anyio.sleep(0.01)
                await anyio.to_thread.run_sync(pgbouncer.start, str(postgresql_server.folder))
            assert [row.path for row in await Reports(database).rows()] == [b"a.pdf", b"b.pdf"]
