"""Doubts: what is none, what is asked and decided, and what nobody can decide; batches on trial are doubts too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import anyio
import pytest
from sqlalchemy import text

from docferry.app.house import House
from docferry.model import State
from docferry.simulator import Fault
from docferry.store.transfers import Pick
from docferry.work import ask
from docferry.work.load import Load
from ground import COMPANY, CONNECTION
from nowhere import full_house, mute, nameless
from work.conftest import Harbour, at_rest, names_of, once

pytestmark = pytest.mark.anyio

SECOND = CONNECTION.replace("2e9d2c44", "2e9d2c45")


def only(counts: dict[str, int]) -> dict[str, int]:
    """The states that there are."""
    return {state: count for state, count in counts.items() if count}


# -- a stop --


@pytest.fixture(params=["a connection", "a handshake", "a name", "a proxy"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Settings with which a request never gets as far as its first byte, for want of …"""
    with ExitStack() as stack:
        match request.param:
            case "a connection":
                url = {"BASE_URL": f"http://{stack.enter_context(full_house())}"}
            case "a handshake":
                url = {"BASE_URL": f"https://{stack.enter_context(mute())}"}
            case "a name":
                url = {"BASE_URL": f"http://{stack.enter_context(nameless(monkeypatch))}"}
            case _:
                url = {"BASE_URL": "https://codat.test", "PROXY": f"http://{stack.enter_context(mute())}"}
        yield {f"DOCFERRY_CODAT__{key}": value for key, value in url.items()}


async def test_a_stop_before_the_first_byte_leaves_no_doubt(harbour: Harbour, nowhere: dict[str, str]) -> None:
    harbour.ground.codat["timeout"] = '"20s"'
    harbour.environ = nowhere
    harbour.lay(harbour.ground.upload("bank"), "a.pdf")
    async with harbour.house() as house:
        async with anyio.create_task_group() as group:
            await group.start(house.runner.run)
            with anyio.fail_after(10):
                while (await harbour.states(house))["sending"] != 1:
                    await house.lookout.serve_hints()
                    await anyio.sleep(0.01)
            await anyio.sleep(0.1)  # it is on its way to the wire
            group.cancel_scope.cancel()
        assert only(await harbour.states(house)) == {"waiting": 1}
        (row,) = await house.reports.by_path("bank", b"a.pdf")
        assert row.detail == "docferry stopped before any of it was sent"
    harbour.environ = {}
    await harbour.ferry()
    assert harbour.at_codat() == once("a.pdf")
    assert harbour.requests("codat.list") == 0, "nothing was in doubt"


# -- what is surely absent --


async def lose(harbour: Harbour, names: Sequence[str]) -> None:
    """These documents get lost on their way, unstored, and are in doubt."""
    harbour.ground.codat["list_lag"] = '"1s"'
    harbour.lay(harbour.ground.upload("bank"), *names)
    harbour.strike(Fault("reset_after", "codat.upload", first=len(names)))
    await harbour.ferry(lambda counts: counts["doubtful"] == len(names))


async def test_what_is_sent_again_keeps_to_the_number_of_workers(harbour: Harbour) -> None:
    harbour.ground.settings["workers"] = "1"
    await lose(harbour, names_of(4))
    harbour.strike(Fault("slow_read", "codat.upload", params={"rate": 3000}))
    await harbour.ferry()
    uploads = sorted((seen.at_first_byte, seen.at) for seen in harbour.simulator.log if seen.route == "codat.upload")[
        4:
    ]
    assert len(uploads) == 4
    assert all(following >= end for (_, end), (following, _) in pairwise(uploads))
    assert harbour.at_codat() == once(*names_of(4))


async def test_what_is_sent_again_stops_at_a_gate(harbour: Harbour) -> None:
    """One probes; the others stay in doubt, and are asked about when it opens."""
    await lose(harbour, names_of(4))
    harbour.strike(Fault("too_many", "codat.upload", params={"seconds": 3600}))
    await harbour.ferry(lambda counts: only(counts) == {"doubtful": 3, "waiting": 1})
    assert harbour.requests("codat.upload") == 5
    harbour.strike()
    async with harbour.house() as house:
        await house.gates.open_all()
    assert only(await harbour.ferry()) == {"sent": 4}
    assert harbour.at_codat() == once(*names_of(4))


