"""Test when receipts are written, and which parts remain after erasure."""

from __future__ import annotations

import json
import os

import pytest
from msgspec.structs import replace

from docferry import __version__
from docferry.clock import iso
from docferry.model import Outcome, Receipt, State
from docferry.receipts.merkle import Tree
from docferry.store.claims import Pick
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.store.opening import open_database
from docferry.store.receipt_upkeep import ReceiptUpkeep
from docferry.store.receipts import unix_user
from receipts.conftest import TARGET, Queue, Store

pytestmark = pytest.mark.anyio


def bodies(store: Store) -> list[dict[str, object]]:
    return [json.loads(row[0]) for row in store.sql("SELECT body FROM receipt ORDER BY idx")]


async def claim(queue: Queue) -> list:  # type: ignore[type-arg]
    (lane,) = await queue.transfers.lanes()
    return await queue.transfers.claim([Pick(lane, 100)], 100)


async def test_a_sent_document_has_a_receipt_with_all_that_is_known(store: Store) -> None:
    await store.send("2026/ä.pdf")
    (found,) = bodies(store)
    (uid, sha256) = store.sql("SELECT uid, sha256 FROM transfer")[0]
    assert found == {
        "index": 0,
        "kind": "sent",
        "uid": uid,
        "time": iso(store.clock.now()),
        "mapping": "m",
        "path": "2026/ä.pdf",
        "size": 10,
        "sha256": sha256,
        "remote": "codat",
        "company_id": TARGET.company_id,
        "connection_id": TARGET.connection_id,
        "remote_name": "ä.pdf",
        "status": 200,
        "correlation_id": "c-1",
        "etag": "e",
        "proof": "answer",
        "host": "sftp-1",
        "version": __version__,
    }


async def test_adopted_and_gone(store: Store) -> None:
    async with store.open() as queue:
        await queue.enqueue("a.pdf", "b.pdf", "c.pdf", "d.pdf")
        first, second, *_ = await claim(queue)
        proof = Receipt(None, detail="listed", proof="list")
        await queue.transfers.settle(first, Outcome(State.SENT, receipt=proof), was=State.LEASED)
        await queue.transfers.settle(second, Outcome(State.GONE, detail="it vanished"), was=State.LEASED)
    assert [(each["kind"], each.get("proof"), each["detail"]) for each in bodies(store)] == [
        ("adopted", "list", "listed"),
        ("gone", None, "it vanished"),
    ]
    assert await store.problems() == []


async def test_what_vanishes_before_it_was_sent_has_a_receipt(store: Store) -> None:
    async with store.open() as queue:
        await queue.enqueue("a.pdf", "b.pdf")
        await queue.documents.mark_gone("m", [b"a.pdf"])
    (found,) = bodies(store)
    assert (found["kind"], found["path"]) == ("gone", "a.pdf")
    assert await store.problems() == []


async def test_a_lost_lease_leaves_no_receipt(store: Store) -> None:
    async with store.open() as queue:
        await queue.enqueue("a.pdf", "b.pdf")
        claimed = await claim(queue)
        stale = [replace(each, lease=each.lease - 1) for each in claimed]
        outcome = Outcome(State.SENT, receipt=Receipt(200))
        with pytest.raises(Exception, match="no longer leased"):
            await queue.transfers.settle(stale[0], outcome, was=State.LEASED)
        with pytest.raises(Exception, match="no longer leased"):
            await queue.transfers.settle_all([claimed[0], stale[1]], outcome, was=State.LEASED)
    assert [each["path"] for each in bodies(store)] == ["a.pdf"]
    assert await store.problems() == []


async def test_a_download_has_a_receipt_once_it_landed(store: Store) -> None:
    arrival = DownloadedFile("inbox", "acme/2026-11-30/x/a.pdf", "f" * 64, b"/srv/in/a.pdf", False, 7)
    async with open_database(store.path) as database:
        downloads = Downloads(database, store.clock)
        await downloads.record([arrival, DownloadedFile("inbox", "own", "e" * 64, None, True, 7)])
        assert bodies(store) == []
        await downloads.record([replace(arrival, published=True)])
    (found,) = bodies(store)
    assert (found["kind"], found["path"], found["remote_name"]) == ("downloaded", "/srv/in/a.pdf", arrival.origin)
    assert await store.problems() == []


