"""Test connecting: several addresses, the source address, time limits."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from contract.raw_server import OK, http_client, saying, serving
from contract.upload_items import item
from docferry.endpoints import validate_url
from docferry.errors import RemoteError
from docferry.remotes.http import PlainBody, connect
from docferry.remotes.http.connect import AddressInfo, Connector
from unreachable_hosts import full_backlog

#: Runs in a network namespace: two.test has an address whose listen queue is full, and one that answers.
SCRIPT = r"""
import json, socket, sys, threading, time
import anyio
from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes.http import HttpClient, HttpOptions, diagnose

full = socket.create_server(("127.0.0.2", 8000), backlog=0)
visitors = []
for _ in range(4):
    visitors.append(socket.socket())
    visitors[-1].setblocking(False)
    visitors[-1].connect_ex(("127.0.0.2", 8000))
good = socket.create_server(("127.0.0.3", 8000))

def serve():
    while True:
        client, _ = good.accept()
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        client.close()

threading.Thread(target=serve, daemon=True).start()

async def main():
    http = HttpClient("Test", SystemClock(), HttpOptions(connect_timeout=30.0))
    began = time.monotonic()
    response = await http.call("GET", "http://two.test:8000/")
    seconds = time.monotonic() - began
    steps = await diagnose("Test", "http://two.test:8000/", HttpOptions(connect_timeout=1.0))
    visitors.append(socket.socket())
    good.close()
    print(json.dumps({"status": response.status, "seconds": seconds, "steps": steps}))

anyio.run(main)
"""


def test_the_second_address_is_tried_when_the_first_accepts_nothing(tmp_path: Path) -> None:
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip for a network namespace of its own")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.2 two.test\n127.0.0.3 two.test\n")
    inside = f'mount --bind "{hosts}" /etc/hosts && ip link set lo up && exec "$@"'
    namespace = ["unshare", "-Urnm", "sh", "-c", inside, "sh"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    run = subprocess.run(
        [*namespace, sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["status"] == 200
    assert 0.2 < found["seconds"] < 20.0, "the second address is tried 0.25 s after the first"
    names = [step[0] for step in found["steps"]]
    assert names == ["dns", "connect", "http"]
    connect = found["steps"][1]
    assert "127.0.0.2:8000 did not answer within 1 s" in connect[2]
    assert "127.0.0.3:8000 connected in" in connect[2]


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def address(host: str, port: int, protocol: int = socket.IPPROTO_TCP) -> AddressInfo:
    return socket.AF_INET, socket.SOCK_STREAM, protocol, "", (host, port)


@pytest.mark.anyio
async def test_an_address_that_refuses_gives_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the delay between two addresses; no option sets it."""
    monkeypatch.setattr(connect, "_ATTEMPT_DELAY_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in ("127.0.0.2", "127.0.0.3", "127.0.0.1")
        ]
        connector = Connector("three.test", port)
        began = time.monotonic()
        (await connector.connect_to(addresses)).close()
        assert time.monotonic() - began < 30
        with pytest.raises(OSError, match=r"127\.0\.0\.2:\d+ connection refused; 127\.0\.0\.3:\d+ connection refused"):
            await Connector("two.test", port).connect_to(addresses[:2])


@pytest.mark.anyio
async def test_a_race_that_is_cancelled_leaves_no_socket() -> None:
    with full_backlog() as busy:
        host, _, port = busy.partition(":")
        before = open_files()
        with anyio.move_on_after(0.6):
            await Connector(host, int(port)).connect_to([address(host, int(port)), address(host, int(port), 0)])
        assert open_files() == before


@pytest.mark.anyio
async def test_a_connection_that_is_not_made_names_the_address() -> None:
    with full_backlog() as busy:
        async with http_client(connect_timeout=0.3) as http:
            with pytest.raises(RemoteError, match=f"no connection after 0.3 s \\({busy} did not answer") as failure:
                await http.call("PUT", f"http://{busy}/", body=PlainBody(item("a.pdf")))
    assert (failure.value.kind, failure.value.body_complete) == ("unreachable", False)


@pytest.mark.anyio
async def test_the_source_address_can_be_chosen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with http_client(local_address="127.0.0.9", timeout=0.3) as http:
            with pytest.raises(RemoteError, match="did not answer in time"):
                await http.call("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        accepted, peer = listener.accept()
        accepted.close()
        assert peer[0] == "127.0.0.9"
    async with serving(saying(OK)) as server, http_client(local_address="192.0.2.1") as http:
        with pytest.raises(RemoteError, match=r"no address 192\.0\.2\.1"):
            await http.call("GET", server.url)


ODD = [
    "https://.s3.eu/x",
    "http://[::1/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:0/",
    f"http://{'a' * 300}.test/",
    f"http://{'a.' * 200}test/",
    "http://api..codat.test",
    "http://a\u2011b.test/",
    "http://a\\b/",
    "http:///x",
    "ftp://127.0.0.1/",
    "nothing",
    "",
]


@pytest.mark.anyio
@pytest.mark.parametrize("url", ODD)
@pytest.mark.parametrize("query", ["", "?X-Amz-Signature=secret"])
async def test_an_odd_url_is_an_error_of_its_request(url: str, query: str) -> None:
    with pytest.raises(ValueError, match=r"is neither|is not a URL|has "):
        validate_url(url + query)
    async with http_client() as http:
        with pytest.raises(RemoteError) as failure:
            await http.call("PUT", url + query, body=PlainBody(item("a.pdf")))
    assert (failure.value.kind, failure.value.body_complete) == ("not_ours", False)
    assert "secret" not in str(failure.value)
