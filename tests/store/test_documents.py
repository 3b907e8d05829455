"""Test plans of new, touched, changed, renamed, copied, held, restored and removed files."""

from __future__ import annotations

import string
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from docferry.model import Gate, Outcome, SeenFile, Stamp, State, Target
from docferry.store.cursors import Cursors
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.store.gates import Gates
from docferry.store.plan_table import Planned
from docferry.store.reports import Reports
from store.conftest import ACME, StoreEnv, planned

pytestmark = pytest.mark.anyio
OTHER = Target("codat", "other", "bank")


async def sent(env: StoreEnv, *plans: Any, mapping: str = "m") -> None:
    await env.documents.apply(mapping, plans)
    claimed = await env.claimed()
    await env.transfers.mark_sending(claimed)
    for transfer in claimed:
        await env.transfers.settle(transfer, Outcome(State.SENT), was=State.SENDING)


async def transfers(env: StoreEnv) -> list[tuple[Any, ...]]:
    return await env.rows("SELECT remote_name, state FROM transfer ORDER BY id")


async def present(env: StoreEnv) -> list[tuple[Any, ...]]:
    return await env.rows("SELECT name, mtime_ns, transfer_id FROM document WHERE present ORDER BY name")


async def test_new_documents_wait(env: StoreEnv) -> None:
    applied = await env.documents.apply("m", [planned("x/a.pdf"), planned("b.pdf")])
    assert (applied.queued, applied.held, applied.unchanged) == (2, 0, 0)
    assert await transfers(env) == [("a.pdf", "waiting"), ("b.pdf", "waiting")]
    assert await env.documents.folders("m") == {b"x", b""}
    assert (await env.documents.known("m", [b"x"]))[b"x"] == {(b"a.pdf", 64, 1, 1)}
    assert await env.documents.known("other", [b"x"]) == {}


@pytest.mark.parametrize("state", ["waiting", "sent"])
async def test_a_touch_changes_only_the_stamp(env: StoreEnv, state: str) -> None:
    if state == "sent":
        await sent(env, planned("a.pdf"))
    else:
        await env.enqueue("a.pdf")
    applied = await env.documents.apply("m", [planned("a.pdf", mtime=7)])
    assert (applied.queued, applied.unchanged) == (0, 1)
    assert await transfers(env) == [("a.pdf", state)]
    assert await present(env) == [(b"a.pdf", 7, 1)]


