"""Test that the diagnosis names the failing step and the attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anyio.abc import SocketStream

from contract.raw_server import OK, head_of, saying, serving
from docferry.remotes.http import HttpOptions, Step, diagnose
from unreachable_hosts import full_backlog, silent_host

pytestmark = pytest.mark.anyio
QUICK = HttpOptions(timeout=1.0, connect_timeout=0.5)


def by_name(steps: list[Step]) -> dict[str, bool]:
    return {step.name: step.ok for step in steps}


@pytest.mark.parametrize(("status", "fix"), [(200, ""), (401, "set a valid API key"), (403, "use a key with access")])
async def test_all_steps_to_a_server(status: int, fix: str) -> None:
    seen: list[bytes] = []

    async def speak(client: SocketStream) -> None:
        seen.append(await head_of(client))
        await client.send(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status)

    async with serving(speak) as server:
        steps = await diagnose("Codat", server.url, QUICK, {"Authorization": "Basic canary"})
    assert by_name(steps) == {"dns": True, "connect": True, "http": status == 200}
    assert "connected in" in steps[1].detail
    assert (steps[-1].detail, steps[-1].fix) == (f"Codat answers with {status}", fix)
    assert b"Basic canary" in seen[-1]
    assert "canary" not in str(steps)


async def test_a_name_without_an_address() -> None:
    steps = await diagnose("Codat", "https://nowhere.invalid/", QUICK)
    assert by_name(steps) == {"dns": False}
    assert "nowhere.invalid has no address" in steps[0].detail


async def test_an_address_without_a_listener() -> None:
    steps = await diagnose("Codat", "http://127.0.0.1:1/", QUICK)
    assert by_name(steps) == {"dns": True, "connect": False}
    assert steps[1].detail == "127.0.0.1:1 connection refused"
    with full_backlog() as busy:
        steps = await diagnose("Codat", f"http://{busy}/", QUICK)
        assert steps[1].detail == f"{busy} did not answer within 0.5 s"


async def test_tls_that_fails() -> None:
    with silent_host() as silent:
        steps = await diagnose("Codat", f"https://{silent}/", QUICK)
        assert by_name(steps) == {"dns": True, "connect": True, "tls": False}
        assert "was not complete after 0.5 s" in steps[2].detail
    async with serving(saying(OK)) as server:
        steps = await diagnose("Codat", server.url.replace("http:", "https:"), QUICK)
        assert by_name(steps)["tls"] is False


@pytest.mark.parametrize("known", [True, False])
async def test_a_certificate(simulated: Any, certificates: Any, known: bool) -> None:
    sim = simulated(tls=certificates.server)
    options = HttpOptions(timeout=2.0, ca_file=certificates.ca_file if known else None)
    steps = await diagnose("Codat", sim.url, options)
    if known:
        assert by_name(steps)["tls"]
        assert "the certificate is valid until" in steps[2].detail
    else:
        assert by_name(steps) == {"dns": True, "connect": True, "tls": False}
        assert "unknown authority" in steps[2].detail


@pytest.mark.parametrize("allows", [True, False])
async def test_a_proxy_has_steps_of_its_own(allows: bool) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with serving(saying(OK if allows else refusal)) as server:
        proxy = server.url.replace("http://", "http://u:canary@").rstrip("/")
        url = "http://api.test/" if allows else "https://api.test/"
        steps = await diagnose("Codat", url, HttpOptions(timeout=1.0, proxy=proxy))
    assert [(step.name, step.ok) for step in steps] == [("proxy", True), ("proxy", True), ("http", allows)]
    assert allows or "refused the connection (407" in steps[-1].detail
    assert "canary" not in str(steps)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://api..codat.test", {}),
        ("http://h/", {"proxy": "nothing"}),
        ("http://h/", {"ca_file": Path("/nowhere.pem")}),
    ],
)
async def test_what_cannot_be_used_at_all(url: str, options: dict[str, Any]) -> None:
    (step,) = await diagnose("Codat", url, HttpOptions(**options))
    assert (step.name, step.ok) == ("url", False)


async def test_a_redirect_is_no_answer() -> None:
    async with serving(saying(b"HTTP/1.1 302 x\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n")) as server:
        steps = await diagnose("Codat", server.url, QUICK)
    assert (steps[-1].ok, steps[-1].fix) == (False, "correct base_url")
