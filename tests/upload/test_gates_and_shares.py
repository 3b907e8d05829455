"""Test gates, batches, hanging companies, and stops during an upload."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from typing import Any

import anyio
import pytest

from app_env import COMPANY, CONNECTION
from docferry.model import Gate, Reason, Receipt, State
from docferry.remotes.codat.client import Codat
from docferry.simulator import Fault
from upload.conftest import OTHER, UploadEnv, names_of, once, until_queued

pytestmark = pytest.mark.anyio

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"status": 401}, "codat", "key"),
    ({"status": 402}, "codat", "account"),
    ({"status": 403}, f"codat/{COMPANY}", "company"),
    ({"status": 404, "code": "Connection was not found"}, f"codat/{COMPANY}/{CONNECTION}", "connection"),
    ({"status": 404, "code": "Company was not found"}, f"codat/{COMPANY}", "connection"),
    ({"status": 429, "headers": {"Retry-After": "1"}}, "codat", "rate"),
]


@pytest.mark.parametrize(("params", "key", "reason"), REFUSALS, ids=lambda value: str(value)[:20])
async def test_a_refusal_closes_its_gate_and_holds_no_document(
    env: UploadEnv, params: dict[str, Any], key: str, reason: str
) -> None:
    """At most the requests in flight are refused; then one at a time probes, until all are sent."""
    env.app_env.settings["workers"] = "4"
    env.write_documents(env.app_env.upload("bank"), *names_of(30))
    env.inject(Fault("status", "codat.upload", params=params))
    async with env.app() as app:

        async def refused_and_probed() -> None:
            counts = await env.run_uploads(app, lambda _: env.requests("codat.upload") >= 6)
            assert counts["held"] == 0
            gates = await app.gates.all()
            assert gates.keys() == {key}
            assert gates[key].reason == reason

        await refused_and_probed()
    probes = [seen.at_first_byte for seen in env.simulator.log][4:]
    ends = [seen.at for seen in env.simulator.log][4:]
    assert all(begun >= ended for begun, ended in zip(probes[1:], ends, strict=False)), "two probes at once"
    env.inject()
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 30}
    async with env.app() as app:
        assert await app.gates.all() == {}


async def test_a_gate_survives_a_restart_and_is_not_asked_through(env: UploadEnv) -> None:
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.inject(Fault("too_many", "codat.upload", params={"seconds": 3600}))
    async with env.app() as app:
        await env.run_uploads(app, lambda counts: env.requests("codat.upload") == 1 and counts["waiting"] == 1)
    async with env.app() as app, anyio.create_task_group() as group:
        await group.start(app.scheduler.run)
        with anyio.move_on_after(0.3):  # an idle runner would have asked long ago
            await anyio.sleep_forever()
        app.scheduler.stop()
    assert env.requests("codat.upload") == 1


async def test_a_signer_that_is_wrong_is_asked_less_and_less(env: UploadEnv) -> None:
    """N18: Wootiv has one lane, of its own name: failures of both are counted, each for itself."""
    env.write_documents(env.app_env.upload("scans", "wootiv"), "a.pdf")
    env.inject(Fault("status", "s3.put", params={"status": 403, "code": "SignatureDoesNotMatch"}))
    async with env.app() as app:
        await env.run_uploads(app, lambda counts: env.requests("s3.put") >= 8 and counts["waiting"] == 1)
        assert app.gate_manager.is_failing("wootiv")
    times = [seen.at for seen in env.simulator.log if seen.route == "s3.put"]
    assert times[7] - times[6] > 0.15, "after seven of them a pause is at least about half of `max`"


async def test_what_starts_while_others_are_handed_back_is_left_alone(env: UploadEnv) -> None:
    """While the disk is slow, a document of the other remote starts, and then that remote's gate closes, too."""
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    env.write_documents(env.app_env.upload("scans", "wootiv"), "b.pdf")
    async with env.app() as app:
        scheduler, free = app.scheduler, threading.Event()
        slots = scheduler._slots  # the race is between two steps of the scheduler, which nothing shows outside
        await until_queued(env, app, 2)
        await scheduler.claim()
        (other,) = (batch for batch in slots.ready if batch.remote == "wootiv")
        until = app.clock.now() + 3600
        await app.gate_manager.close(Gate("codat", Reason.RATE, "", until, 1, 0.0))
        async with anyio.create_task_group() as group:
            group.start_soon(app.database.write, lambda _: free.wait())
            await anyio.wait_all_tasks_blocked()
            group.start_soon(scheduler.release_blocked)
            await anyio.wait_all_tasks_blocked()
            assert list(slots.ready) == [other]
            slots.start(other)
            group.start_soon(app.gate_manager.close, Gate("wootiv", Reason.RATE, "", until, 1, 0.0))
            await anyio.wait_all_tasks_blocked()
            free.set()
        await app.uploader.release(other)
        slots.end(other)
        assert slots.is_empty


