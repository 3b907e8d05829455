"""Test network faults with the real program and the simulator: rows N1 to N7 and N11 to N17."""

from __future__ import annotations

import os
import random
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from api_keys import StaticKey
from app_env import COMPANY, AppEnv, digest, until
from crash.process_pool import ProcessPool
from docferry.clock import SystemClock
from docferry.remotes.codat.client import Codat, CodatOptions
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from faults.network import UPLOAD, lay, quick, rows

FULL = bool(os.environ.get("DOCFERRY_FULL"))
#: Far more than a socket's buffers take.
LARGE = 6 * 1024 * 1024


@pytest.fixture(name="app_env")
def quick_env(app_env: AppEnv) -> AppEnv:
    return quick(app_env)


def _routes(app_env: AppEnv) -> list[str]:
    return [seen.route for seen in list(app_env.simulator.log)]


@pytest.mark.parametrize("how", ["refused", "tls"])
def test_n1_it_cannot_be_reached(app_env: AppEnv, process_pool: ProcessPool, how: str) -> None:
    """A closed port, or an untrusted certificate: retried, never doubtful, finally sent once."""
    made = lay(app_env.upload("bank"), "a.pdf", "b.pdf")
    with _strangers_tls() as strange, SimulatorThread(Simulator(SimulatorOptions())) as closed:
        closed.stop()
        address = {
            "refused": f"http://127.0.0.1:{closed.port}",
            "tls": strange.url,
        }[how]
        report = process_pool.sync(app_env, "--timeout", "3s", code=75, DOCFERRY_CODAT__BASE_URL=address)
        assert (report["due"], report["held"], report["uploaded"]) == (2, 0, 0)
        assert not strange.simulator.requests.total()
    assert {row["state"] for row in rows(process_pool, app_env)} == {"waiting"}
    assert process_pool.sync(app_env)["uploaded"] == 2
    assert app_env.stored() == made
    assert app_env.simulator.requests["codat.list"] == 0


@pytest.mark.parametrize("idempotency", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_n2_answer_lost_after_it_was_stored(
    either: AppEnv, process_pool: ProcessPool, how: str, idempotency: bool
) -> None:
    """There is one copy and no second request, because the list proves the document present."""
    either.simulator.options.idempotency = idempotency
    made = lay(either.upload("bank"), "a.pdf", "b.pdf", "c.pdf")
    either.simulator.set_faults([Fault("lost_answer", UPLOAD, first=3, params={"how": how})])
    process_pool.drained(either)
    assert either.stored() == made
    assert either.simulator.requests[UPLOAD] == 3


def test_n3_stored_late_and_listed_later(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """An upload is stored after 40 s and listed 20 s later, at 20 times the speed: one copy."""
    app_env.codat["list_lag"] = '"1500ms"'
    app_env.simulator.options.idempotency = False
    app_env.simulator.options.list_lag = 1.0
    made = lay(app_env.upload("bank"), "a.pdf", "b.pdf", "c.pdf")
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD, first=3, params={"late": 2.0})])
    process_pool.drained(app_env)
    assert app_env.stored() == made
    assert app_env.simulator.requests[UPLOAD] == 3


def test_n4_a_200_whose_body_is_cut(either: AppEnv, process_pool: ProcessPool) -> None:
    """The status is the receipt: the document is sent, without a lookup or a second request."""
    made = lay(either.upload("bank"), "a.pdf", "b.pdf")
    either.simulator.set_faults([Fault("truncated_answer", UPLOAD)])
    assert process_pool.sync(either)["uploaded"] == 2
    assert either.stored() == made
    assert _routes(either) == [UPLOAD, UPLOAD]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("status", [500, 503])
def test_n5_a_5xx_after_the_whole_body(app_env: AppEnv, process_pool: ProcessPool, status: int, stored: bool) -> None:
    """Doubtful: asked before anything is sent again, and sent again only if it is not there."""
    app_env.simulator.options.idempotency = False
    made = lay(app_env.upload("bank"), "a.pdf")
    app_env.simulator.set_faults([Fault("status", UPLOAD, first=1, params={"status": status, "stored": stored})])
    process_pool.drained(app_env)
    assert app_env.stored() == made
    routes = [route for route in _routes(app_env) if route in (UPLOAD, "codat.list")]
    assert routes[:2] == [UPLOAD, "codat.list"]
    assert routes.count(UPLOAD) == (1 if stored else 2)


