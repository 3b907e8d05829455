"""Test shared mappings: one host scans them, all hosts that have the share mounted send them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio.lowlevel
import pytest

from docferry.app.application import Application
from docferry.errors import FolderError
from docferry.model import State
from docferry.store.claims import Pick
from docferry.store.owners import processes
from docferry.store.statement import Sql
from docferry.upload.batch import Batch
from postgresql_server import PostgresqlServer
from upload.conftest import UploadEnv, names_of, once

pytestmark = pytest.mark.anyio


@dataclass
class Hosts:
    """Two hosts with a shared mapping, each with a mount point of its own."""

    env: UploadEnv
    url: str
    more: dict[str, str]

    def folder(self, host: str) -> Path:
        return self.env.app_env.root / f"mnt-{host}"

    @asynccontextmanager
    async def app(self, host: str) -> AsyncIterator[Application]:
        """Open the application of a host and make one pass over its folders; a folder may have a problem."""
        self.env.app_env.sections.clear()
        self.env.app_env.upload("bank", folder=f"mnt-{host}", shared="true", **self.more)
        self.env.environ |= {
            "DOCFERRY_DATABASE_URL": self.url,
            "DOCFERRY_HOST": host,
            "DOCFERRY_STATE_DIR": str(self.env.app_env.root / f"state-{host}"),
        }
        async with self.env.app() as app:
            yield app


@pytest.fixture
def hosts(env: UploadEnv, postgresql_server: PostgresqlServer) -> Hosts:
    return Hosts(env, postgresql_server.new_database(), {})


async def present(app: Application) -> int:
    rows = await app.database.fetch_all(Sql("SELECT count(*) FROM document WHERE present"))
    return int(rows[0][0])


@pytest.mark.parametrize("content", ["nothing", "other files"])
async def test_a_host_without_the_share_neither_scans_nor_sends(hosts: Hosts, content: str) -> None:
    """The folder of the host is an empty mount point, or another share."""
    env, names = hosts.env, names_of(4)
    env.write_documents(hosts.folder("h1"), *names)
    if content == "other files":
        env.write_documents(hosts.folder("h2"), "stranger.pdf")
    async with hosts.app("h1") as first, hosts.app("h2") as second:
        problem = second.reconciler.state("bank").problem
        assert problem is not None
        assert "is the share mounted" in problem
        assert await second.scan_scheduler.round() != []
        await env.run_uploads(second, lambda _: True)
        assert await present(second) == 4
        with pytest.raises(FolderError):
            await second.shares.look(second.uploads["bank"])
        await env.run_uploads(first)
        assert env.at_codat() == once(*names)
        assert await present(first) == 4


async def test_a_share_that_is_unmounted_makes_no_document_gone(hosts: Hosts) -> None:
    env, names, folder = hosts.env, names_of(3), hosts.folder("h1")
    hosts.more["may_be_empty"] = "true"
    env.write_documents(folder, *names)
    async with hosts.app("h1") as app:
        upload = app.uploads["bank"]
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()
        with pytest.raises(FolderError, match="another folder than before"):
            await app.reconciler.check_paths(upload, [name.encode() for name in names])
        with pytest.raises(FolderError, match="another folder than before"):
            await app.reconciler.scan(upload)  # it was looked at before it was unmounted
        assert "is the share mounted" in (await app.scan_scheduler.round())[0]
        assert await present(app) == 3
        folder.rmdir()
        folder.with_name("elsewhere").rename(folder)
        assert await app.scan_scheduler.round() == []
        await env.run_uploads(app)
        assert env.at_codat() == once(*names)


async def test_documents_that_were_all_replaced_are_planned(hosts: Hosts) -> None:
    """The mount identifies the share, also for another host and after a restart."""
    env, folder = hosts.env, hosts.folder("h1")
    env.write_documents(folder, *names_of(3))
    async with hosts.app("h1") as app:
        assert await app.scan_scheduler.round() == []  # now documents are known, and one of them was seen
    for name in names_of(3):
        (folder / name).unlink()
    env.write_documents(folder, *names_of(2, "new"))
    async with hosts.app("h1") as app:
        assert app.reconciler.state("bank").problem is None
        await env.run_uploads(app)
    assert env.at_codat() == once(*names_of(2, "new"))


async def test_a_person_accepts_another_folder(hosts: Hosts) -> None:
    env, folder = hosts.env, hosts.folder("h1")
    env.write_documents(folder, *names_of(2))
    async with hosts.app("h1"):
        pass
    folder.rename(folder.with_name("old"))
    env.write_documents(folder, "new.pdf")
    async with hosts.app("h1") as app:
        assert app.reconciler.state("bank").problem is not None
        await app.shares.accept(app.uploads["bank"])
        assert await app.scan_scheduler.round() == []
        await env.run_uploads(app)
    assert env.at_codat() == once("new.pdf")


async def test_a_file_that_one_host_does_not_see_waits_for_the_scan(hosts: Hosts) -> None:
    """A share may show an older state on one host, so a sender never decides that a document is gone."""
    env, folder = hosts.env, hosts.folder("h1")
    env.write_documents(folder, "a.pdf", "b.pdf")
    async with hosts.app("h1") as app:
        (folder / "a.pdf").unlink()
        lanes = await app.transfers.lanes()
        claimed = await app.transfers.claim([Pick(lane, 2) for lane in lanes], 2)
        places = await app.documents.places([transfer.id for transfer in claimed])
        for transfer in claimed:
            await app.uploader.process(Batch([transfer], places))
        counts = await env.states(app)
        assert (counts[State.WAITING], counts[State.SENT]) == (1, 1)
        await app.scan_scheduler.round()
        assert await present(app) == 1
    assert env.at_codat() == once("b.pdf")


async def test_one_host_scans_and_another_one_takes_over(hosts: Hosts) -> None:
    env = hosts.env
    env.write_documents(hosts.folder("h1"), *names_of(2))
    async with hosts.app("h1") as first:
        hosts.folder("h2").mkdir()
        async with hosts.app("h2") as second:
            apps = {"h1": first, "h2": second}

            async def elect() -> list[str]:
                for app in apps.values():
                    upload, looked = app.uploads["bank"], None
                    with suppress(FolderError):
                        looked = await app.shares.look(upload)
                    await app.shares.elect(upload, looked)
                return [host for host, app in apps.items() if app.shares.scans("bank")]

            assert await elect() == ["h1"]
            assert [(p.host, p.scans) for p in await processes(first.database)] == [("h1", ("bank",)), ("h2", ())]
            env.write_documents(hosts.folder("h2"), *names_of(2))  # as if it was mounted now
            assert await elect() == ["h1"]
            del apps["h1"]
            assert await elect() == []
            await second.database.execute(Sql("UPDATE process SET heartbeat = heartbeat - 31 WHERE host = 'h1'"))
            assert await elect() == ["h2"]
            apps["h1"] = first
            await first.database.execute(Sql("UPDATE process SET heartbeat = heartbeat + 31 WHERE host = 'h1'"))
            assert await elect() == ["h2"]


async def test_a_mount_point_without_documents_does_not_win_the_election(hosts: Hosts) -> None:
    """Without known documents, an empty folder may be the share or a mount point."""
    async with hosts.app("h1") as app:
        upload = app.uploads["bank"]
        await app.shares.elect(upload, await app.shares.look(upload))
        assert not app.shares.scans("bank")
        hosts.env.write_documents(hosts.folder("h1"), "a.pdf")
        await app.shares.elect(upload, await app.shares.look(upload))
        assert app.shares.scans("bank")
        await app.shares.elect(upload, None)  # it cannot be read any more
        assert not app.shares.scans("bank")
        await anyio.lowlevel.checkpoint()
        assert [p.scans for p in await processes(app.database)] == [()]