async def test_what_worked_does_not_open_a_gate_that_closed_meanwhile(env: UploadEnv) -> None:
    """N8: an upload that began before the requested pause does not end it."""
    env.app_env.settings["workers"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(12))
    env.inject(
        Fault("slow_read", "codat.upload", first=2, params={"rate": 500}),
        Fault("too_many", "codat.upload", nth=3, params={"seconds": 3600}),
    )
    async with env.app() as app:
        await env.run_uploads(app, lambda counts: counts.get("sent", 0) == 2)
        assert (await app.gates.all()).keys() == {"codat"}
    assert env.requests("codat.upload") == 3


async def test_the_quota_keeps_a_reserve_for_doubts(env: UploadEnv) -> None:
    env.simulator.options.daily_quota = 20
    env.app_env.codat["quota_reserve"] = '"50%"'
    env.app_env.settings["workers"] = "1"
    env.write_documents(env.app_env.upload("bank"), *names_of(30))
    env.inject(Fault("lost_answer", "codat.upload", nth=3))
    async with env.app() as app:

        def spent(counts: dict[str, int]) -> bool:
            open_still = counts["doubtful"] + counts["asking"]  # counted a moment before the runner is looked at
            return "codat" in app.gate_manager.closed and not open_still and not app.scheduler.is_busy

        counts = await env.run_uploads(app, spent)
        assert counts["held"] == counts["asking"] == 0
        gate = (await app.gates.all())["codat"]
    assert (gate.reason, gate.lets_doubts_pass) == ("quota", True)
    assert env.requests("codat.upload") <= 10


# -- one does not stop another --


@pytest.mark.parametrize("by", ["gate", "stop"])
async def test_who_waits_for_the_minute_goes_through_nothing_that_closes(env: UploadEnv, by: str) -> None:
    env.app_env.codat["requests_per_minute"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(20))
    if by == "gate":
        env.inject(Fault("too_many", "codat.upload", nth=3, params={"seconds": 3600}))
    async with env.app() as app:
        began = time.monotonic()

        def closed(_: dict[str, int]) -> bool:
            if by == "gate":
                return bool(app.gate_manager.closed) and not app.scheduler.is_busy
            return app.uploader.counters.uploaded == 3

        await env.run_uploads(app, closed)
        assert time.monotonic() - began < 45  # not a minute
        counts = await env.states(app)
    assert env.requests("codat.upload") == 3
    assert (counts["sent"], counts["waiting"]) == ((2, 18) if by == "gate" else (3, 17))


async def test_a_company_that_hangs_does_not_stop_another(env: UploadEnv) -> None:
    """The hanging company comes first and has twice as many documents as there are workers."""
    env.app_env.codat["timeout"] = '"20s"'
    root = env.app_env.root / "customers"
    env.app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    env.write_documents(root / COMPANY / CONNECTION, *names_of(60, "hangs"))
    env.inject(Fault("stall", f"re:POST /companies/{re.escape(COMPANY)}", params={"seconds": 30}))
    async with env.app() as app:
        await env.run_until(app, lambda: env.requests("codat.upload") == 7)
        env.write_documents(root / OTHER / CONNECTION, *names_of(20, "works"))
        await app.scan_scheduler.round()
        began = time.monotonic()
        await env.run_until(app, lambda: sum(env.at_codat(OTHER).values()) == 20)
        assert time.monotonic() - began < 15  # the hanging ones take longer


async def test_a_bad_document_does_not_hold_up_others(env: UploadEnv) -> None:
    env.write_documents(env.app_env.upload("bank"), *names_of(10))
    env.inject(Fault("status", "codat.upload", nth=4, params={"status": 400}))
    counts = await env.run_daemon()
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 9, State.HELD: 1}


# -- batches --


@pytest.mark.parametrize("only_first", [False, True], ids=["takes-batches", "keeps-only-the-first"])
async def test_the_first_batch_is_proved_by_the_list(env: UploadEnv, only_first: bool) -> None:
    env.app_env.codat["batch"] = "5"
    env.simulator.options.keeps_only_first_of_batch = only_first
    names = names_of(23)
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *names)
    await env.run_daemon()
    assert env.at_codat() == once(*names)
    before = env.requests("codat.upload")
    env.write_documents(folder, *names_of(10, "later"))
    async with env.app() as app:
        await until_queued(env, app, 10)
        await env.run_uploads(app)
    assert env.at_codat() == once(*names, *names_of(10, "later"))
    assert env.requests("codat.upload") - before == (10 if only_first else 2)


