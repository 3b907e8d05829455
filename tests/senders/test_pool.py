"""Test when senders start and stop, and which files they can read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from contract.raw_server import serving
from docferry.clock import SystemClock
from docferry.remotes.http import HttpOptions, PlainBody
from docferry.senders import pool as pool_module
from docferry.senders.pool import START_BYTES, START_REQUESTS, SenderPool, sender_count
from senders.conftest import (
    Documents,
    is_alive,
    open_files,
    running_pool,
    said_by,
    sender_pids,
    wait_for,
)
from senders.test_requests import SMALL, answer

pytestmark = pytest.mark.anyio


def test_auto_leaves_two_cores_to_the_daemon() -> None:
    cores = len(os.sched_getaffinity(0))
    assert sender_count("auto") == max(0, min(4, cores - 2))
    assert [sender_count(number) for number in (0, 1, 32)] == [0, 1, 32]


@pytest.mark.parametrize("claims", [[START_BYTES], [40_000] * START_REQUESTS])
async def test_senders_start_when_much_is_due(claims: list[int]) -> None:
    pool = SenderPool(2)
    pool.http_client("Test", SystemClock(), HttpOptions())
    async with pool.run():
        pool.claimed(claims[1:])
        await anyio.wait_all_tasks_blocked()
        assert not sender_pids()
        pool.claimed(claims[:1])
        await wait_for(lambda: len(sender_pids()) == 2, "two senders")
    assert not sender_pids()


async def test_errors_pass_through_the_pool_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        async with SenderPool(1).run():
            raise ZeroDivisionError


async def test_no_sender_starts_without_leave() -> None:
    pool = SenderPool(0)
    async with pool.run():
        pool.claimed([START_BYTES])
        await anyio.wait_all_tasks_blocked()
        assert not sender_pids()


async def test_idle_senders_stop_and_start_again(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_pool(1) as (pool, http), documents.opened(SMALL) as (item,), serving(answer) as server:
        monkeypatch.setattr(pool_module, "IDLE_S", 0.1)
        await wait_for(lambda: not sender_pids(), "the end of the idle sender")
        monkeypatch.undo()
        assert (await http.call("PUT", server.url, body=PlainBody(item))).status == 200
        pool.claimed([START_BYTES])
        await wait_for(lambda: pool.is_running, "another sender")


async def test_a_dead_sender_is_replaced_after_a_growing_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "CHECK_S", 0.01)
    monkeypatch.setattr(pool_module, "STALLED_CHECKS", 10_000)
    monkeypatch.setattr(pool_module, "PAUSE_S", 0.2)
    async with running_pool(1) as (pool, _):
        pauses = []
        for _ in range(2):
            (pid,) = sender_pids()
            killed = anyio.current_time()
            os.kill(pid, signal.SIGKILL)
            await wait_for(lambda: not pool.is_running, "the pool's notice")
            await wait_for(lambda: pool.is_running, "another sender")
            pauses.append(anyio.current_time() - killed)
        assert pauses[0] >= 0.2
        assert pauses[1] >= 0.4


async def test_a_sender_that_stands_still_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_pool(1):
        (pid,) = sender_pids()
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(pool_module, "CHECK_S", 0.05)
        monkeypatch.setattr(pool_module, "STALLED_CHECKS", 5)
        await wait_for(lambda: not is_alive(pid), "the end of the stopped sender")


async def test_a_sender_has_nothing_but_its_channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CODAT_API_KEY", "WOOTIV_API_KEY", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "a-secret-that-nobody-else-gets")
    with (tmp_path / "open").open("w"):
        async with running_pool(1, headers={"X-Key": "a-secret-of-the-headers"}):
            (pid,) = sender_pids()
            assert "secret" not in said_by(pid, "cmdline") + said_by(pid, "environ")
            assert "NOTIFY_SOCKET" not in said_by(pid, "environ")
            assert not [name for name in open_files(pid) if name.startswith(str(tmp_path))]


async def test_a_sender_ignores_the_signals_of_its_group() -> None:
    async with running_pool(1):
        (pid,) = sender_pids()
        assert os.getpgid(pid) != os.getpgid(0)
        ignored = int(said_by(pid, "status").partition("SigIgn:")[2].split()[0], 16)
        assert all(ignored & 1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def test_the_sandbox_leaves_the_systems_files_readable_alone(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca.pem").write_text("x")
    program = f"""
import pathlib, socket
from docferry.senders.sandbox import restrict_files
folder = pathlib.Path({str(tmp_path)!r})
held = open(folder / "state")
if not restrict_files([folder / "tls"]):
    raise SystemExit(77)
assert held.read() == "x"
assert (folder / "tls" / "ca.pem").read_text() == "x"
assert pathlib.Path("/etc/hosts").read_text()
assert socket.getaddrinfo("localhost", 80)
import certifi, wave
assert pathlib.Path(certifi.where()).read_bytes()
for attempt in (
    lambda: (folder / "state").read_text(),
    lambda: (folder / "tls" / "new").write_text("x"),
    lambda: (folder / "new").mkdir(),
    lambda: (folder / "state").unlink(),
    lambda: list(folder.iterdir()),
):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("a file was reached")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no Landlock")
    assert done.returncode == 0, done.stderr
