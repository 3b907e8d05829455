"""Test doubts: when they arise, how lookups decide them, and which stay undecidable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

import anyio
import pytest

from app_env import COMPANY, CONNECTION
from docferry.app.application import Application
from docferry.model import State
from docferry.remotes.protocol import SendPermit
from docferry.simulator import Fault
from docferry.store.claims import Pick
from docferry.store.connection import Transaction
from docferry.store.statement import Sql
from docferry.upload import batch_trials, resolver
from docferry.upload.batch import Batch
from ready_senders import in_process
from unreachable_hosts import full_backlog, silent_host, slow_lookup_host
from upload.conftest import UploadEnv, names_of, once, until_queued

pytestmark = pytest.mark.anyio

SECOND = CONNECTION.replace("2e9d2c44", "2e9d2c45")


def only(counts: dict[str, int]) -> dict[str, int]:
    """Return the states that have documents."""
    return {state: count for state, count in counts.items() if count}


# -- a stop --


@pytest.fixture(params=["a connection", "a handshake", pytest.param("a name", marks=in_process), "a proxy"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Yield settings with which no request reaches its first byte, because a parameter is missing."""
    with ExitStack() as stack:
        match request.param:
            case "a connection":
                url = {"BASE_URL": f"http://{stack.enter_context(full_backlog())}"}
            case "a handshake":
                url = {"BASE_URL": f"https://{stack.enter_context(silent_host())}"}
            case "a name":
                url = {"BASE_URL": f"http://{stack.enter_context(slow_lookup_host(monkeypatch))}"}
            case _:
                url = {"BASE_URL": "https://codat.test", "PROXY": f"http://{stack.enter_context(silent_host())}"}
        yield {f"DOCFERRY_CODAT__{key}": value for key, value in url.items()}


async def test_a_stop_before_the_first_byte_leaves_no_doubt(env: UploadEnv, nowhere: dict[str, str]) -> None:
    env.app_env.codat["timeout"] = '"20s"'
    env.environ = nowhere
    env.write_documents(env.app_env.upload("bank"), "a.pdf")
    async with env.app() as app:
        async with anyio.create_task_group() as group:
            await group.start(app.scheduler.run)
            with anyio.fail_after(60):
                while (await env.states(app))["sending"] != 1:
                    await app.scan_scheduler.serve_hints()
                    await anyio.sleep(0.01)  # polling interval
            await anyio.sleep(0.1)  # it is connecting: a stop at any other moment has the same result
            group.cancel_scope.cancel()
        assert only(await env.states(app)) == {"waiting": 1}
        (row,) = await app.reports.by_path("bank", b"a.pdf")
        assert row.detail == "docferry stopped before any of it was sent"
    env.environ = {}
    await env.run_daemon()
    assert env.at_codat() == once("a.pdf")
    assert env.requests("codat.list") == 0, "nothing was in doubt"


# -- proved absent --


async def lose(env: UploadEnv, names: Sequence[str]) -> None:
    """Lose these documents before they are stored: all are doubtful, and due for a lookup at once."""
    env.app_env.codat["list_lag"] = '"1h"'
    env.write_documents(env.app_env.upload("bank"), *names)
    env.inject(Fault("reset_after", "codat.upload", first=len(names)))
    await env.run_daemon(lambda counts: counts["doubtful"] == len(names))
    env.app_env.codat["list_lag"] = '"100ms"'
    async with env.app() as app:
        await due(app, [0.0] * len(names))


async def test_what_is_sent_again_keeps_to_the_number_of_workers(env: UploadEnv) -> None:
    env.app_env.settings["workers"] = "1"
    await lose(env, names_of(4))
    env.inject(Fault("slow_read", "codat.upload", params={"rate": 3000}))
    await env.run_daemon()
    uploads = sorted((seen.at_first_byte, seen.at) for seen in env.simulator.log if seen.route == "codat.upload")[4:]
    assert len(uploads) == 4
    assert all(following >= end for (_, end), (following, _) in pairwise(uploads))
    assert env.at_codat() == once(*names_of(4))


