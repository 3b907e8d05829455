"""Provide a client whose documents go through sender processes, and documents in files."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from contract.upload_items import transfer
from docferry.clock import SystemClock
from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.files.source import Opener
from docferry.model import UploadItem
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.senders.pool import START_BYTES, SenderPool


@dataclass
class Documents:
    """Documents in files of one folder."""

    root: Path

    @asynccontextmanager
    async def opened(self, *contents: bytes) -> AsyncIterator[Sequence[UploadItem]]:
        """Yield an item for each content, whose file is open as the daemon opens it while senders run."""
        opener = Opener(Root(self.root))
        async with AsyncExitStack() as stack:
            items = list[UploadItem]()
            for number, content in enumerate(contents):
                name = f"{number}.pdf"
                (self.root / name).write_bytes(content)
                known = hash_file(Root(self.root), name.encode(), md5=True)
                assert known.digests is not None
                source = opener.source(name.encode(), known.stamp, known.digests, md5=True)
                source.stays_open = True
                items.append(UploadItem(transfer(name, content), await stack.enter_async_context(source)))
            yield items


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    root = tmp_path / "documents"
    root.mkdir()
    return Documents(root)


def sender_pids(program: str = "docferry.senders") -> list[int]:
    """Return the sender processes that this process has started and that run."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if program.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(child))
    return found


async def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    with anyio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110 - what another process does sets no event
            await anyio.sleep(0.01)  # polling interval
        return
    raise AssertionError(f"{what} did not come true within {seconds} s")


@asynccontextmanager
async def running_pool(count: int, **options: Any) -> AsyncIterator[tuple[SenderPool, HttpClient]]:
    """Run a pool with ready senders, and a client; without senders this process sends everything."""
    pool = SenderPool(count)
    http = pool.http_client("Test", SystemClock(), HttpOptions(**({"timeout": 30.0} | options)))
    async with pool.run():
        try:
            pool.claimed([START_BYTES])
            if count:
                await wait_for(lambda: pool.is_running, "a sender")
            yield pool, http
        finally:
            await http.aclose()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def said_by(pid: int, file: str) -> str:
    """Return the content of a file of a process in /proc."""
    return Path(f"/proc/{pid}/{file}").read_bytes().decode("utf-8", "replace")


def open_files(pid: int) -> set[str]:
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
