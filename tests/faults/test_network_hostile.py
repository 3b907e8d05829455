"""Test rows N18 to N22: expired URLs, wrong clocks, redirects, hostile proxies and endless responses."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app_env import AppEnv, until
from crash.process_pool import ProcessPool
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from faults.network import UPLOAD, lay, quick, rows

FULL = bool(os.environ.get("DOCFERRY_FULL"))
#: Far more than a socket's buffers take.
LARGE = 6 * 1024 * 1024


@pytest.fixture(name="app_env")
def quick_env(app_env: AppEnv) -> AppEnv:
    return quick(app_env)


@pytest.mark.parametrize("signed", ["put", "post"])
def test_n18_a_signed_url_has_expired(app_env: AppEnv, process_pool: ProcessPool, signed: Any) -> None:
    """A new URL is requested for the same key; the gate stays open, and nothing is held."""
    app_env.simulator.options.signed = signed
    made = lay(app_env.upload("scans", "wootiv", object_name='"{name}"'), "a.pdf", "b.pdf")
    expired = {"status": 403, "code": "AccessDenied"}
    app_env.simulator.set_faults([Fault("status", f"s3.{signed}", first=2, params=expired)])
    assert process_pool.drained(app_env)["held"] == 0
    assert app_env.stored() == made
    assert app_env.simulator.requests["wootiv.sign"] >= 3


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_n18_the_remotes_clock_is_wrong(app_env: AppEnv, process_pool: ProcessPool, skew: float) -> None:
    """Doubts are decided by the remote's own clock: one copy."""
    app_env.simulator.options.date_skew = skew
    app_env.simulator.options.idempotency = False
    made = lay(app_env.upload("bank"), "a.pdf", "b.pdf")
    made += lay(app_env.upload("scans", "wootiv", object_name='"{name}"'), "s.pdf")
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD, nth=1), Fault("reset_after", UPLOAD, nth=2)])
    process_pool.drained(app_env)
    assert app_env.stored() == made


@pytest.mark.parametrize("status", [302, 307])
def test_n20_a_redirect_to_another_host(app_env: AppEnv, process_pool: ProcessPool, status: int) -> None:
    """The redirect is not followed: the other host gets no byte and no key, and nothing is held."""
    made = lay(app_env.upload("bank"), "a.pdf")
    with SimulatorThread(Simulator(SimulatorOptions())) as elsewhere:
        params = {"location": f"{elsewhere.url}/companies", "status": status}
        app_env.simulator.set_faults([Fault("redirect", UPLOAD, params=params)])
        report = process_pool.sync(app_env, "--timeout", "3s", code=75)
        assert (report["uploaded"], report["held"], report["due"]) == (0, 0, 1)
        assert not elsewhere.simulator.requests.total()
    app_env.simulator.set_faults([])
    process_pool.drained(app_env)
    assert app_env.stored() == made


def test_n21_a_hostile_proxy_environment(either: AppEnv, process_pool: ProcessPool) -> None:
    """Proxies, certificates and .netrc of the environment are ignored."""
    made = lay(either.upload("bank"), "a.pdf", "b.pdf")
    (either.root / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    with SimulatorThread(Simulator(SimulatorOptions())) as trap:
        hostile = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), trap.url)
        hostile |= {"SSL_CERT_FILE": "/dev/null", "NETRC": str(either.root / ".netrc"), "HOME": str(either.root)}
        assert process_pool.sync(either, env=hostile)["uploaded"] == 2
        assert not trap.simulator.requests.total()
    assert either.stored() == made


@pytest.mark.parametrize("kind", ["gzip_bomb", "endless_json"])
def test_n21_answers_without_end(app_env: AppEnv, process_pool: ProcessPool, kind: str) -> None:
    """Cut at 16 MB: the daemon stays small, and nothing is lost or doubled."""
    app_env.simulator.options.idempotency = False
    folder = app_env.upload("bank")
    app_env.simulator.set_faults(
        [
            Fault(kind, UPLOAD, first=2, params={"stored": True}),
            Fault("lost_answer", UPLOAD, first=1),
            Fault(kind, "codat.list", first=2),
        ]
    )
    with process_pool.daemon(app_env) as daemon:
        made = lay(folder, "a.pdf", "b.pdf", "c.pdf")
        until(lambda: app_env.simulator.requests["codat.list"] > 2)
        until(lambda: {row["state"] for row in rows(process_pool, app_env)} == {"sent"})
        peak = next(line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmHWM" in line)
    assert app_env.stored() == made
    assert int(peak.split()[1]) < 250_000, peak


@pytest.mark.parametrize(
    ("start", "block"),
    [
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Never: ends\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Never: ends\r\n"),
    ],
    ids=["interim", "headers", "chunks", "trailers"],
)
def test_n22_responses_that_never_end(app_env: AppEnv, process_pool: ProcessPool, start: bytes, block: bytes) -> None:
    """The daemon obeys SIGTERM, stays small, and holds nothing."""
    lay(app_env.upload("bank"), *(f"{number}.pdf" for number in range(8)))
    with ExitStack() as stack:
        url = stack.enter_context(_endless_server(start, block * 1000))
        variables = {"DOCFERRY_CODAT__BASE_URL": url, "DOCFERRY_STOP_GRACE": "1s"}
        daemon = stack.enter_context(process_pool.daemon(app_env, **variables))
        until(lambda: any(row["attempts"] for row in rows(process_pool, app_env)))
        states = {row["state"] for row in rows(process_pool, app_env)}
        peak = next(line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmHWM" in line)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(15) == 0
    assert "held" not in states
    assert int(peak.split()[1]) < 250_000, peak


@contextmanager
def _endless_server(start: bytes, block: bytes) -> Iterator[str]:
    """Run a server that reads everything, and responds to each connection without end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(client: socket.socket) -> None:
            with client, suppress(OSError):
                client.recv(65536)
                client.sendall(start)
                while True:
                    client.sendall(block)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