async def test_what_is_sent_again_stops_at_a_gate(env: UploadEnv) -> None:
    """One document probes; the others stay doubtful, and are looked up when the gate opens."""
    await lose(env, names_of(4))
    env.inject(Fault("too_many", "codat.upload", params={"seconds": 3600}))
    await env.run_daemon(lambda counts: only(counts) == {"doubtful": 3, "waiting": 1})
    assert env.requests("codat.upload") == 5
    env.inject()
    async with env.app() as app:
        await app.gates.open_all()
    assert only(await env.run_daemon()) == {"sent": 4}
    assert env.at_codat() == once(*names_of(4))


async def test_what_is_sent_again_stops_at_a_stop(env: UploadEnv) -> None:
    await lose(env, names_of(4))
    env.inject(Fault("slow_read", "codat.upload", params={"rate": 250}))
    await env.run_daemon(lambda _: env.requests("codat.upload") == 5)
    assert env.requests("codat.upload") == 5
    env.inject()
    assert only(await env.run_daemon()) == {"sent": 4}
    assert env.at_codat() == once(*names_of(4))


# -- undecidable --


def write_identical(env: UploadEnv) -> None:
    """Write one name and content for two connections of one company, which share list and ZIP."""
    env.simulator.options.idempotency = False
    env.app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, SECOND):
        folder = env.app_env.root / "customers" / COMPANY / connection
        folder.mkdir(parents=True)
        env.write_documents(folder, "a.pdf")


@pytest.mark.parametrize(("kind", "uploads"), [("reset_after", 4), ("lost_answer", 2)], ids=["none", "both"])
async def test_identical_files_of_two_connections_are_decided_if_none_or_both_are_there(
    env: UploadEnv, kind: str, uploads: int
) -> None:
    write_identical(env)
    env.inject(Fault(kind, "codat.upload", first=2))
    counts = await env.run_daemon()
    assert only(counts) == {State.SENT: 2}
    stored = Counter(stored.connection for stored in env.simulator.stored)
    assert stored == {CONNECTION: 1, SECOND: 1}
    assert env.requests("codat.upload") == uploads


