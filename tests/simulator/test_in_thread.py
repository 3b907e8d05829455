"""Test the simulator in a thread, in a given event loop, and in a program controlled over HTTP."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest

from docferry.errors import ConfigError
from docferry.simulator import Event, Fault, Simulator, SimulatorOptions, SimulatorThread, run_simulator
from simulator.rawclient import CODAT, COMPANY, LIST, Raw, Reply, ask, listed, upload

PROGRAM = """
import anyio
from docferry.simulator import Simulator, SimulatorOptions, run_simulator
async def main():
    simulator = Simulator(SimulatorOptions(list_lag=60.0))
    async with anyio.create_task_group() as group:
        await group.start(run_simulator, simulator)
        print(simulator.url, flush=True)
anyio.run(main)
"""


@pytest.fixture(params=["thread", "program"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a simulator in another thread, or in another process."""
    if request.param == "thread":
        with SimulatorThread.start(Simulator(SimulatorOptions(list_lag=60.0))) as running:
            yield running.url
        return
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        yield program.stdout.readline().strip()
        program.terminate()


def tell(url: str, path: str, value: object) -> Reply:
    return ask(url, "POST", f"/_sim/{path}", {}, json.dumps(value).encode())


def test_another_program_is_asked_and_turned_over_http(url: str) -> None:
    assert upload(url, ("a.pdf", b"abc"), key="k").status == 200
    (stored,) = ask(url, "GET", "/_sim/stored").json
    assert stored.keys() == {"remote", "company", "connection", "name", "sha256", "size", "at", "via", "key"}
    assert (stored["name"], stored["size"], stored["sha256"][:8]) == ("a.pdf", 3, "ba7816bf")
    assert listed(url) == []
    assert tell(url, "switches", {"list_lag": 0}).status == 200
    assert ask(url, "GET", "/_sim/switches").json["list_lag"] == 0
    assert listed(url) == ["a.pdf"]

    assert tell(url, "faults", [{"kind": "html_502", "match": "codat.*", "first": 1}]).status == 200
    assert upload(url).status == 502
    assert upload(url).status == 200
    seen = ask(url, "GET", "/_sim/requests").json
    assert seen["counts"] == {"codat.upload": 3, "codat.list": 2}
    assert [(each["route"], each["fault"], each["status"]) for each in seen["log"]][3] == (
        "codat.upload",
        "html_502",
        502,
    )
    assert seen["log"][0]["at_first_byte"] <= seen["log"][0]["at"]

    wish = {"company": COMPANY, "name": "page.pdf", "content_base64": base64.b64encode(b"page").decode()}
    assert (
        tell(url, "files", wish | {"uploaded": "2026-01-02T03:04:05Z", "source_type": "Banking"}).json["via"] == "page"
    )
    assert ask(url, "GET", LIST, CODAT).json[-1]["sourceType"] == "Banking"
    assert tell(url, "objects", {"key": "k", "content_base64": ""}).status == 200
    assert [each["key"] for each in ask(url, "GET", "/_sim/objects").json] == ["k"]

    assert tell(url, "refuse", {"seconds": 30}).status == 200
    with pytest.raises(ConnectionRefusedError):
        upload(url)


def test_a_reset_forgets_everything(url: str) -> None:
    upload(url)
    tell(url, "faults", {"fault": [{"kind": "html_502"}]})
    tell(url, "switches", {"codat_key": "other"})
    assert ask(url, "POST", "/_sim/reset", {}, b"").status == 200
    assert ask(url, "GET", "/_sim/stored").json == []
    assert listed(url) == []


@pytest.mark.parametrize(
    ("path", "wish"),
    [
        ("switches", {"nonsense": 1}),
        ("switches", []),
        ("faults", [{"kind": "nonsense"}]),
        ("faults", 7),
        ("files", {"name": "a.pdf", "content_base64": ""}),
        ("files", {"company": "c", "name": "a.pdf", "content_base64": "?"}),
        ("refuse", {"seconds": "long"}),
    ],
)
def test_a_wrong_wish_is_told_by_its_problem(path: str, wish: object) -> None:
    with SimulatorThread.start(Simulator()) as running:
        reply = tell(running.url, path, wish)
        assert reply.status == 400
        assert reply.json["problems"][0]
        assert ask(running.url, "GET", "/_sim/nonsense").status == 404
        assert ask(running.url, "POST", "/_sim/switches", {}, b"no JSON").status == 400


def test_the_thread_ends_and_frees_its_sockets() -> None:
    with SimulatorThread.start(Simulator()) as running:
        kept = Raw(running.url)
        assert kept.ask("GET", LIST, CODAT).status == 200
        port = running.port
    assert kept.sock.recv(1) == b""
    kept.sock.close()
    socket.create_server(("127.0.0.1", port)).close()
    running.stop()  # again is fine


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            SimulatorThread.start(Simulator(), port=port)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            anyio.run(lambda: run_simulator(Simulator(), port))


@pytest.mark.anyio
async def test_in_ones_own_loop() -> None:
    events: list[Event] = []
    simulator = Simulator(faults=[Fault("html_200", first=1)], events=events)
    async with anyio.create_task_group() as tree:
        port = await tree.start(simulator.serve)
        assert urlsplit(simulator.url).port == port
        await anyio.to_thread.run_sync(upload, simulator.url)
        await anyio.to_thread.run_sync(upload, simulator.url)
        tree.cancel_scope.cancel()
    assert [(event.kind, event.route, event.detail) for event in events] == [
        ("fault", "codat.upload", "html_200"),
        ("stored", "codat.api", "a.pdf"),
    ]
    assert events[1].stored == simulator.stored[0]
    socket.create_server(("127.0.0.1", port)).close()


def test_a_failure_of_the_simulator_itself_is_a_500() -> None:
    simulator = Simulator()
    simulator.options.connection_status = None  # type: ignore[assignment]  # to make it fail
    with SimulatorThread.start(simulator) as running:
        assert upload(running.url).status == 500
        assert upload(running.url).json["statusCode"] == 500
    assert simulator.stored == []


def test_other_users_of_the_machine_cannot_read_uploads() -> None:
    """`simulate` and `demo` listen on loopback, which every local user reaches: keys are random, the record closed."""
    options = SimulatorOptions(codat_key="chosen").with_random_keys()
    assert options.codat_key == "chosen", "a key of the fault file is kept"
    public = SimulatorOptions()
    with SimulatorThread.start(Simulator(options)) as running:
        running.simulator.put_object("k", b"content")
        for headers in ({}, {"Authorization": f"Bearer {public.codat_key}"}):
            for method, path in (("GET", "stored"), ("GET", "objects"), ("GET", "switches"), ("POST", "reset")):
                assert ask(running.url, method, f"/_sim/{path}", headers, b"").status == 401
        for signer, status in ((Simulator(), 403), (running.simulator, 200)):
            signed = signer.s3.sign("GET", running.url, "wootiv-documents", "k").removeprefix(running.url)
            assert ask(running.url, "GET", signed, {}, b"").status == status, "the public secret signs nothing here"
        mine = {"Authorization": "Bearer chosen"}
        assert ask(running.url, "POST", "/_sim/reset", mine, b"").status == 200
        assert ask(running.url, "GET", "/_sim/stored", {}, b"").status == 401, "a reset opens nothing"
    assert options.wootiv_key != public.wootiv_key
