"""Gates that close, probe and open again; batches; companies that hang; files that change on the way."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import Counter
from typing import Any

import anyio
import pytest

from docferry.model import Gate, Reason, Receipt, State
from docferry.remotes.codat import Codat
from docferry.simulator import Fault
from ground import COMPANY, CONNECTION
from work.conftest import OTHER, Harbour, at_rest, names_of, once

pytestmark = pytest.mark.anyio

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"status": 401}, "codat", "key"),
    ({"status": 402}, "codat", "account"),
    ({"status": 403}, f"codat/{COMPANY}", "company"),
    ({"status": 404, "code": "Connection was not found"}, f"codat/{COMPANY}/{CONNECTION}", "connection"),
    ({"status": 404, "code": "Company was not found"}, f"codat/{COMPANY}", "company"),
    ({"status": 429, "headers": {"Retry-After": "1"}}, "codat", "rate"),
]


@pytest.mark.parametrize(("params", "key", "reason"), REFUSALS, ids=lambda value: str(value)[:20])
async def test_a_refusal_closes_its_gate_and_holds_no_document(
    harbour: Harbour, params: dict[str, Any], key: str, reason: str
) -> None:
    """At most what was in flight is refused; then one at a time probes, and when it works all go."""
    harbour.ground.settings["workers"] = "4"
    harbour.lay(harbour.ground.upload("bank"), *names_of(30))
    harbour.strike(Fault("status", "codat.upload", params=params))
    async with harbour.house() as house:

        async def refused_and_probed() -> None:
            counts = await harbour.carried(house, lambda _: harbour.requests("codat.upload") >= 6)
            assert counts["held"] == 0
            gates = await house.gates.all()
            assert gates.keys() == {key}
            assert gates[key].reason == reason or (reason == "company" and gates[key].reason == "connection")

        await refused_and_probed()
    probes = [seen.at_first_byte for seen in harbour.simulator.log][4:]
    ends = [seen.at for seen in harbour.simulator.log][4:]
    assert all(begun >= ended for begun, ended in zip(probes[1:], ends, strict=False)), "two probes at once"
    harbour.strike()
    counts = await harbour.ferry()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 30}
    async with harbour.house() as house:
        assert await house.gates.all() == {}


async def test_a_gate_survives_a_restart_and_is_not_asked_through(harbour: Harbour) -> None:
    harbour.lay(harbour.ground.upload("bank"), "a.pdf")
    harbour.strike(Fault("too_many", "codat.upload", params={"seconds": 3600}))
    async with harbour.house() as house:
        await harbour.carried(house, lambda counts: harbour.requests("codat.upload") == 1 and counts["waiting"] == 1)
    async with harbour.house() as house, anyio.create_task_group() as group:
        await group.start(house.runner.run)
        with anyio.move_on_after(0.3):  # an idle runner would have asked long ago
            await anyio.sleep_forever()
        house.runner.stop()
    assert harbour.requests("codat.upload") == 1


async def test_a_signer_that_is_wrong_is_asked_less_and_less(harbour: Harbour) -> None:
    """N18: Wootiv has one lane, of its own name: failures of both are counted, each for itself."""
    harbour.lay(harbour.ground.upload("scans", "wootiv"), "a.pdf")
    harbour.strike(Fault("status", "s3.put", params={"status": 403, "code": "SignatureDoesNotMatch"}))
    async with harbour.house() as house:
        await harbour.carried(house, lambda counts: harbour.requests("s3.put") >= 8 and counts["waiting"] == 1)
        assert house.keeper.tally.strikes["wootiv"] >= 8
    times = [seen.at for seen in harbour.simulator.log if seen.route == "s3.put"]
    assert times[7] - times[6] > 0.15, "after seven of them a pause is at least about half of `max`"


async def test_what_starts_while_others_are_handed_back_is_left_alone(harbour: Harbour) -> None:
    """The disk is slow; a document of the other remote goes on its way, and then that remote's gate closes too."""
    harbour.lay(harbour.ground.upload("bank"), "a.pdf")
    harbour.lay(harbour.ground.upload("scans", "wootiv"), "b.pdf")
    async with harbour.house() as house:
        runner, free = house.runner, threading.Event()
        hands = runner._hands
        await at_rest(harbour, house, 2)
        await runner._fill()
        (other,) = (load for load in hands.ready if load.remote == "wootiv")
        until = house.clock.now() + 3600
        await house.keeper.close(Gate("codat", Reason.RATE, "", until, 1, 0.0))
        async with anyio.create_task_group() as group:
            group.start_soon(house.database.write, lambda _: free.wait())
            await anyio.wait_all_tasks_blocked()
            group.start_soon(runner._give_back)
            await anyio.wait_all_tasks_blocked()
            assert list(hands.ready) == [other]
            hands.start(other)
            group.start_soon(house.keeper.close, Gate("wootiv", Reason.RATE, "", until, 1, 0.0))
            await anyio.wait_all_tasks_blocked()
            free.set()
        await runner.carrier.hand_back(other)
        hands.end(other)
        assert hands.are_empty


