"""Test hosts that share a PostgreSQL queue."""

from __future__ import annotations

import anyio
import pytest

from docferry.model import Outcome, State
from docferry.store.claims import Pick
from docferry.store.owners import HeartbeatOwners, processes
from docferry.store.statement import Sql
from postgresql_server import PostgresqlServer
from upload.conftest import UploadEnv, names_of, once

pytestmark = pytest.mark.anyio


def become(env: UploadEnv, host: str, url: str) -> None:
    """Be another machine of the shared queue, with a state folder of its own and the same documents."""
    env.environ |= {
        "DOCFERRY_DATABASE_URL": url,
        "DOCFERRY_HOST": host,
        "DOCFERRY_STATE_DIR": str(env.app_env.state.with_name(f"state-{host}")),
    }


async def test_hosts_with_the_same_documents_send_each_once(
    env: UploadEnv, postgresql_server: PostgresqlServer
) -> None:
    url = postgresql_server.new_database()
    env.write_documents(env.app_env.upload("bank"), *names_of(9))
    become(env, "h1", url)
    async with env.app() as first:
        become(env, "h2", url)
        async with env.app() as second:
            assert [process.host for process in await processes(second.database)] == ["h1", "h2"]
            async with anyio.create_task_group() as group:
                group.start_soon(env.run_uploads, first)
                group.start_soon(env.run_uploads, second)
        assert [process.host for process in await processes(first.database)] == ["h1"]
        assert await first.reports.counts() == {f"bank@{host}": {State.SENT: 9} for host in ("h1", "h2")}
    assert env.at_codat() == once(*names_of(9))


async def test_a_host_takes_over_from_one_that_was_cut_off(env: UploadEnv, postgresql_server: PostgresqlServer) -> None:
    """For a mapping on a share, the second host asks the remote, and sends the absent documents."""
    url = postgresql_server.new_database()
    env.write_documents(env.app_env.upload("bank", shared="true"), *names_of(4))
    become(env, "h1", url)
    async with env.app() as first:
        lanes = await first.transfers.lanes()
        claimed = await first.transfers.claim([Pick(lane, 2) for lane in lanes], 2)
        await first.transfers.mark_sending(claimed)
        become(env, "h2", url)
        async with env.app() as second:
            await second.database.execute(Sql("UPDATE process SET heartbeat = heartbeat - 31 WHERE host = 'h1'"))
            await env.run_uploads(second)
            assert await second.reports.counts() == {"bank": {State.SENT: 4}}
    assert env.at_codat() == once(*names_of(4))


async def test_a_host_sends_again_only_while_its_heartbeat_is_confirmed(
    env: UploadEnv, postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may have been suspended after its lookup, and another host may have sent the document."""
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    become(env, "h1", postgresql_server.new_database())
    async with env.app() as app:
        claimed = await app.transfers.claim([Pick(lane, 1) for lane in await app.transfers.lanes()], 1)
        await app.transfers.mark_sending(claimed)
        await app.transfers.settle_all(claimed, Outcome(State.DOUBTFUL), was=State.SENDING)
        await app.database.execute(Sql("UPDATE transfer SET last_sent = last_sent - 60"))  # the list decides at once
        with monkeypatch.context() as stopped:
            is_confirmed = property(lambda _: env.requests("codat.list") == 0)
            stopped.setattr(HeartbeatOwners, "is_confirmed", is_confirmed)
            await env.run_until(app, lambda: env.requests("codat.list") > 0 and not app.scheduler.is_busy)
        assert env.at_codat() == {}
        assert await app.reports.counts() == {"bank@h1": {State.DOUBTFUL: 1}}
        await env.run_uploads(app)
    assert env.at_codat() == once("a.pdf")
