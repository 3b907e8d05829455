"""Test pages of documents, the hours of the plots, and the snapshot of the queue."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from docferry.model import Gate, Outcome, State, Target
from docferry.store import pages, queue_view
from docferry.store.gates import Gates
from docferry.store.pages import Filter, Page, Pages
from docferry.store.queue_view import QueueView
from docferry.store.reports import Reports
from store.conftest import StoreEnv, planned

pytestmark = pytest.mark.anyio
WOOTIV = Target("wootiv")


def names(page: Page) -> list[str]:
    return [row.path.decode() for row in page.rows]


async def test_pages_follow_each_other_and_miss_nothing(env: StoreEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "WINDOW", 10)
    await env.held("held.pdf", "refused")
    await env.enqueue(*(f"x/{number:04}.pdf" for number in range(1250)))
    found: list[str] = []
    page = await Pages(env.database).documents(Filter(), limit=400)
    while True:
        found += names(page)
        if page.below is None:
            break
        page = await Pages(env.database).documents(Filter(), below=page.below, limit=400)
    assert found == [*(f"x/{number:04}.pdf" for number in reversed(range(1250))), "held.pdf"]


@pytest.mark.parametrize("few", [0, 5_000], ids=["by id", "by state"])
async def test_filters(few: int, env: StoreEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FEW", few)
    await env.held("a/March 100%.pdf", "refused")
    await env.held("b.pdf", "gave_up")
    await env.enqueue("c.pdf", mapping="other")
    await env.documents.apply("m", [planned("Ümlaut.pdf")])
    asked = Pages(env.database).documents
    digest = (await env.column("SELECT sha256 FROM document WHERE name = :n", n=b"b.pdf"))[0]
    for wanted, expected in (
        (Filter(states=("held",)), ["b.pdf", "a/March 100%.pdf"]),
        (Filter(states=("held", "waiting"), mapping="m"), ["Ümlaut.pdf", "b.pdf", "a/March 100%.pdf"]),
        (Filter(reason="gave_up"), ["b.pdf"]),
        (Filter(mapping="other"), ["c.pdf"]),
        (Filter(search="march"), ["a/March 100%.pdf"]),
        (Filter(search="0%"), ["a/March 100%.pdf"]),
        (Filter(search="_"), []),
        (Filter(search="Ümlaut"), ["Ümlaut.pdf"]),
        (Filter(search=digest[:10]), ["b.pdf"]),
        (Filter(search=digest.upper()), ["b.pdf"]),
        (Filter(states=("sent",)), []),
        (Filter(search="\0\ud800"), []),
    ):
        assert names(await asked(wanted)) == expected, wanted


async def test_a_search_ends_when_its_time_is_up_and_can_go_on(env: StoreEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "BUDGET_S", 0.0)
    await env.enqueue(*(f"{number:04}.pdf" for number in range(1500)))
    page = await Pages(env.database).documents(Filter(search="0001.pdf"))
    assert (page.rows, page.complete) == ((), False)
    further = await Pages(env.database).documents(Filter(search="0001.pdf"), below=page.below)
    assert (names(further), further.complete) == (["0001.pdf"], True)


async def test_all_ids_are_those_that_can_be_retried(env: StoreEnv) -> None:
    await env.held("a.pdf", "refused")
    await env.doubtful("b.pdf")
    await env.enqueue("c.pdf")
    ids = await Pages(env.database).all_ids(Filter(search=".pdf"), chunk=1)
    assert sorted(ids) == await env.column("SELECT id FROM document ORDER BY id")
    assert len(await Pages(env.database).all_ids(Filter(states=("held", "sent")))) == 1


async def test_hours_count_what_arrived(env: StoreEnv) -> None:
    since = env.clock.now()
    for target, path in ((Target("codat", "acme", "bank"), "a.pdf"), (WOOTIV, "b.pdf"), (WOOTIV, "c.pdf")):
        env.clock.turn(3600.0)
        await env.enqueue(path, target=target)
        env.clock.turn(60.0)
        (transfer,) = await env.claimed()
        await env.transfers.mark_sending([transfer])
        await env.transfers.settle(replace(transfer, state=State.SENDING), Outcome(State.SENT), was=State.SENDING)
    found = await Pages(env.database).hours(since)
    assert [(each.hour, each.remote, each.documents) for each in found] == [
        (1, "codat", 1),
        (2, "wootiv", 1),
        (3, "wootiv", 1),
    ]
    assert all(each.longest_delay == pytest.approx(60.0) and each.octets == 64 for each in found)
    assert await Pages(env.database).hours(env.clock.now() + 1) == []


async def test_a_snapshot_tells_what_the_reports_tell(env: StoreEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_view, "COUNTED_AT_ONCE", 2)
    await env.enqueue("first/old.pdf")
    env.clock.turn(100.0)
    await env.enqueue("a.pdf", "b.pdf", mapping="other", target=WOOTIV)
    await Gates(env.database).close(Gate("codat", "key", "refused", 5.0, 1, 1.0))
    view = QueueView(env.database)
    found = await view.snapshot()
    assert found.documents == await Reports(env.database).counts() == {"m": {"waiting": 1}, "other": {"waiting": 2}}
    assert found.gates.keys() == {"codat"}
    assert {(due.mapping, due.remote, due.documents) for due in found.due} == {
        ("m", "codat", 1),
        ("other", "wootiv", 2),
    }
    oldest = found.oldest["codat"]
    assert (oldest.path, oldest.since) == (b"first/old.pdf", env.clock.now() - 100.0)
    assert found.oldest["wootiv"].path == b"a.pdf"
    await Gates(env.database).open_one("codat")
    assert not await Gates(env.database).open_one("codat")
    view.outdate()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(view.refresh_when_asked)  # on a slow machine the last one is given out meanwhile
            while (await view.snapshot()).gates:  # noqa: ASYNC110 - the view tells of no new snapshot
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