async def test_changed_bytes_are_a_new_document_and_the_old_one_is_gone(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    await env.documents.apply("m", [planned("a.pdf", "changed", mtime=2)])
    assert await transfers(env) == [("a.pdf", "gone"), ("a.pdf", "waiting")]
    assert await present(env) == [(b"a.pdf", 2, 2)]


@pytest.mark.parametrize("state", [State.LEASED, State.SENDING, State.DOUBTFUL, State.ASKING])
async def test_a_transfer_in_flight_outlives_its_file(env: StoreEnv, state: State) -> None:
    await env.enqueue("a.pdf")
    await env.change("UPDATE transfer SET state = :state, lease_owner = 'x'", state=state)
    await env.documents.mark_gone("m", [b"a.pdf"])
    assert await transfers(env) == [("a.pdf", state)]


async def test_a_sent_transfer_stays_sent_when_its_file_changes(env: StoreEnv) -> None:
    await sent(env, planned("a.pdf"))
    await env.documents.apply("m", [planned("a.pdf", "changed", mtime=2)])
    assert await transfers(env) == [("a.pdf", "sent"), ("a.pdf", "waiting")]


async def test_restored_content_is_not_sent_again(env: StoreEnv) -> None:
    await sent(env, planned("a.pdf", "A"))
    await sent(env, planned("a.pdf", "B", mtime=2))
    applied = await env.documents.apply("m", [planned("a.pdf", "A", mtime=3)])
    assert applied.queued == 0
    assert await present(env) == [(b"a.pdf", 3, 1)]


async def test_a_copy_goes_once_and_outlives_the_original(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    applied = await env.documents.apply("m", [planned("copy.pdf", "a.pdf")])
    assert applied.queued == 0
    assert await env.documents.mark_gone("m", [b"a.pdf"]) == 1
    assert await transfers(env) == [("a.pdf", "waiting")]
    assert [place.path for place in (await env.documents.places([1]))[1]] == [b"copy.pdf"]
    assert await env.documents.mark_gone("m", [b"copy.pdf"]) == 1
    assert await transfers(env) == [("a.pdf", "gone")]


async def test_the_same_bytes_go_to_each_target(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    assert (await env.documents.apply("n", [planned("a.pdf", target=OTHER)])).queued == 1
    plan = planned("a.pdf")
    assert await env.documents.is_queued(OTHER.lane, plan.dedupe_key, plan.sha256)


async def test_a_dedupe_key_is_queued_once(env: StoreEnv) -> None:
    await sent(env, planned("a.pdf", "A", dedupe_key="name:a.pdf"))
    applied = await env.documents.apply("m", [planned("x/a.pdf", "B", dedupe_key="name:a.pdf")])
    assert applied.queued == 0
    assert [row[1] for row in await env.documents.delivered("m")] == [
        b"a.pdf"
    ]  # the other file has content that was not sent


async def test_a_rename_sends_nothing(env: StoreEnv) -> None:
    await sent(env, planned("a.pdf"))
    await env.documents.mark_gone("m", [b"a.pdf"])
    assert (await env.documents.apply("m", [planned("b.pdf", "a.pdf")])).queued == 0


async def test_a_document_comes_back(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    await env.documents.mark_gone("m", [b"a.pdf"])
    await env.enqueue("a.pdf")
    assert await transfers(env) == [("a.pdf", "gone"), ("a.pdf", "waiting")]


async def test_an_undecidable_transfer_outlives_its_file(env: StoreEnv) -> None:
    """The remote may have it, so the same content must not be sent without a lookup."""
    await env.held("a.pdf", "undecidable")
    await env.documents.mark_gone("m", [b"a.pdf"])
    assert (await env.documents.apply("m", [planned("a.pdf", mtime=5)])).queued == 0
    assert await transfers(env) == [("a.pdf", "held")]


async def test_a_rule_holds_a_document_once(env: StoreEnv) -> None:
    def too_large(uid: str, mtime: int = 1) -> Any:
        plan = planned("a.pdf", state=State.HELD, reason="too_large", detail="cut it", mtime=mtime)
        return replace(plan, sha256=None, dedupe_key=f"held:{uid}", uid=uid)

    assert (await env.documents.apply("m", [too_large("1")])).held == 1
    assert (await env.documents.apply("m", [too_large("2")])).held == 0  # another process plans it a moment later
    assert await transfers(env) == [("a.pdf", "held")]


async def test_a_held_file_that_is_changed_in_a_loop_adds_no_rows(env: StoreEnv) -> None:
    def held(uid: int, reason: str = "too_large", **more: Any) -> Any:
        plan = planned("a.pdf", state=State.HELD, reason=reason, detail=f"cut {uid} bytes", mtime=uid, **more)
        seen_file = replace(plan.seen_file, stamp=Stamp(1000 + uid, uid, uid))
        return replace(plan, sha256=None, dedupe_key=f"held:{uid}", uid=str(uid), seen_file=seen_file)

    for number in range(50):
        await env.documents.apply("m", [held(number)])
    rows = await env.rows("SELECT size, reason, detail, state FROM transfer")
    assert rows == [(1049, "too_large", "cut 49 bytes", "held")]
    assert await env.rows("SELECT size, mtime_ns, present FROM document") == [(1049, 49, True)]
    assert await env.column("SELECT count(*) FROM receipt") == [0]
    assert (await env.documents.apply("m", [held(51, "extension")])).held == 1, "another reason is another document"
    assert await transfers(env) == [("a.pdf", "gone"), ("a.pdf", "held")]
    assert (await env.documents.apply("m", [planned("a.pdf", mtime=52)])).queued == 1
    assert await transfers(env) == [("a.pdf", "gone"), ("a.pdf", "gone"), ("a.pdf", "waiting")]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
async def test_a_document_that_cannot_be_stored_is_held_alone(env: StoreEnv, number: int) -> None:
    odd = replace(planned("odd.pdf"), seen_file=SeenFile(b"", b"odd.pdf", Stamp(1, number, 1)))
    for _ in range(2):
        await env.documents.apply("m", [planned("a.pdf"), odd, replace(planned("b.pdf"), remote_name="b\udcff")])
        rows = await env.rows("SELECT remote_name, state, reason FROM transfer ORDER BY id")
        assert rows == [("a.pdf", "waiting", None), ("odd.pdf", "held", "metadata"), ("b?", "held", "metadata")]


async def test_the_later_plan_of_a_path_counts(env: StoreEnv) -> None:
    await env.documents.apply("m", [planned("a.pdf", "old"), planned("b.pdf"), planned("a.pdf", "new", mtime=2)])
    assert await transfers(env) == [("b.pdf", "waiting"), ("a.pdf", "waiting")]
    assert [row[:2] for row in await present(env)] == [(b"a.pdf", 2), (b"b.pdf", 1)]


async def test_a_transfer_follows_the_mapping_that_has_its_bytes(env: StoreEnv) -> None:
    """After a mapping was renamed, no process claims under its old name."""
    await sent(env, planned("a.pdf"))
    await env.enqueue("b.pdf")
    await env.documents.apply("renamed", [planned("a.pdf"), planned("b.pdf")])
    rows = await env.rows("SELECT remote_name, mapping, state FROM transfer ORDER BY id")
    assert rows == [("a.pdf", "m", "sent"), ("b.pdf", "renamed", "waiting")]


async def test_a_downloaded_file_is_known_and_not_sent(env: StoreEnv) -> None:
    applied = await env.documents.apply("m", [planned("a.pdf", target=None)])
    assert applied.queued == 0
    assert await present(env) == [(b"a.pdf", 1, None)]
    await env.documents.apply("m", [planned("a.pdf", target=None, mtime=2)])
    assert await present(env) == [(b"a.pdf", 2, None)]


async def test_a_mapping_with_another_target_is_planned_again(env: StoreEnv) -> None:
    await env.enqueue("a.pdf")
    await env.documents.set_target("m", "here")
    await env.documents.set_target("m", "here")
    assert (b"a.pdf", 64, 1, 1) in (await env.documents.known("m", [b""]))[b""]
    await env.documents.set_target("m", "elsewhere")
    assert (b"a.pdf", 64, 1, 1) not in (await env.documents.known("m", [b""]))[b""]
    await env.documents.apply("m", [planned("a.pdf", target=OTHER)])
    lanes = await env.rows("SELECT lane, state FROM transfer ORDER BY id")
    assert lanes == [(ACME.lane, "gone"), (OTHER.lane, "waiting")]


# -- gates, cursors, downloads, reports --


def gate(key: str, until: float = 0.0, **more: Any) -> Gate:
    return Gate(key, more.pop("reason", "rate"), "wait", until, 1, 0.0, **more)


async def test_a_gate_opens_unless_it_was_closed_for_longer_meanwhile(env: StoreEnv) -> None:
    gates = Gates(env.database)
    for key in ("codat", "codat/a", "wootiv"):
        await gates.close(gate(key, until=10.0))
    await gates.open({"codat": 10.0, "codat/a": 10.0})
    assert (await gates.all()).keys() == {"wootiv"}
    await gates.close(gate("codat", until=50.0))
    await gates.open({"codat": 49.0})
    assert (await gates.all()).keys() == {"codat", "wootiv"}
    await gates.open_all()
    assert await gates.all() == {}


async def test_a_gate_stays_closed_until_the_latest_time(env: StoreEnv) -> None:
    gates = Gates(env.database)
    await gates.close(gate("codat", until=90.0))
    await gates.close(replace(gate("codat", until=30.0), since=20.0, tries=2))
    found = (await gates.all())["codat"]
    assert (found.until, found.since, found.tries) == (90.0, 0.0, 2)
    await gates.close(replace(gate("codat", reason="key"), since=21.0))
    assert (await gates.all())["codat"].since == 21.0


async def test_cursors_and_downloads(env: StoreEnv) -> None:
    cursors, downloads = Cursors(env.database, env.clock), Downloads(env.database, env.clock)
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


async def test_own_digests_include_doubtful_transfers(env: StoreEnv, location: Path | str) -> None:
    downloads = Downloads(env.database, env.clock)
    doubt = await env.doubtful("doubt.pdf")
    waits = planned("waits.pdf")
    await env.documents.apply("m", [waits])
    digests = [doubt.sha256, str(waits.sha256)]
    assert await downloads.own_digests("acme", digests) == {doubt.sha256}
    assert await downloads.own_digests("other", digests) == set()
    # The first question creates the index; a queue without downloads need not maintain it.
    names = "sqlite_master" if isinstance(location, Path) else "(SELECT indexname AS name FROM pg_indexes) AS names"
    assert await env.column(f"SELECT name FROM {names} WHERE name = 'transfer_digest'")  # noqa: S608 - our own words


async def test_reports(env: StoreEnv) -> None:
    reports = Reports(env.database)
    await env.held("x/held.pdf", "refused")
    await env.enqueue("a.pdf")
    await env.enqueue("b.pdf", mapping="n", target=OTHER)
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


async def test_a_removed_file_frees_its_name(env: StoreEnv) -> None:
    """The next scan plans a document again that was held for the name of a deleted file."""

    def of_object(path: str, content: str) -> Planned:
        return planned(path, content, dedupe_key="object:a.pdf", exclusion="object")

    await sent(env, of_object("a.pdf", "one"))
    applied = await env.documents.apply("m", [of_object("x/a.pdf", "two")])
    assert applied.held == 1
    ((document_id, transfer_id),) = await env.rows("SELECT id, transfer_id FROM document WHERE folder = :f", f=b"")
    assert await env.documents.places([transfer_id])
    await env.documents.mark_removed([document_id])
    seen = [(b"x", [(b"a.pdf", 64, 1, 1)])]
    assert [each.name for each in (await env.documents.differences("m", seen)).fresh] == [b"a.pdf"]
    applied = await env.documents.apply("m", [of_object("x/a.pdf", "two")])
    assert (applied.queued, applied.held) == (1, 0)


async def test_a_path_of_4096_bytes_is_a_document(env: StoreEnv) -> None:
    """PostgreSQL's index rows have at most 2,704 bytes; random names cannot be compressed."""
    random = Random(17)  # noqa: S311 - incompressible, and the same each time
    parts = ["".join(random.choices(string.ascii_letters, k=200)) for _ in range(20)]
    path = "/".join(parts)[:4090] + "/a.pdf"
    folder, _, name = path.encode().rpartition(b"/")
    applied = await env.documents.apply("m", [planned(path, "one"), planned(path[:3000] + "/b.pdf", "two")])
    assert applied.queued == 2
    found = await env.documents.differences("m", [(folder, [(name, 64, 1, 1)])])
    assert (found.known, found.fresh, found.gone) == (1, [], [])
    applied = await env.documents.apply("m", [planned(path, "one", mtime=2)])
    assert (applied.queued, applied.unchanged) == (0, 1)
    assert (await env.documents.stamps("m", [path.encode()]))[path.encode()].mtime_ns == 2
    assert [row.path for row in await Reports(env.database).by_path("m", path.encode())] == [path.encode()]
    assert await env.documents.mark_gone("m", [path.encode()]) == 1


@pytest.mark.sqlite_only
async def test_the_cost_of_a_change_does_not_grow_with_the_documents_of_its_lane(env: StoreEnv) -> None:
    """Otherwise a customer could keep the only writer busy by touching many files."""

    def plans(mtime: int, content: str | None = None) -> list[Any]:
        return [planned(f"{n}.pdf", content and f"{content} {n}", mtime=mtime) for n in range(200)]

    async def seconds(step: int) -> float:
        """Return the processor time of touching, changing and changing back 200 documents; the least of three."""
        tries = []
        for number in range(3):
            began = time.process_time()
            for content in (None, "new", None):
                await env.documents.apply("m", plans(step + 10 * number + len(content or ""), content))
            tries.append(time.process_time() - began)
        return min(tries)

    await env.documents.apply("m", plans(1))
    few = await seconds(100)
    for start in range(1_000, 17_000, 1_000):
        await env.documents.apply("m", [planned(f"{n}.pdf") for n in range(start, start + 1_000)])
    many = await seconds(200)
    assert many < 5 * few, f"{few:.3f} s beside 200 documents, {many:.3f} s beside 16,200"


async def test_a_file_whose_name_is_taken_adds_no_rows_when_it_is_changed_in_a_loop(env: StoreEnv) -> None:
    def plan(path: str, content: str, mtime: int) -> Planned:
        return planned(path, content, mtime=mtime, dedupe_key="object:a", exclusion="object")

    def named(each: Planned) -> Planned:
        return replace(each, remote_name="a.pdf")

    await env.documents.apply("m", [named(plan("first.pdf", "first", 1))])
    taken = [await env.documents.apply("m", [named(plan("b.pdf", f"b{n}", n))]) for n in range(1, 30)]
    assert [len(applied.taken) for applied in taken] == [1, *[0] * 28]  # it is logged once
    assert await env.rows("SELECT state, reason FROM transfer ORDER BY id") == [
        ("waiting", None),
        ("held", "name_taken"),
    ]
    assert await env.column("SELECT count(*) FROM document") == [2]
    assert await env.column("SELECT mtime_ns FROM document WHERE id = 2") == [29]
    assert await env.column("SELECT count(*) FROM receipt") == [0]
    await env.documents.mark_gone("m", [b"first.pdf"])
    assert await env.column("SELECT ctime_ns FROM document WHERE id = 2") == [-1]  # the next scan plans it
    assert (await env.documents.apply("m", [named(plan("b.pdf", "b29", 29))])).queued == 1