def test_n6_an_early_413_and_a_reset(either: AppEnv, process_pool: ProcessPool) -> None:
    """Found out after a few tries: held as too large, not sent over and over."""
    lay(either.upload("bank"), "a.pdf", size=LARGE)
    either.simulator.set_faults([Fault("early_413", UPLOAD)])
    assert process_pool.drained(either)["held"] == 1
    assert [row["reason"] for row in rows(process_pool, either)] == ["too_large"]
    assert either.simulator.requests[UPLOAD] <= 4
    assert not either.stored()


def test_n6_an_early_401_and_a_reset(either: AppEnv, process_pool: ProcessPool) -> None:
    """Found out: the gate is closed, nothing is held, and it is sent once the key works."""
    made = lay(either.upload("bank"), "a.pdf", size=LARGE)
    either.simulator.set_faults([Fault("early_401", UPLOAD)])
    assert process_pool.sync(either, "--timeout", "20s", code=75)["held"] == 0
    assert either.simulator.requests[UPLOAD] <= 8
    either.simulator.set_faults([])
    assert process_pool.drained(either)["held"] == 0
    assert either.stored() == made


@pytest.mark.parametrize(
    "fault",
    [
        Fault("stall", UPLOAD, first=2, params={"stored": False}),
        Fault("stall", UPLOAD, first=2, params={"stored": True}),
        Fault("slow_read", UPLOAD, first=1, params={"rate": 1}),
    ],
    ids=["stall", "stall_stored", "byte_a_second"],
)
def test_n7_stalls(app_env: AppEnv, process_pool: ProcessPool, fault: Fault) -> None:
    """The time limit passes, the worker is free again, others arrive, and nothing is sent twice."""
    app_env.settings["workers"] = "2"
    app_env.codat["timeout"] = '"1s"'
    made = lay(app_env.upload("bank"), *(f"{number}.pdf" for number in range(6)))
    if fault.kind == "slow_read":
        made += lay(app_env.root / "bank", "large.pdf", size=LARGE)
    app_env.simulator.set_faults([fault])
    process_pool.drained(app_env)
    assert app_env.stored() == made


def test_n11_keep_alive_closed_as_the_request_arrives(either: AppEnv, process_pool: ProcessPool) -> None:
    """Each document has one copy."""
    either.simulator.options.idempotency = False
    made = lay(either.upload("bank"), *(f"{number}.pdf" for number in range(20)))
    either.simulator.set_faults([Fault("stale_keepalive", UPLOAD, rate=0.5)])
    process_pool.drained(either)
    assert either.stored() == made


@pytest.mark.anyio
async def test_n12_a_storm_of_cancels(tmp_path: Path) -> None:
    """Twenty that ask over ten connections are cancelled at any moment, again and again: all get an answer after it."""
    jitter = random.Random(12)  # noqa: S311 - the same moments for the same seed
    with SimulatorThread(
        Simulator(SimulatorOptions(requests_per_minute=0, concurrent_per_company=0, latency=0.002))
    ) as simulator_thread:
        remote = Codat(
            HttpClient("Codat", SystemClock(), HttpOptions(timeout=5)),
            CodatOptions(simulator_thread.url, requests_per_minute=1_000_000),
            key=StaticKey("codat-demo-key"),
            clock=SystemClock(),
            spool=tmp_path,
        )

        async def ask(patience: float) -> None:
            with anyio.move_on_after(patience):
                await remote.listing(COMPANY)

        for _ in range(300 if FULL else 30):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask, jitter.uniform(0, 0.02))
        answers: list[list[Any]] = []
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(_gather, remote, answers)
        await remote.aclose()
    assert answers == [[]] * 20


async def _gather(remote: Codat, answers: list[list[Any]]) -> None:
    answers.append(list(await remote.listing(COMPANY)))