async def test_what_worked_does_not_open_a_gate_that_closed_meanwhile(harbour: Harbour) -> None:
    """N8: an upload that began before the pause was asked for says nothing about it."""
    harbour.ground.settings["workers"] = "3"
    harbour.lay(harbour.ground.upload("bank"), *names_of(12))
    harbour.strike(
        Fault("slow_read", "codat.upload", first=2, params={"rate": 1500}),
        Fault("too_many", "codat.upload", nth=3, params={"seconds": 3600}),
    )
    async with harbour.house() as house:
        await harbour.carried(house, lambda counts: counts.get("sent", 0) == 2)
        assert (await house.gates.all()).keys() == {"codat"}
    assert harbour.requests("codat.upload") == 3


async def test_the_quota_keeps_a_reserve_for_doubts(harbour: Harbour) -> None:
    harbour.simulator.switches.daily_quota = 20
    harbour.ground.codat["quota_reserve"] = '"50%"'
    harbour.ground.settings["workers"] = "1"
    harbour.lay(harbour.ground.upload("bank"), *names_of(30))
    harbour.strike(Fault("lost_answer", "codat.upload", nth=3))
    async with harbour.house() as house:

        def spent(counts: dict[str, int]) -> bool:
            open_still = counts["doubtful"] + counts["asking"]  # counted a moment before the runner is looked at
            return "codat" in house.keeper.closed and not open_still and not house.runner.is_busy

        counts = await harbour.carried(house, spent)
        assert counts["held"] == counts["asking"] == 0
        gate = (await house.gates.all())["codat"]
    assert (gate.reason, gate.lets_doubts_pass) == ("quota", True)
    assert harbour.requests("codat.upload") <= 10


# -- one does not stop another --


@pytest.mark.parametrize("by", ["gate", "stop"])
async def test_who_waits_for_the_minute_goes_through_nothing_that_closes(harbour: Harbour, by: str) -> None:
    harbour.ground.codat["requests_per_minute"] = "3"
    harbour.lay(harbour.ground.upload("bank"), *names_of(20))
    if by == "gate":
        harbour.strike(Fault("too_many", "codat.upload", nth=3, params={"seconds": 3600}))
    async with harbour.house() as house:
        began = time.monotonic()

        def closed(_: dict[str, int]) -> bool:
            if by == "gate":
                return bool(house.keeper.closed) and not house.runner.is_busy
            return house.keeper.tally.uploaded == 3

        await harbour.carried(house, closed)
        assert time.monotonic() - began < 15  # not a minute
        counts = await harbour.states(house)
    assert harbour.requests("codat.upload") == 3
    assert (counts["sent"], counts["waiting"]) == ((2, 18) if by == "gate" else (3, 17))