async def test_what_is_sent_again_stops_at_a_stop(harbour: Harbour) -> None:
    await lose(harbour, names_of(4))
    harbour.ground.codat |= {"list_lag": '"100ms"', "timeout": '"10s"'}
    await anyio.sleep(1.1)  # until all of them are due: then they are asked about together
    harbour.strike(Fault("slow_read", "codat.upload", params={"rate": 1000}))
    await harbour.ferry(lambda _: harbour.requests("codat.upload") == 5)
    assert harbour.requests("codat.upload") == 5
    harbour.strike()
    assert only(await harbour.ferry()) == {"sent": 4}
    assert harbour.at_codat() == once(*names_of(4))


# -- what nobody can tell apart --


def lay_twins(harbour: Harbour) -> None:
    """The same name and bytes for two connections of one company, whose list and ZIP are the company's."""
    harbour.simulator.switches.idempotency = False
    harbour.ground.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, SECOND):
        folder = harbour.ground.root / "customers" / COMPANY / connection
        folder.mkdir(parents=True)
        harbour.lay(folder, "a.pdf")


@pytest.mark.parametrize(("kind", "uploads"), [("reset_after", 4), ("lost_answer", 2)], ids=["none", "both"])
async def test_twins_of_two_connections_are_decided_when_none_or_both_are_there(
    harbour: Harbour, kind: str, uploads: int
) -> None:
    lay_twins(harbour)
    harbour.strike(Fault(kind, "codat.upload", first=2))
    counts = await harbour.ferry()
    assert only(counts) == {State.SENT: 2}
    stored = Counter(stored.connection for stored in harbour.simulator.stored)
    assert stored == {CONNECTION: 1, SECOND: 1}
    assert harbour.requests("codat.upload") == uploads


