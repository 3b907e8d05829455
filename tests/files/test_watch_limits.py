"""Test the watcher in namespaces with limits and mounts of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import os, subprocess, sys
from pathlib import Path
import anyio
from docferry.clock import SystemClock
from docferry.files.safe_open import Root
from docferry.files.watch.watcher import Armed, Degraded, Lost, Watcher
root, events = Path(sys.argv[1]), []
async def until(kind, seconds=60):
    with anyio.fail_after(seconds):
        while not any(isinstance(event, kind) for event in events):
            await anyio.sleep(0.02)
    found = next(event for event in events if isinstance(event, kind))
    events.clear()
    return found
async def listen():
    async with Watcher(SystemClock()).watch(Root(root)) as found:
        async for event in found:
            events.append(event)
async def main():
    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await scenario()
        group.cancel_scope.cancel()
"""


def in_own_namespace(scenario: str, root: Path, *, limit: str = "") -> str:
    probe = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here, which give limits and mounts of one's own")
    program = f"{PREAMBLE}\nasync def scenario():\n{scenario}\nanyio.run(main)\nprint('as it should be')\n"
    setting = f"echo {limit.split('=')[1]} > /proc/sys/user/{limit.split('=')[0]} && " if limit else ""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f'{setting}exec "$0" -c "$1" "$2"', sys.executable, program, root],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.endswith("as it should be\n"), done.stderr
    return done.stdout


def test_too_many_folders_to_watch(root: Path) -> None:
    for number in range(60):
        (root / str(number)).mkdir()
    said = in_own_namespace("    print((await until(Degraded)).reason)", root, limit="max_inotify_watches=50")
    assert "no inotify watch left" in said


def test_the_watch_limit_reached_at_run_time(root: Path) -> None:
    """W4: the kernel does not report a folder without a watch, so docferry detects it, and its end."""
    scenario = """
    await until(Armed)
    for number in range(60):
        (root / str(number)).mkdir()
    print((await until(Degraded)).reason)
    for number in range(60):
        (root / str(number)).rmdir()
    await until(Armed)
"""
    assert "sysctl fs.inotify.max_user_watches" in in_own_namespace(scenario, root, limit="max_inotify_watches=50")


def test_no_instance_to_be_had(root: Path) -> None:
    """W5."""
    said = in_own_namespace("    print((await until(Degraded)).reason)", root, limit="max_inotify_instances=0")
    assert "max_user_instances" in said


def test_mounts_come_and_go(root: Path) -> None:
    """W7: mounted over, and unmounted."""
    scenario = """
    await until(Armed)
    subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
    await until(Lost, 5)
    await until(Armed, 5)
    (root / "on-it.pdf").touch()
    subprocess.run(["umount", root], check=True)
    await until(Lost, 5)
    await until(Armed, 5)
"""
    in_own_namespace(scenario, root)