async def hold_identical(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one copy arrive, whose connection is unknown."""
    monkeypatch.setattr(resolver, "UNSURE_AT_LEAST_S", 1.0)
    monkeypatch.setattr(resolver, "UNSURE_LAGS", 1)
    write_identical(env)
    env.inject(Fault("lost_answer", "codat.upload", nth=1), Fault("reset_after", "codat.upload", nth=2))
    assert only(await env.run_daemon()) == {State.HELD: 2}


async def test_one_copy_of_identical_files_of_two_connections_is_undecidable(
    env: UploadEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hold_identical(env, monkeypatch)
    assert env.requests("codat.upload") == 2, "neither was sent again"
    async with env.app() as app:
        for connection in (CONNECTION, SECOND):
            (row,) = await app.reports.by_path("customers", f"{COMPANY}/{connection}/a.pdf".encode())
            assert row.reason == "undecidable"
            assert "2 documents of this company may have brought them, perhaps to different conn" in (row.detail or "")


async def test_a_person_who_found_it_takes_the_file_away(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command marks a document as sent: the fix in its message works, and docferry remembers it."""
    await hold_identical(env, monkeypatch)
    place = env.app_env.root / "customers" / COMPANY / SECOND / "a.pdf"
    async with env.app() as app:
        (row,) = await app.reports.by_path("customers", f"{COMPANY}/{SECOND}/a.pdf".encode())
        assert "take the file out of the folder" in (row.detail or "")
    place.unlink()
    assert only(await env.run_daemon()) == {State.HELD: 1}
    env.write_documents(place.parent, "a.pdf")
    assert only(await env.run_daemon()) == {State.HELD: 2}
    assert env.requests("codat.upload") == 2, "the same bytes, put there again, are not sent unasked"


# -- batches on trial --


class Verdicts:
    """Records the decisions about first batches."""

    def __init__(self, app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[bool | None] = []
        self._tell = app.batch_trials.record
        monkeypatch.setattr(app.batch_trials, "record", self._hear)

    async def _hear(self, lane: str, whole: bool | None) -> None:
        self.told.append(whole)
        await self._tell(lane, whole)


async def due(app: Application, order: Iterable[float]) -> None:
    """Make the doubts due in `order`: seconds from now for each, by transfer."""
    waits = list(order)
    now = app.clock.now()

    def work(transaction: Transaction) -> None:
        rows = transaction.fetch_all(Sql("SELECT id FROM transfer WHERE state = 'doubtful' ORDER BY id"))
        for (number,), wait in zip(rows, waits, strict=True):
            transaction.execute(
                Sql("UPDATE transfer SET next_attempt = :due, last_sent = :sent WHERE id = :id"),
                {"due": now + wait, "sent": now - 60, "id": number},
            )

    await app.database.write(work)


@pytest.mark.parametrize("order", [[0, 0.4, 0.8], [0, 0, 0.5]], ids=["one by one", "the last alone"])
async def test_a_first_batch_is_proved_in_pieces_too(
    env: UploadEnv, order: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost response or a stop divides its doubts. The batch is proved when none of them is left."""
    env.app_env.codat |= {"batch": "3", "list_lag": '"2s"'}
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    async with env.app() as app:
        verdicts = Verdicts(app, monkeypatch)
        await until_queued(env, app, 3)
        await env.run_until(app, lambda: env.requests("codat.upload") == 1 and not app.scheduler.is_busy)
        await due(app, order)
        assert only(await env.run_uploads(app)) == {State.SENT: 3}
        assert verdicts.told == [True]
        assert env.requests("codat.list") == len(set(order))
        assert app.batch_trials.is_trusted(f"codat/{COMPANY}/{CONNECTION}")


@pytest.mark.parametrize("kind", ["reset_inside", "lost_answer"])
async def test_a_first_batch_that_proved_nothing_is_followed_by_another(
    env: UploadEnv, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.app_env.codat["batch"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    env.inject(Fault(kind, "codat.upload", first=1))
    async with env.app() as app:
        verdicts = Verdicts(app, monkeypatch)
        await until_queued(env, app, 3)
        await env.run_until(app, lambda: sum(env.at_codat().values()) == 3 and not app.scheduler.is_busy)
        assert verdicts.told == [None]
        before = env.requests("codat.upload")
        env.write_documents(env.app_env.root / "bank", *names_of(6, "later"))
        await app.scan_scheduler.round()
        await until_queued(env, app, 6)
        assert only(await env.run_uploads(app)) == {State.SENT: 9}
        assert verdicts.told == [None, True]
        assert env.requests("codat.upload") - before < 6, "together again, without a restart"


async def test_a_first_batch_that_was_handed_back_is_followed_by_another(env: UploadEnv) -> None:
    """Two connections of one company; the first request closes the remote while the other's first batch is ready."""
    env.app_env.codat["batch"] = "5"
    env.app_env.settings["workers"] = "1"
    env.simulator.options.idempotency = False
    env.app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, SECOND):
        folder = env.app_env.root / "customers" / COMPANY / connection
        folder.mkdir(parents=True)
        env.write_documents(folder, *names_of(40, connection[:2]))
    env.inject(Fault("too_many", "codat.upload", nth=1, params={"seconds": 1}))
    async with env.app() as app:
        await until_queued(env, app, 80)
        assert only(await env.run_uploads(app)) == {State.SENT: 80}
        assert app.batch_trials.is_trusted(f"codat/{COMPANY}/{SECOND}")


async def test_a_first_batch_that_did_not_go_proves_nothing_against_its_connection(env: UploadEnv) -> None:
    env.app_env.codat["batch"] = "3"
    env.write_documents(env.app_env.upload("bank"), *names_of(3))
    async with env.app() as app:
        await until_queued(env, app, 3)

        class Refused(SendPermit):
            async def acquire(self) -> bool:
                return False

        for _ in range(batch_trials.MAX_TRIALS + 1):
            (lane,) = await app.transfers.lanes()
            claimed = await app.transfers.claim([Pick(lane, 3)], room=3)
            (batch_size,) = await app.batch_trials.make_batches(claimed)
            batch = Batch(batch_size, await app.documents.places([each.id for each in batch_size]))
            await app.uploader.process(batch, Refused())
            assert only(await env.states(app)) == {"waiting": 3}
        assert env.requests("codat.upload") == 0
        assert only(await env.run_uploads(app)) == {State.SENT: 3}
        assert env.requests("codat.upload") == 1