async def held_twins(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them arrived, and nobody can say which."""
    monkeypatch.setattr(ask, "UNSURE_AT_LEAST", 1.0)
    monkeypatch.setattr(ask, "UNSURE_LAGS", 1)
    lay_twins(harbour)
    harbour.strike(Fault("lost_answer", "codat.upload", nth=1), Fault("reset_after", "codat.upload", nth=2))
    assert only(await harbour.ferry()) == {State.HELD: 2}


async def test_of_twins_of_two_connections_one_copy_is_nobody_s(
    harbour: Harbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held_twins(harbour, monkeypatch)
    assert harbour.requests("codat.upload") == 2, "neither was sent again"
    async with harbour.house() as house:
        for connection in (CONNECTION, SECOND):
            (row,) = await house.reports.by_path("customers", f"{COMPANY}/{connection}/a.pdf".encode())
            assert row.reason == "undecidable"
            assert "2 documents of this company may have brought them, perhaps to different conn" in (row.detail or "")


async def test_a_person_who_found_it_takes_the_file_away(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no command that calls it sent: what its sentence says helps, and nothing is forgotten by it."""
    await held_twins(harbour, monkeypatch)
    place = harbour.ground.root / "customers" / COMPANY / SECOND / "a.pdf"
    async with harbour.house() as house:
        (row,) = await house.reports.by_path("customers", f"{COMPANY}/{SECOND}/a.pdf".encode())
        assert "take the file out of the folder" in (row.detail or "")
    place.unlink()
    assert only(await harbour.ferry()) == {State.HELD: 1}
    harbour.lay(place.parent, "a.pdf")
    assert only(await harbour.ferry()) == {State.HELD: 2}
    assert harbour.requests("codat.upload") == 2, "the same bytes, put there again, are not sent unasked"


# -- batches on trial --


class Verdicts:
    """What the runner is told of first batches."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[bool | None] = []
        self._tell = house.batches.seen
        monkeypatch.setattr(house.batches, "seen", self._hear)

    async def _hear(self, lane: str, whole: bool | None) -> None:
        self.told.append(whole)
        await self._tell(lane, whole)


async def due(house: House, order: Iterable[float]) -> None:
    """Doubts come due so many seconds from now, one after the other."""
    waits = list(order)
    now = house.clock.now()

    def work(connection: Any) -> None:
        rows = connection.execute(text("SELECT id FROM transfer WHERE state = 'doubtful' ORDER BY id")).all()
        for (number,), wait in zip(rows, waits, strict=True):
            connection.execute(
                text("UPDATE transfer SET next_attempt = :due, last_sent = :sent WHERE id = :id"),
                {"due": now + wait, "sent": now - 60, "id": number},
            )

    await house.database.write(work)


@pytest.mark.parametrize("order", [[0, 0.4, 0.8], [0, 0, 0.5]], ids=["one by one", "the last alone"])
async def test_a_first_batch_is_proved_in_pieces_too(
    harbour: Harbour, order: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that did not come, or a stop, parts its doubts. It is proved when none of them is left."""
    harbour.ground.codat |= {"batch": "3", "list_lag": '"2s"'}
    harbour.lay(harbour.ground.upload("bank"), *names_of(3))
    async with harbour.house() as house:
        verdicts = Verdicts(house, monkeypatch)
        await harbour.carried_beside(house, lambda: harbour.requests("codat.upload") == 1 and not house.runner.is_busy)
        await due(house, order)
        assert only(await harbour.carried(house)) == {State.SENT: 3}
        assert verdicts.told == [True]
        assert harbour.requests("codat.list") == len(set(order))
        assert house.batches.trusts(f"codat/{COMPANY}/{CONNECTION}")


@pytest.mark.parametrize("kind", ["reset_inside", "lost_answer"])
async def test_a_first_batch_that_proved_nothing_is_followed_by_another(
    harbour: Harbour, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harbour.ground.codat["batch"] = "3"
    harbour.lay(harbour.ground.upload("bank"), *names_of(3))
    harbour.strike(Fault(kind, "codat.upload", first=1))
    async with harbour.house() as house:
        verdicts = Verdicts(house, monkeypatch)
        await harbour.carried_beside(house, lambda: sum(harbour.at_codat().values()) == 3 and not house.runner.is_busy)
        assert verdicts.told == [None]
        before = harbour.requests("codat.upload")
        harbour.lay(harbour.ground.root / "bank", *names_of(6, "later"))
        await house.lookout.round()
        await at_rest(harbour, house, 6)
        assert only(await harbour.carried(house)) == {State.SENT: 9}
        assert verdicts.told == [None, True]
        assert harbour.requests("codat.upload") - before < 6, "together again, without a restart"


async def test_a_first_batch_that_was_handed_back_is_followed_by_another(harbour: Harbour) -> None:
    """Two connections of one company; the first request closes the remote while the other's first batch is ready."""
    harbour.ground.codat["batch"] = "5"
    harbour.ground.settings["workers"] = "1"
    harbour.simulator.switches.idempotency = False
    harbour.ground.upload("customers", folder="customers/{company_id}/{connection_id}")
    for connection in (CONNECTION, SECOND):
        folder = harbour.ground.root / "customers" / COMPANY / connection
        folder.mkdir(parents=True)
        harbour.lay(folder, *names_of(40, connection[:2]))
    harbour.strike(Fault("too_many", "codat.upload", nth=1, params={"seconds": 1}))
    async with harbour.house() as house:
        await at_rest(harbour, house, 80)
        assert only(await harbour.carried(house)) == {State.SENT: 80}
        assert house.batches.trusts(f"codat/{COMPANY}/{SECOND}")


async def test_a_first_batch_that_did_not_go_proves_nothing_against_its_connection(harbour: Harbour) -> None:
    harbour.ground.codat["batch"] = "3"
    harbour.lay(harbour.ground.upload("bank"), *names_of(3))
    async with harbour.house() as house:
        await at_rest(harbour, house, 3)

        async def never() -> bool:
            return False

        for _ in range(ask.TRIALS + 1):
            (lane,) = await house.transfers.lanes()
            claimed = await house.transfers.claim([Pick(lane, 3)], room=3)
            (batch,) = await house.batches.loads(claimed)
            load = Load(batch, await house.documents.places([each.id for each in batch]))
            await house.runner.carrier.carry(load, never)
            assert only(await harbour.states(house)) == {"waiting": 3}
        assert harbour.requests("codat.upload") == 0
        assert only(await harbour.carried(house)) == {State.SENT: 3}
        assert harbour.requests("codat.upload") == 1