def test_n13_one_name_twice_rightly(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Two documents of one name in two folders, both in doubt, one there and one not: two copies."""
    app_env.simulator.options.idempotency = False
    made = lay(app_env.upload("bank"), "x/a.pdf", "y/a.pdf")
    app_env.simulator.set_faults(
        [Fault("lost_answer", UPLOAD, nth=1), Fault("reset_after", UPLOAD, nth=2)],
    )
    process_pool.drained(app_env)
    assert app_env.stored() == made
    assert app_env.simulator.requests[UPLOAD] == 3


@pytest.mark.parametrize("arrived", [True, False])
def test_n14_a_strangers_upload_of_that_name(app_env: AppEnv, process_pool: ProcessPool, arrived: bool) -> None:
    """Another program uploads the same name during a doubt: the two are told apart, and nothing is sent twice."""
    app_env.codat["list_lag"] = '"1s"'
    app_env.simulator.options.idempotency = False
    made = lay(app_env.upload("bank"), "a.pdf")
    app_env.simulator.set_faults([Fault("lost_answer" if arrived else "reset_after", UPLOAD, first=1)])
    with process_pool.daemon(app_env):
        until(lambda: app_env.simulator.requests[UPLOAD] == 1)
        app_env.simulator.put_company_file(COMPANY, "a.pdf", b"a stranger's")
        until(lambda: [row["state"] for row in rows(process_pool, app_env)] == ["sent"])
    assert app_env.stored() == made + Counter({("a.pdf", digest(b"a stranger's")): 1})


@pytest.mark.parametrize("rename", ["quote", "nfc", "cut"])
def test_n15_the_server_changes_the_name(app_env: AppEnv, process_pool: ProcessPool, rename: Any) -> None:
    """Recognised all the same, or held; never doubled."""
    app_env.simulator.options.idempotency = False
    app_env.simulator.options.rename = rename
    made = lay(app_env.upload("bank"), 'say "so".pdf', "cafe\u0301.pdf", "n" * 90 + ".pdf")
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD, first=3)])
    process_pool.drained(app_env)
    assert Counter(sha for _, sha in app_env.stored().elements()) == Counter(sha for _, sha in made.elements())
    assert app_env.simulator.requests[UPLOAD] == 3


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "codat.list", first=3, params={"status": 500}),
        Fault("html_200", "codat.list", first=3),
        Fault("truncated_answer", "codat.list", first=3, params={"at": 5}),
        Fault("endless_json", "codat.list", first=1, params={"size": 20_000_000}),
        None,
    ],
    ids=["500", "html", "cut", "endless", "stale"],
)
def test_n16_a_list_that_cannot_be_believed(app_env: AppEnv, process_pool: ProcessPool, fault: Fault | None) -> None:
    """The list decides nothing: stored documents are not sent again, missing ones are."""
    app_env.simulator.options.idempotency = False
    folder = app_env.upload("bank")
    made = lay(folder, "before.pdf")
    process_pool.sync(app_env)
    if fault is None:
        app_env.simulator.options.list_lag = 3600.0
    made += lay(folder, "there.pdf", "absent.pdf")
    faults = [Fault("lost_answer", UPLOAD, nth=1), Fault("reset_after", UPLOAD, nth=2)]
    app_env.simulator.set_faults([*faults, fault] if fault else faults)
    process_pool.drained(app_env)
    assert app_env.stored() == made
    assert app_env.simulator.requests[UPLOAD] == 4


def test_n17_a_file_that_is_swallowed(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Answers are lost and a scanner swallows the file each time: asked, tried, and held in the end; no loop."""
    folder = app_env.upload("bank")
    app_env.simulator.options.swallow = ("virus.pdf",)
    made = lay(folder, "good.pdf")
    lay(folder, "virus.pdf")
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD)])
    with process_pool.daemon(app_env, DOCFERRY_RETRY__GIVE_UP_AFTER="3s"):
        until(lambda: sorted(row["state"] for row in rows(process_pool, app_env)) == ["held", "sent"])
        tries = app_env.simulator.requests[UPLOAD]
        assert tries < 20
    assert process_pool.sync(app_env, code=1, DOCFERRY_RETRY__GIVE_UP_AFTER="3s")["requests"] == 0
    assert app_env.stored() == made


def test_n17_a_file_that_a_scanner_keeps_for_a_while(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Stored after a delay that the list_lag allows for: one copy."""
    app_env.codat["list_lag"] = '"1s"'
    app_env.simulator.options.idempotency = False
    made = lay(app_env.upload("bank"), "a.pdf")
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD, first=1, params={"late": 1.2})])
    process_pool.drained(app_env)
    assert app_env.stored() == made


@contextmanager
def _strangers_tls() -> Iterator[SimulatorThread]:
    """Run a server with an untrusted certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with SimulatorThread(Simulator(SimulatorOptions()), ssl_context=context) as simulator_thread:
        yield simulator_thread
