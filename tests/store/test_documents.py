"""What a plan makes of paths: new, touched, changed, renamed, copied, held, back again, gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docferry.model import Gate, Outcome, SeenFile, Stamp, State, Target
from docferry.store.cursors import Cursors
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.store.gates import Gates
from docferry.store.reports import Reports
from store.conftest import ACME, Shop, planned

pytestmark = pytest.mark.anyio
OTHER = Target("codat", "other", "bank")


async def sent(shop: Shop, *plans: Any, mapping: str = "m") -> None:
    await shop.documents.apply(mapping, plans)
    claimed = await shop.claimed()
    await shop.transfers.mark_sending(claimed)
    for transfer in claimed:
        await shop.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)


async def transfers(shop: Shop) -> list[tuple[Any, ...]]:
    return await shop.rows("SELECT remote_name, state FROM transfer ORDER BY id")


async def present(shop: Shop) -> list[tuple[Any, ...]]:
    return await shop.rows("SELECT name, mtime_ns, transfer_id FROM document WHERE present ORDER BY name")


async def test_new_documents_wait(shop: Shop) -> None:
    applied = await shop.documents.apply("m", [planned("x/a.pdf"), planned("b.pdf")])
    assert (applied.queued, applied.held, applied.unchanged) == (2, 0, 0)
    assert await transfers(shop) == [("a.pdf", "waiting"), ("b.pdf", "waiting")]
    assert await shop.documents.folders("m") == {b"x", b""}
    assert (await shop.documents.known("m", [b"x"]))[b"x"] == {(b"a.pdf", 64, 1, 1)}
    assert await shop.documents.known("other", [b"x"]) == {}


@pytest.mark.parametrize("state", ["waiting", "sent"])
async def test_a_touch_only_renews_the_stamp(shop: Shop, state: str) -> None:
    if state == "sent":
        await sent(shop, planned("a.pdf"))
    else:
        await shop.enqueue("a.pdf")
    applied = await shop.documents.apply("m", [planned("a.pdf", mtime=7)])
    assert (applied.queued, applied.unchanged) == (0, 1)
    assert await transfers(shop) == [("a.pdf", state)]
    assert await present(shop) == [(b"a.pdf", 7, 1)]


async def test_changed_bytes_are_a_new_document_and_the_old_one_is_gone(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    await shop.documents.apply("m", [planned("a.pdf", "changed", mtime=2)])
    assert await transfers(shop) == [("a.pdf", "gone"), ("a.pdf", "waiting")]
    assert await present(shop) == [(b"a.pdf", 2, 2)]


@pytest.mark.parametrize("state", [State.LEASED, State.SENDING, State.DOUBTFUL, State.ASKING])
async def test_what_may_be_on_the_wire_is_not_gone_when_its_file_is(shop: Shop, state: State) -> None:
    await shop.enqueue("a.pdf")
    await shop.change("UPDATE transfer SET state = :state, lease_owner = 'x'", state=state)
    await shop.documents.mark_gone("m", [b"a.pdf"])
    assert await transfers(shop) == [("a.pdf", state)]


async def test_what_was_sent_stays_sent_when_its_file_changes(shop: Shop) -> None:
    await sent(shop, planned("a.pdf"))
    await shop.documents.apply("m", [planned("a.pdf", "changed", mtime=2)])
    assert await transfers(shop) == [("a.pdf", "sent"), ("a.pdf", "waiting")]


async def test_there_and_back_again_sends_nothing(shop: Shop) -> None:
    await sent(shop, planned("a.pdf", "A"))
    await sent(shop, planned("a.pdf", "B", mtime=2))
    applied = await shop.documents.apply("m", [planned("a.pdf", "A", mtime=3)])
    assert applied.queued == 0
    assert await present(shop) == [(b"a.pdf", 3, 1)]


async def test_a_copy_goes_once_and_outlives_the_original(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    applied = await shop.documents.apply("m", [planned("copy.pdf", "a.pdf")])
    assert applied.queued == 0
    assert await shop.documents.mark_gone("m", [b"a.pdf"]) == 1
    assert await transfers(shop) == [("a.pdf", "waiting")]
    assert [place.path for place in (await shop.documents.places([1]))[1]] == [b"copy.pdf"]
    assert await shop.documents.mark_gone("m", [b"copy.pdf"]) == 1
    assert await transfers(shop) == [("a.pdf", "gone")]


async def test_the_same_bytes_go_to_each_target(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    assert (await shop.documents.apply("n", [planned("a.pdf", target=OTHER)])).queued == 1
    plan = planned("a.pdf")
    assert await shop.documents.is_queued(OTHER.lane, plan.dedupe_key, plan.sha256)


async def test_one_name_once(shop: Shop) -> None:
    await sent(shop, planned("a.pdf", "A", dedupe_key="name:a.pdf"))
    applied = await shop.documents.apply("m", [planned("x/a.pdf", "B", dedupe_key="name:a.pdf")])
    assert applied.queued == 0
    assert [row[1] for row in await shop.documents.delivered("m")] == [b"a.pdf"]  # not the one whose bytes stayed


async def test_a_rename_sends_nothing(shop: Shop) -> None:
    await sent(shop, planned("a.pdf"))
    await shop.documents.mark_gone("m", [b"a.pdf"])
    assert (await shop.documents.apply("m", [planned("b.pdf", "a.pdf")])).queued == 0


async def test_a_document_comes_back(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    await shop.documents.mark_gone("m", [b"a.pdf"])
    await shop.enqueue("a.pdf")
    assert await transfers(shop) == [("a.pdf", "gone"), ("a.pdf", "waiting")]


async def test_a_held_doubt_is_not_forgotten_with_its_file(shop: Shop) -> None:
    """It may be at the remote: the same bytes, put there again, must not be sent unasked."""
    await shop.held("a.pdf", "undecidable")
    await shop.documents.mark_gone("m", [b"a.pdf"])
    assert (await shop.documents.apply("m", [planned("a.pdf", mtime=5)])).queued == 0
    assert await transfers(shop) == [("a.pdf", "held")]


async def test_what_a_rule_holds_is_held_once(shop: Shop) -> None:
    def too_large(uid: str, mtime: int = 1) -> Any:
        plan = planned("a.pdf", state=State.HELD, reason="too_large", detail="cut it", mtime=mtime)
        return replace(plan, sha256=None, dedupe_key=f"held:{uid}", uid=uid)

    assert (await shop.documents.apply("m", [too_large("1")])).held == 1
    assert (await shop.documents.apply("m", [too_large("2")])).held == 0  # another process came a moment later
    assert await transfers(shop) == [("a.pdf", "held")]
    assert (await shop.documents.apply("m", [too_large("3", mtime=2)])).held == 1
    assert await transfers(shop) == [("a.pdf", "gone"), ("a.pdf", "held")]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
async def test_a_document_that_cannot_be_stored_is_held_alone(shop: Shop, number: int) -> None:
    odd = replace(planned("odd.pdf"), seen_file=SeenFile(b"", b"odd.pdf", Stamp(1, number, 1)))
    for _ in range(2):
        await shop.documents.apply("m", [planned("a.pdf"), odd, replace(planned("b.pdf"), remote_name="b\udcff")])
        rows = await shop.rows("SELECT remote_name, state, reason FROM transfer ORDER BY id")
        assert rows == [("a.pdf", "waiting", None), ("odd.pdf", "held", "metadata"), ("b?", "held", "metadata")]


async def test_of_a_path_seen_twice_the_later_look_counts(shop: Shop) -> None:
    await shop.documents.apply("m", [planned("a.pdf", "old"), planned("b.pdf"), planned("a.pdf", "new", mtime=2)])
    assert await transfers(shop) == [("b.pdf", "waiting"), ("a.pdf", "waiting")]
    assert [row[:2] for row in await present(shop)] == [(b"a.pdf", 2), (b"b.pdf", 1)]


async def test_a_transfer_follows_the_mapping_that_has_its_bytes(shop: Shop) -> None:
    """A mapping that was renamed: nobody claims for the old name any more."""
    await sent(shop, planned("a.pdf"))
    await shop.enqueue("b.pdf")
    await shop.documents.apply("renamed", [planned("a.pdf"), planned("b.pdf")])
    rows = await shop.rows("SELECT remote_name, mapping, state FROM transfer ORDER BY id")
    assert rows == [("a.pdf", "m", "sent"), ("b.pdf", "renamed", "waiting")]


async def test_what_came_down_is_known_and_not_sent(shop: Shop) -> None:
    applied = await shop.documents.apply("m", [planned("a.pdf", target=None)])
    assert applied.queued == 0
    assert await present(shop) == [(b"a.pdf", 1, None)]
    await shop.documents.apply("m", [planned("a.pdf", target=None, mtime=2)])
    assert await present(shop) == [(b"a.pdf", 2, None)]


async def test_a_mapping_that_leads_elsewhere_is_planned_again(shop: Shop) -> None:
    await shop.enqueue("a.pdf")
    await shop.documents.set_target("m", "here")
    await shop.documents.set_target("m", "here")
    assert (b"a.pdf", 64, 1, 1) in (await shop.documents.known("m", [b""]))[b""]
    await shop.documents.set_target("m", "elsewhere")
    assert (b"a.pdf", 64, 1, 1) not in (await shop.documents.known("m", [b""]))[b""]
    await shop.documents.apply("m", [planned("a.pdf", target=OTHER)])
    lanes = await shop.rows("SELECT lane, state FROM transfer ORDER BY id")
    assert lanes == [(ACME.lane, "gone"), (OTHER.lane, "waiting")]


# -- gates, bookmarks, reports --


def gate(key: str, until: float = 0.0, **more: Any) -> Gate:
    return Gate(key, more.pop("reason", "rate"), "wait", until, 1, 0.0, **more)


async def test_a_gate_opens_unless_it_was_closed_for_longer_meanwhile(shop: Shop) -> None:
    gates = Gates(shop.database)
    for key in ("codat", "codat/a", "wootiv"):
        await gates.close(gate(key, until=10.0))
    await gates.open({"codat": 10.0, "codat/a": 10.0})
    assert (await gates.all()).keys() == {"wootiv"}
    await gates.close(gate("codat", until=50.0))
    await gates.open({"codat": 49.0})
    assert (await gates.all()).keys() == {"codat", "wootiv"}
    await gates.open_all()
    assert await gates.all() == {}


async def test_a_gate_stays_closed_for_the_longest_wish(shop: Shop) -> None:
    gates = Gates(shop.database)
    await gates.close(gate("codat", until=90.0))
    await gates.close(replace(gate("codat", until=30.0), since=20.0, tries=2))
    found = (await gates.all())["codat"]
    assert (found.until, found.since, found.tries) == (90.0, 0.0, 2)
    await gates.close(replace(gate("codat", reason="key"), since=21.0))
    assert (await gates.all())["codat"].since == 21.0


async def test_bookmarks_and_arrivals(shop: Shop) -> None:
    cursors, downloads = Cursors(shop.database, shop.clock), Downloads(shop.database, shop.clock)
    assert await cursors.get("pull/x") is None
    await cursors.set("pull/x", "1")
    await cursors.set("pull/x", "2")
    await cursors.set("other", "3")
    assert (await cursors.get("pull/x"), await cursors.get_all("pull/")) == ("2", {"pull/x": "2"})
    assert not await downloads.exist()
    arrival = DownloadedFile("inbox", "a/b", "digest", b"/in/\xff.pdf", False, 3)
    await downloads.record([arrival])
    await downloads.record([replace(arrival, published=True)])
    assert await downloads.exist()
    assert await downloads.known("inbox", ["a/b", "c"]) == [replace(arrival, published=True)]
    assert [file.path for file in await downloads.with_digests(["digest", "other"])] == [b"/in/\xff.pdf"]


async def test_own_digests_are_those_that_were_sent_or_may_have_been(shop: Shop, location: Path | str) -> None:
    downloads = Downloads(shop.database, shop.clock)
    doubt = await shop.doubtful("doubt.pdf")
    waits = planned("waits.pdf")
    await shop.documents.apply("m", [waits])
    digests = [doubt.sha256, str(waits.sha256)]
    assert await downloads.own_digests("acme", digests) == {doubt.sha256}
    assert await downloads.own_digests("other", digests) == set()
    # Found by digest however many there are; whoever never asks has no such index to keep.
    names = "sqlite_master" if isinstance(location, Path) else "(SELECT indexname AS name FROM pg_indexes) AS names"
    assert await shop.column(f"SELECT name FROM {names} WHERE name = 'transfer_digest'")  # noqa: S608 - our own words


async def test_reports(shop: Shop) -> None:
    reports = Reports(shop.database)
    await shop.held("x/held.pdf", "refused")
    await shop.enqueue("a.pdf")
    await shop.enqueue("b.pdf", mapping="n", target=OTHER)
    assert await reports.counts() == {"m": {"held": 1, "waiting": 1}, "n": {"waiting": 1}}
    assert {s: c for s, c in (await reports.open_counts(["m"])).items() if c} == {"held": 1, "waiting": 1}
    assert await reports.held_reasons() == [("m", "refused", 1)]
    rows = await reports.rows(mapping="m")
    assert [(row.path, row.state, row.reason, row.attempts) for row in rows] == [
        (b"x/held.pdf", "held", "refused", 1),
        (b"a.pdf", "waiting", None, 0),
    ]
    assert [row.path for row in await reports.rows(states=["waiting"], limit=1, after=rows[0].id)] == [b"a.pdf"]
    assert [row.path for row in await reports.rows(reason="refused")] == [b"x/held.pdf"]
    assert (await reports.by_path("m", b"x/held.pdf"))[0].id == rows[0].id
    assert await reports.by_id(99) is None
    assert [(a.lease, a.state) for a in await reports.attempts(rows[0].id)] == [(1, "held")]