async def test_a_company_that_hangs_does_not_stop_another(harbour: Harbour) -> None:
    """The hanging one comes first and has more documents than there are workers, twice over."""
    harbour.ground.codat["timeout"] = '"20s"'
    root = harbour.ground.root / "customers"
    harbour.ground.upload("customers", folder="customers/{company_id}/{connection_id}")
    harbour.lay(root / COMPANY / CONNECTION, *names_of(60, "hangs"))
    harbour.strike(Fault("stall", f"re:POST /companies/{re.escape(COMPANY)}", params={"seconds": 30}))
    async with harbour.house() as house:
        await harbour.carried_beside(house, lambda: harbour.requests("codat.upload") == 7)
        harbour.lay(root / OTHER / CONNECTION, *names_of(20, "works"))
        await house.lookout.round()
        began = time.monotonic()
        await harbour.carried_beside(house, lambda: sum(harbour.at_codat(OTHER).values()) == 20)
        assert time.monotonic() - began < 8


async def test_a_bad_document_does_not_hold_up_others(harbour: Harbour) -> None:
    harbour.lay(harbour.ground.upload("bank"), *names_of(10))
    harbour.strike(Fault("status", "codat.upload", nth=4, params={"status": 400}))
    counts = await harbour.ferry()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 9, State.HELD: 1}


# -- batches --


@pytest.mark.parametrize("only_first", [False, True], ids=["takes-batches", "keeps-only-the-first"])
async def test_the_first_batch_is_proved_by_the_list(harbour: Harbour, only_first: bool) -> None:
    harbour.ground.codat["batch"] = "5"
    harbour.simulator.switches.keeps_only_first_of_batch = only_first
    names = names_of(23)
    folder = harbour.ground.upload("bank")
    harbour.lay(folder, *names)
    await harbour.ferry()
    assert harbour.at_codat() == once(*names)
    before = harbour.requests("codat.upload")
    harbour.lay(folder, *names_of(10, "later"))
    await harbour.ferry()
    assert harbour.at_codat() == once(*names, *names_of(10, "later"))
    used = harbour.requests("codat.upload") - before
    # Files come to rest one by one: two requests when all did at once, some more on a busy machine.
    assert used == 10 if only_first else used < 6


async def test_a_refused_batch_holds_only_the_one_to_blame(harbour: Harbour) -> None:
    """Codat's own limit is what refuses here: the rules are lifted so that a wrong document gets that far."""
    harbour.ground.codat["batch"] = "4"
    folder = harbour.ground.upload("bank")
    harbour.lay(folder, *names_of(8))
    await harbour.ferry()
    harbour.lay(folder, *names_of(4, "later"))
    harbour.strike(Fault("status", "codat.upload", first=2, params={"status": 400}))
    counts = await harbour.ferry()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 11, State.HELD: 1}
    assert sum(harbour.at_codat().values()) == 11


@pytest.mark.parametrize("kind", ["lost_answer", "reset_after", "reset_inside", "html_502"])
async def test_a_trusted_batch_that_breaks_arrives_once(harbour: Harbour, kind: str) -> None:
    harbour.ground.codat["batch"] = "4"
    harbour.simulator.switches.idempotency = False
    folder = harbour.ground.upload("bank")
    harbour.lay(folder, *names_of(8))
    await harbour.ferry()
    harbour.lay(folder, *names_of(8, "later"))
    harbour.strike(Fault(kind, "codat.upload", first=2))
    await harbour.ferry()
    assert harbour.at_codat() == once(*names_of(8), *names_of(8, "later"))


# -- files --


