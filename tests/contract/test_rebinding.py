"""Test signed URLs whose host changes its address between two lookups (DNS rebinding), with a real resolver."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Runs in a network namespace with its own addresses 8.8.8.8 and 8.8.4.4. `Wootiv` at 8.8.8.8 signs URLs for
#: rebind.test; the name server gives the next of ANSWERS at each lookup.
SCRIPT = r"""
import json, os, socket, struct, sys, threading
import anyio
from api_keys import StaticKey
from contract.upload_items import WOOTIV, item
from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.wootiv.client import Wootiv, WootivOptions
from docferry.remotes.wootiv.signed_url import SignedUrlPolicy

ANSWERS = json.loads(sys.argv[1])
HOSTS = json.loads(sys.argv[2])
PROXY = json.loads(sys.argv[3])
lookups = 0
reached = []

def name_server():
    global lookups
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    ready.set()
    while True:
        query, client = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        wanted = struct.unpack("!H", query[end - 4:end - 2])[0]
        found = []
        if wanted == 1:
            found = [socket.inet_aton(each) for each in ANSWERS[min(lookups, len(ANSWERS) - 1)]]
            lookups += 1
        head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + each for each in found)
        server.sendto(head + query[12:end] + records, client)

def serve(address, answer):
    listener = socket.create_server((address, 8000))
    def run():
        while True:
            client, _ = listener.accept()
            reached.append(address)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            body = head.partition(b"\r\n\r\n")[2]
            while len(body) < length:
                body += client.recv(65536)
            client.sendall(answer)
            client.close()
    threading.Thread(target=run, daemon=True).start()

def response(content, more=b""):
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s" % (more, len(content), content)

signed = {"url": "http://rebind.test:8000/k?X-Amz-Signature=a", "fields": {}}
serve("8.8.8.8", response(json.dumps(signed).encode()))
for address in ("8.8.4.4", "127.0.0.1"):
    serve(address, response(b"", b'ETag: "%s"\r\n' % item("a.pdf", b"x").source.md5.encode()))
ready = threading.Event()
threading.Thread(target=name_server, daemon=True).start()
ready.wait()

async def main():
    policy, options = SignedUrlPolicy("http://8.8.8.8:8000", HOSTS), WootivOptions("http://8.8.8.8:8000")
    http = HttpClient("Wootiv", SystemClock(), HttpOptions(timeout=3.0, proxy=PROXY))
    storage = HttpClient(
        "Wootiv's storage", SystemClock(), HttpOptions(timeout=3.0, proxy=PROXY, public_only=policy.public_only)
    )
    wootiv = Wootiv(http, storage, policy, options, key=StaticKey("key"), clock=SystemClock())
    outcomes = []
    for _ in range(4):
        try:
            await wootiv.send([item("a.pdf", b"x", WOOTIV)], "key")
            outcomes.append("sent")
        except RemoteError as error:
            outcomes.append(f"{error.kind}: {error}")
    print(json.dumps({"outcomes": outcomes, "reached": reached, "lookups": lookups}))

anyio.run(main)
"""


def _run(tmp_path: Path, answers: list[list[str]], hosts: tuple[str, ...] = (), proxy: str | None = None) -> Any:
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip for a network namespace of its own")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:2\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    inside = (
        f'mount --bind "{tmp_path}/resolv.conf" /etc/resolv.conf && mount --bind "{tmp_path}/hosts" /etc/hosts'
        " && ip link set lo up && ip addr add 8.8.8.8/32 dev lo && ip addr add 8.8.4.4/32 dev lo"
        ' && exec "$@"'
    )
    namespace = ["unshare", "-Urnm", "sh", "-c", inside, "sh"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    tests = str(Path(__file__).parent.parent)
    words = [
        "env",
        f"PYTHONPATH={tests}",
        sys.executable,
        "-c",
        SCRIPT,
        json.dumps(answers),
        json.dumps(hosts),
        json.dumps(proxy),
    ]
    run = subprocess.run([*namespace, *words], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


PUBLIC, LOOPBACK = "8.8.4.4", "127.0.0.1"


def test_the_connection_goes_to_the_addresses_that_were_checked(tmp_path: Path) -> None:
    found = _run(tmp_path, [[PUBLIC], [LOOPBACK], [PUBLIC], [LOOPBACK]])
    assert LOOPBACK not in found["reached"]
    assert [each.partition(":")[0] for each in found["outcomes"]] == ["sent", "not_ours", "sent", "not_ours"]
    assert "rebind.test" in found["outcomes"][1]
    assert "storage_hosts" in found["outcomes"][1]
    assert found["lookups"] == 4, "a lookup for each connection, and none beside it"


def test_no_address_is_tried_when_one_of_them_is_private(tmp_path: Path) -> None:
    found = _run(tmp_path, [[PUBLIC, LOOPBACK]])
    assert set(found["reached"]) == {"8.8.8.8"}
    assert {each.partition(":")[0] for each in found["outcomes"]} == {"not_ours"}


def test_storage_hosts_may_name_a_private_host(tmp_path: Path) -> None:
    found = _run(tmp_path, [[LOOPBACK]], hosts=("rebind.test",))
    assert found["reached"].count(LOOPBACK) == 4
    assert set(found["outcomes"]) == {"sent"}


def test_through_a_proxy_the_addresses_known_here_decide(tmp_path: Path) -> None:
    """A proxy looks up the name itself, so it must choose the address."""
    proxy = "http://8.8.8.8:8000"  # answers each request like Wootiv
    found = _run(tmp_path, [[LOOPBACK], [PUBLIC]], proxy=proxy)
    assert ["storage_hosts" in each for each in found["outcomes"]] == [True, False, False, False]
    assert found["reached"] == 7 * ["8.8.8.8"], "the first document is not given to the proxy"