async def test_old_databases_get_receipts_from_their_attempts(store: Store) -> None:
    """Each transfer gets one receipt, in steps, while new ones arrive."""
    await store.send(*(f"{number}.pdf" for number in range(10)))
    async with store.open() as queue:
        await queue.enqueue("gone.pdf", "waits.pdf")
        await queue.documents.mark_gone("m", [b"gone.pdf"])
    before = bodies(store)
    store.sql("DELETE FROM receipt")  # as migration 0004 leaves it
    store.sql("UPDATE receipt_log SET size = 0, frontier = x'', transfers_old = 12, transfers_done = 0")
    async with open_database(store.path, host="sftp-1") as database:
        upkeep = ReceiptUpkeep(database)
        assert await upkeep.reconstruct(4)
        await store.send("waits.pdf")
        assert await store.problems() == []
        while await upkeep.reconstruct(4):
            assert await store.problems() == []
    after = bodies(store)
    assert await store.problems() == []
    rebuilt = [each for each in after if each.pop("reconstructed", None)]
    assert [each | {"index": 0} for each in rebuilt] == [each | {"index": 0} for each in before]
    assert len(after) == 12
    assert store.sql("SELECT count(*), count(DISTINCT transfer_id) FROM receipt") == [(12, 12)]


async def test_old_downloads_get_receipts(store: Store) -> None:
    arrivals = [DownloadedFile("inbox", f"o/{n}", "f" * 64, b"/in/%d" % n, True, 7) for n in range(5)]
    async with open_database(store.path) as database:
        await Downloads(database, store.clock).record(arrivals)
        store.sql("DELETE FROM receipt")
        store.sql("UPDATE receipt_log SET size = 0, frontier = x'', downloads_old = 4")
        while await ReceiptUpkeep(database).reconstruct(2):
            pass
    assert [(each["remote_name"], each["reconstructed"]) for each in bodies(store)] == [
        (f"o/{n}", True) for n in range(4)
    ]


async def test_erased_bodies_keep_their_leaves(store: Store) -> None:
    await store.send("a.pdf", "b.pdf", "c.pdf")
    limit = store.clock.now() + 1
    store.clock.turn(3600)
    await store.send("d.pdf")
    head = await store.head()
    async with open_database(store.path) as database:
        upkeep = ReceiptUpkeep(database)
        assert [await upkeep.erase(limit, 2) for _ in range(3)] == [2, 1, 0]
    assert [row[0] is None for row in store.sql("SELECT body FROM receipt ORDER BY idx")] == [True] * 3 + [False]
    report = await store.audit()
    assert (report.receipts, report.erased, report.problem_count) == (4, 3, 0)
    async with store.open() as queue:
        assert Tree(await queue.log.leaves(4)).root() == head.head.root
    store.sql("DELETE FROM receipt WHERE idx = 1")
    assert (await store.problems())[0] == "receipt 1 is missing: removed from the database"


async def test_a_head_is_stored_once_for_a_log_that_did_not_grow(store: Store) -> None:
    await store.send("a.pdf")
    head = await store.head()
    assert await store.head() == head
    await store.send("b.pdf")
    await store.head()
    async with store.open() as queue:
        assert [each.signed.head.size for each in await queue.log.heads()] == [1, 2]
        assert await queue.log.knows(head.head)
        assert not await queue.log.knows(replace(head.head, root=bytes(32)))
        assert not await queue.log.knows(replace(head.head, size=3))


async def test_a_release_from_approval_names_who_gave_it(store: Store) -> None:
    async with store.open() as queue:
        await queue.enqueue("a.pdf", "b.pdf", "c.pdf")
        store.sql("UPDATE transfer SET state = 'held', reason = 'approval' WHERE remote_name <> 'c.pdf'")
        store.sql("UPDATE transfer SET state = 'held', reason = 'too_large' WHERE remote_name = 'c.pdf'")
        (document,) = store.sql("SELECT id FROM document WHERE name = ?", b"a.pdf")[0]
        await queue.transfers.retry(ids=[document])
        await queue.transfers.retry(everything=True)  # releases nothing
        await queue.transfers.retry(reason="approval", actor="page session 12ab")
    found = [(each["kind"], each["path"], each["actor"]) for each in bodies(store)]
    assert found == [("released", "a.pdf", unix_user()), ("released", "b.pdf", "page session 12ab")]
    assert f"uid {os.getuid()}" in unix_user()
    assert await store.problems() == []
