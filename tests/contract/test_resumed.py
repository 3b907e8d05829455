"""Test resumed downloads against a server that sends other parts than requested."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes import download
from docferry.remotes.http import HttpClient, HttpOptions

pytestmark = pytest.mark.anyio
CONTENT = bytes(range(256)) * 4


def answers(door: socket.socket, *said: tuple[str, int, int]) -> None:
    """Status and range of each answer; the first two break off."""
    for number, (status, start, sent) in enumerate(said):
        line, _ = door.accept()
        with line:
            line.recv(65536)
            part = f"Content-Range: bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}\r\n" if status == "206" else ""
            head = f'HTTP/1.1 {status} x\r\nETag: "v1"\r\n{part}Content-Length: {len(CONTENT) - start}\r\n\r\n'
            line.sendall(head.encode() + CONTENT[start : start + sent if number < 2 else None])


async def test_a_part_that_was_not_asked_for_is_not_kept_when_it_breaks_off(tmp_path: Path) -> None:
    """Without an MD5 as ETag only the length is compared: the next part would follow wrong data."""
    to = tmp_path / "latest"
    with socket.create_server(("127.0.0.1", 0)) as door:
        tale = (("200", 0, 100), ("206", 0, 100), ("206", 200, 0), ("200", 0, 0))
        threading.Thread(target=answers, args=(door, *tale), daemon=True).start()
        http = HttpClient("S3", SystemClock(), HttpOptions(timeout=5))
        url = f"http://127.0.0.1:{door.getsockname()[1]}/x"
        for _ in range(4):
            try:
                await download.fetch(http, url, to, download.Wanted(), 0.0)
            except RemoteError:
                continue
            break
        await http.aclose()
    assert to.read_bytes() == CONTENT