async def test_a_refused_batch_holds_only_the_one_to_blame(env: UploadEnv) -> None:
    """Codat's own limit refuses here: docferry's rules are lifted so that a wrong document is sent."""
    env.app_env.codat["batch"] = "4"
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *names_of(8))
    await env.run_daemon()
    env.write_documents(folder, *names_of(4, "later"))
    env.inject(Fault("status", "codat.upload", first=2, params={"status": 400}))
    async with env.app() as app:
        await until_queued(env, app, 4)
        counts = await env.run_uploads(app)
    assert counts == {**dict.fromkeys(counts, 0), State.SENT: 11, State.HELD: 1}
    assert sum(env.at_codat().values()) == 11


@pytest.mark.parametrize("kind", ["lost_answer", "reset_after", "reset_inside", "html_502"])
async def test_a_trusted_batch_that_breaks_arrives_once(env: UploadEnv, kind: str) -> None:
    env.app_env.codat["batch"] = "4"
    env.simulator.options.idempotency = False
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *names_of(8))
    await env.run_daemon()
    env.write_documents(folder, *names_of(8, "later"))
    env.inject(Fault(kind, "codat.upload", first=2))
    await env.run_daemon()
    assert env.at_codat() == once(*names_of(8), *names_of(8, "later"))


# -- files --


async def test_a_stop_hands_everything_back(env: UploadEnv) -> None:
    """Documents in requests are doubtful, others wait, and no lease remains."""
    env.app_env.codat["timeout"] = '"20s"'
    env.app_env.settings["workers"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(20))
    env.inject(Fault("stall", "codat.upload", params={"seconds": 30}))
    async with env.app() as app:
        await until_queued(env, app, 20)
        await env.run_until(app, lambda: env.requests("codat.upload") == 3)
        counts = await env.states(app)
    assert {state: count for state, count in counts.items() if count} == {"doubtful": 3, "waiting": 17}


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["whole", "in_blocks"])
async def test_a_stop_does_not_take_a_receipt_along(env: UploadEnv, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The stop comes together with the response: the accepted document is recorded as sent."""
    env.write_documents(env.app_env.upload("bank"), "a.pdf", content=lambda _: bytes(size))
    send = Codat.send
    async with env.app() as app:
        async with anyio.create_task_group() as group:

            async def sent_and_stopped(self: Codat, *items: Any) -> Receipt:
                receipt = await send(self, *items)
                group.cancel_scope.cancel()
                return receipt

            monkeypatch.setattr(Codat, "send", sent_and_stopped)
            await app.scheduler.run()
        counts = await env.states(app)
    assert {state: count for state, count in counts.items() if count} == {"sent": 1}


async def test_what_another_command_queues_is_found_whatever_file_times_say(
    env: UploadEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit becomes visible after its log was synced, so an earlier read may get the later file time."""
    monkeypatch.setattr("docferry.upload.scheduler.BUSY_POLL_S", 0.05)
    monkeypatch.setattr("docferry.upload.scheduler.FORCED_POLL_S", 0.5)
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    async with env.app() as app:
        path, log = (env.app_env.state / name for name in ("docferry.db", "docferry.db-wal"))

        def update(state: str) -> None:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("UPDATE transfer SET state = ?, next_attempt = 0", (state,))
            os.truncate(log, 1_000_000)
            os.utime(log, (1_700_000_000, 1_700_000_000))
            other.close()

        await anyio.to_thread.run_sync(update, "held")
        async with anyio.create_task_group() as group:
            await group.start(app.scheduler.run)
            await anyio.sleep(0.2)  # it has looked at a queue in which nothing waits
            await anyio.to_thread.run_sync(update, "waiting")
            with anyio.fail_after(60):
                while not env.at_codat():  # noqa: ASYNC110 - the simulator has no event for it
                    await anyio.sleep(0.02)  # polling interval
            app.scheduler.stop()
    assert env.at_codat() == once("a.pdf")


async def test_what_is_claimed_while_a_stop_is_asked_for_is_not_begun(env: UploadEnv) -> None:
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    async with env.app() as app:
        await until_queued(env, app, 3)
        other = sqlite3.connect(env.app_env.state / "docferry.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            await group.start(app.scheduler.run)
            await anyio.sleep(0.2)  # it has come as far as the claim, which waits for the lock
            app.scheduler.stop()
            other.execute("ROLLBACK")
        other.close()
        counts = await env.states(app)
    assert {state: count for state, count in counts.items() if count} == {"waiting": 3}
    assert env.requests("codat.upload") == 0