async def test_a_file_that_changes_while_it_goes_out_is_not_stored_torn(harbour: Harbour) -> None:
    folder = harbour.ground.upload("bank")
    old, new = b"old" * 1_000_000, b"new" * 1_000_000
    harbour.lay(folder, "a.pdf", content=lambda _: old)
    harbour.strike(Fault("slow_read", "codat.upload", first=1, params={"rate": 2_000_000}))
    async with harbour.house() as house:
        await harbour.carried_beside(house, lambda: harbour.requests("codat.upload") == 1)
        (folder / "a.pdf").write_bytes(new)
        await harbour.carried(house, lambda _: bool(harbour.simulator.stored))
    assert [s.content == new for s in harbour.simulator.stored] == [True]


@pytest.mark.parametrize("to", ["codat", "wootiv"])
async def test_a_file_that_goes_away_before_it_is_sent_is_gone(harbour: Harbour, to: str) -> None:
    folder = harbour.ground.upload("bank", to)
    harbour.lay(folder, "a.pdf", "b.pdf")
    async with harbour.house() as house:
        with anyio.fail_after(10):
            while (await harbour.states(house)).get("waiting") != 2:
                await house.lookout.serve_hints()
                await anyio.sleep(0.01)
        (folder / "a.pdf").unlink()
        counts = await harbour.carried(house)
        assert [row.state for row in await house.reports.by_path("bank", b"a.pdf")] == ["gone"]
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 1}


async def test_what_fails_for_too_long_is_given_up_and_can_be_retried(harbour: Harbour) -> None:
    harbour.lay(harbour.ground.upload("bank"), "a.pdf")
    harbour.strike(Fault("reset_before", "codat.upload"))
    async with harbour.house() as house:
        house.keeper._give_up_after = 0.5
        counts = await harbour.carried(house)
        assert counts["held"] == 1
        (row,) = await house.reports.by_path("bank", b"a.pdf")
        assert (row.reason, row.attempts > 1) == ("gave_up", True)
        assert row.detail is not None
        assert row.detail.endswith("docferry retry`")
        harbour.strike()
        house.keeper._give_up_after = 60.0
        assert await house.transfers.retry(ids=[row.id]) == 1
        await house.gates.open_all()
    counts = await harbour.ferry()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 1}
    assert harbour.at_codat() == once("a.pdf")


async def test_after_the_upload_a_file_is_archived_or_deleted(harbour: Harbour) -> None:
    archive = harbour.ground.root / "archive"
    kept = harbour.ground.upload("kept", after_upload='"archive"', archive_folder=f'"{archive}"')
    dropped = harbour.ground.upload("dropped", "wootiv", after_upload='"delete"')
    harbour.lay(kept, "x/a.pdf")
    harbour.lay(dropped, "b.pdf")
    await harbour.ferry(lambda _: not (kept / "x/a.pdf").exists() and not (dropped / "b.pdf").exists())
    assert (archive / "x/a.pdf").read_bytes() == b"x/a.pdf"
    assert len(harbour.simulator.stored) == 2
    await harbour.ferry()
    assert len(harbour.simulator.stored) == 2


async def test_copies_go_once_and_namesakes_as_the_mapping_says(harbour: Harbour) -> None:
    by_content = harbour.ground.upload("by-content")
    harbour.lay(by_content, "a.pdf", "x/copy.pdf", "y/copy.pdf", content=lambda _: b"the same")
    by_name = harbour.ground.upload("by-name", "wootiv", dedupe='"name"', object_name='"{name}"')
    harbour.lay(by_name, "a.pdf", content=lambda _: b"one")
    await harbour.ferry()
    harbour.lay(by_name, "x/a.pdf", content=lambda _: b"two")
    harbour.lay(by_name, "b.pdf", content=lambda _: b"one")
    await harbour.ferry()
    assert sum(harbour.at_codat().values()) == 1
    assert Counter(key for _, key in harbour.simulator.objects) == Counter(["a.pdf", "b.pdf"])


