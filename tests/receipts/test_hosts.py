"""Test the logs of receipts of several hosts that share a PostgreSQL queue: one for each host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from app_env import AppEnv
from docferry.clock import TurnableClock
from docferry.model import Outcome, Receipt, State
from docferry.receipts.audit import NamedHead
from docferry.receipts.heads import Head, SignedHead
from docferry.store import move
from docferry.store.claims import Pick
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.receipt_log import ReceiptLog
from docferry.store.receipt_upkeep import ReceiptUpkeep
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer
from store.conftest import planned

pytestmark = pytest.mark.anyio
CLOCK = TurnableClock()


@pytest.fixture
def url(postgresql_server: PostgresqlServer) -> str:
    return postgresql_server.new_database()


async def send(database: Database, *names: str) -> None:
    documents, transfers = Documents(database, CLOCK), Transfers(database, CLOCK, f"{database.receipts.host}:1-a")
    await documents.apply("m", [planned(name) for name in names])
    for lane in await transfers.lanes():
        claimed = await transfers.claim([Pick(lane, 100)], 100)
        await transfers.mark_sending(claimed)
        await transfers.settle_all(claimed, Outcome(State.SENT, receipt=Receipt(200)), was=State.SENDING)


async def problems(log: ReceiptLog, *anchored: NamedHead) -> list[str]:
    return list((await log.audit(anchored)).problems)


async def test_each_host_appends_to_its_own_log(url: str) -> None:
    async with open_database(url, host="h1") as one, open_database(url, host="h2") as two:
        await send(one, "a.pdf", "b.pdf")
        await send(two, "c.pdf")
        await send(one, "d.pdf")
        first, second = ReceiptLog(one, CLOCK), ReceiptLog(two, CLOCK)
        logs = await first.logs()
        assert [(log.host, log.size) for log in logs] == [("h1", 3), ("h2", 1)]
        assert logs == await second.logs()
        assert [log.origin.split("/")[1] for log in logs] == ["h1", "h2"]
        report = await first.audit()
        assert (report.receipts, report.problem_count, len(report.logs)) == (4, 0, 2)
        found = [await first.at_index(index) for index in range(4)]
        assert [receipt and receipt.index for receipt in found] == [0, 1, 2, None]
        other = await first.at_index(0, "h2")
        assert other is not None
        assert other.body is not None
        assert (json.loads(other.body)["host"], json.loads(other.body)["index"]) == ("h2", 0)
        head = await second.take_head()
        assert (head.signed.head.origin, head.signed.head.size) == (logs[1].origin, 1)
        assert await first.knows(head.signed.head)
        assert await problems(first, NamedHead("a head", head.signed)) == []
        unknown = SignedHead(Head("docferry/h3/00", 1, b"r" * 32))
        assert "is of another log" in (await problems(first, NamedHead("a head", unknown)))[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE receipt SET body = replace(body, 'c.pdf', 'x.pdf') WHERE idx > 100", "h2: receipt 0 was changed"),
        ("DELETE FROM receipt WHERE idx > 100", "h2: receipt 0 is missing: the end of the log was cut off"),
        ("DELETE FROM receipt_log WHERE host = 'h2'", "log 1 has receipts, and its row in receipt_log was removed"),
        ("DELETE FROM receipt WHERE idx = 1", "h1: receipt 1 is missing: removed from the database"),
    ],
)
async def test_what_is_changed_in_any_log_is_found(url: str, change: str, expected: str) -> None:
    async with open_database(url, host="h1") as one, open_database(url, host="h2") as two:
        await send(one, "a.pdf", "b.pdf", "e.pdf")
        await send(two, "c.pdf")
        await one.execute(Sql(change))
        found = await problems(ReceiptLog(one, CLOCK))
        assert any(problem.startswith(expected) for problem in found), found


async def test_one_host_may_end_what_another_one_sent(url: str) -> None:
    """`retry --missing` on a host whose log is read before that of the sender."""
    async with open_database(url, host="h1") as one, open_database(url, host="h2") as two:
        await send(two, "a.pdf")
        await one.execute(Sql("UPDATE transfer SET state = 'gone', dedupe_key = 'gone:' || id"))
        assert len(await problems(ReceiptLog(one, CLOCK))) == 1

        def end(transaction: Any) -> None:
            one.receipts.append_gone(transaction, [1], CLOCK.now(), "sent again")

        await one.write(end)
        assert await problems(ReceiptLog(one, CLOCK)) == []


async def test_old_bodies_of_all_logs_are_erased(url: str) -> None:
    async with open_database(url, host="h1") as one, open_database(url, host="h2") as two:
        await send(one, "a.pdf", "b.pdf")
        await send(two, "c.pdf")
        upkeep = ReceiptUpkeep(one)
        assert not await upkeep.reconstruct(10)
        assert await upkeep.erase(CLOCK.now() + 1, 10) == 2
        assert await upkeep.erase(CLOCK.now() + 1, 10) == 0
        report = await ReceiptLog(two, CLOCK).audit()
        assert (report.erased, report.problem_count) == (3, 0)


async def test_a_moved_log_goes_on_as_that_of_its_host(url: str, tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    async with open_database(path, host="h1") as database:
        await send(database, "a.pdf")
        before = await ReceiptLog(database, CLOCK).state()
    move.move(path, url, "h1", {"m"})
    async with open_database(url, host="h1") as one, open_database(url, host="h2") as two:
        await send(one, "b.pdf")
        await send(two, "c.pdf")
        assert [(log.origin == before.origin, log.size) for log in await ReceiptLog(one, CLOCK).logs()] == [
            (True, 2),
            (False, 1),
        ]
        assert await problems(ReceiptLog(two, CLOCK)) == []


def test_an_export_has_a_folder_for_each_host(app_env: AppEnv, url: str) -> None:
    folder = app_env.upload("share", shared="true")
    for host in ("h1", "h2"):
        (folder / f"{host}.pdf").write_bytes(host.encode())
        more = {"DOCFERRY_DATABASE_URL": url, "DOCFERRY_HOST": host, "DOCFERRY_STATE_DIR": str(app_env.root / host)}
        done = app_env.run("sync", **more)
        assert done.returncode == 0, done.stderr
    for words in (["verify"], ["show", "r0@h1"], ["prove", "r0@h1"], ["export", "-o", str(app_env.root / "all.zip")]):
        done = app_env.run("receipts", *words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    archive = ZipFile(app_env.root / "all.zip")
    assert {"h1/receipts.jsonl", "h2/receipts.jsonl", "h1/verify.py", "verify.py"} <= set(archive.namelist())
    (receipt,) = map(json.loads, archive.read("h2/receipts.jsonl").splitlines())
    assert (receipt["host"], receipt["remote_name"]) == ("h2", "h2.pdf")
    archive.extractall(app_env.root / "export")
    for where in ([], [str(app_env.root / "all.zip")]):
        command = [sys.executable, "-I", str(app_env.root / "export" / "verify.py"), *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("1 receipts are in the log docferry/h") == 2
    changed = app_env.root / "export" / "h1" / "receipts.jsonl"
    changed.write_text(changed.read_text().replace("h1.pdf", "h3.pdf"))
    done = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert done.returncode == 1