async def test_a_renamed_mapping_takes_its_documents_along(harbour: Harbour) -> None:
    folder = harbour.ground.upload("old-name")
    harbour.lay(folder, *names_of(3))
    harbour.strike(Fault("status", "codat.upload", params={"status": 503}))
    await harbour.ferry(
        lambda counts: counts["doubtful"] + counts["waiting"] > 0 and harbour.requests("codat.upload") > 0
    )
    harbour.strike()
    harbour.ground.sections = [section.replace('"old-name"', '"new-name"') for section in harbour.ground.sections]
    counts = await harbour.ferry()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 3}
    assert harbour.at_codat() == once(*names_of(3))


async def test_a_stop_hands_everything_back(harbour: Harbour) -> None:
    """What was on the wire is in doubt, what was not waits, and nothing is in anybody's hands."""
    harbour.ground.codat["timeout"] = '"20s"'
    harbour.ground.settings["workers"] = "3"
    harbour.lay(harbour.ground.upload("bank"), *names_of(20))
    harbour.strike(Fault("stall", "codat.upload", params={"seconds": 30}))
    async with harbour.house() as house:
        async with anyio.create_task_group() as group:
            await group.start(house.runner.run)
            with anyio.fail_after(10):
                while harbour.requests("codat.upload") < 3:
                    await house.lookout.serve_hints()
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        counts = await harbour.states(house)
    assert {state: count for state, count in counts.items() if count} == {"doubtful": 3, "waiting": 17}


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["whole", "in_blocks"])
async def test_a_stop_does_not_take_a_receipt_along(
    harbour: Harbour, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It comes in the moment in which the remote's answer is here: what was taken is written down as sent."""
    harbour.lay(harbour.ground.upload("bank"), "a.pdf", content=lambda _: bytes(size))
    send = Codat.send
    async with harbour.house() as house:
        async with anyio.create_task_group() as group:

            async def sent_and_stopped(self: Codat, *parcels: Any) -> Receipt:
                receipt = await send(self, *parcels)
                group.cancel_scope.cancel()
                return receipt

            monkeypatch.setattr(Codat, "send", sent_and_stopped)
            await house.runner.run()
        counts = await harbour.states(house)
    assert {state: count for state, count in counts.items() if count} == {"sent": 1}


async def test_what_another_command_queues_is_found_whatever_file_times_say(
    harbour: Harbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is seen only after its log was synced: a look in between finds the file as it will be afterwards."""
    monkeypatch.setattr("docferry.work.runner.POLL", 0.05)
    monkeypatch.setattr("docferry.work.runner.LOOK", 0.5, raising=False)
    harbour.lay(harbour.ground.upload("bank"), "a.pdf")
    async with harbour.house() as house:
        path, log = house.database.path, house.database.path.with_name("docferry.db-wal")

        def update(state: str) -> None:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("UPDATE transfer SET state = ?, next_attempt = 0", (state,))
            os.truncate(log, 1_000_000)
            os.utime(log, (1_700_000_000, 1_700_000_000))
            other.close()

        await anyio.to_thread.run_sync(update, "held")
        async with anyio.create_task_group() as group:
            await group.start(house.runner.run)
            await anyio.sleep(0.2)  # it has looked at a queue in which nothing waits
            await anyio.to_thread.run_sync(update, "waiting")
            with anyio.fail_after(10):
                while not harbour.at_codat():  # noqa: ASYNC110 - the far shore tells nobody
                    await anyio.sleep(0.02)
            house.runner.stop()
    assert harbour.at_codat() == once("a.pdf")


async def test_what_is_claimed_while_a_stop_is_asked_for_is_not_begun(harbour: Harbour) -> None:
    harbour.lay(harbour.ground.upload("bank"), *names_of(3))
    async with harbour.house() as house:
        other = sqlite3.connect(house.database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            await group.start(house.runner.run)
            await anyio.sleep(0.2)  # it has come as far as the claim, which waits for the lock
            house.runner.stop()
            other.execute("ROLLBACK")
        other.close()
        counts = await harbour.states(house)
    assert {state: count for state, count in counts.items() if count} == {"waiting": 3}
    assert harbour.requests("codat.upload") == 0
