"""Test that a kill at any step of `put` loses and doubles no document."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from app_env import AppEnv, digest, files_below
from docferry.files import outbox

pytestmark = pytest.mark.anyio


ROOT = Path(__file__).parents[2]


def files(app_env: AppEnv) -> list[Path]:
    """Return the documents in all outboxes, but the half stored ones of killed processes, which are swept later."""
    return [path for path in files_below(app_env.state / "outbox") if outbox.STAGING_PREFIX not in str(path)]


#: Put two versions of a document, in a process of its own for each step at which it is killed.
_PUT = """
import os, signal, sys
import anyio
from docferry.client import Queue

config, mapping = sys.argv[1:]
STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "shutil.rmtree")
steps = 0

def kill(event, arguments):
    global steps
    if event in STEPS:
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Queue.open(config) as queue:
        sys.addaudithook(kill)
        for number in range(2):
            await queue.put(mapping, f"{kill_at}.pdf", b"%d of %d" % (number, kill_at))
            os.write(1, b"%d %d\\n" % (kill_at, number))

kill_at = 0
while True:
    kill_at += 1
    child = os.fork()
    if not child:
        anyio.run(main)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.parametrize("remote", ["codat", "wootiv"])
def test_a_kill_at_every_step_loses_and_doubles_nothing(app_env: AppEnv, remote: str) -> None:
    """Documents whose `put` returned are there once; of an object at Wootiv the last of them, or a later one."""
    app_env.upload("acme", remote)
    command = [sys.executable, "-c", _PUT, str(app_env.write_config()), "acme"]
    done = subprocess.run(command, env=app_env.environment, stdout=subprocess.PIPE, timeout=100, check=True)
    returned = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    rounds = returned[-1][0]
    assert rounds > 10
    app_env.sync()
    stored = app_env.stored()
    contents = {digest(b"%d of %d" % (number, at)): (at, number) for at in range(1, rounds + 1) for number in range(2)}
    there = [contents[sha256] for _, sha256 in stored.elements()]
    assert len(there) == len(set(there))
    if remote == "codat":
        assert set(returned) <= set(there)
    else:
        assert all(any((at, later) in there for later in range(number, 2)) for at, number in returned)
    assert not files(app_env)


def test_a_version_replaces_the_earlier_one_though_its_put_was_killed(app_env: AppEnv) -> None:
    """The process was killed after it stored the document and before it removed the earlier one, which is queued."""
    app_env.upload("scans", "wootiv")
    (app_env.root / "a.pdf").write_bytes(b"one")
    assert app_env.run("put", "scans", str(app_env.root / "a.pdf")).returncode == 0
    (first,) = files(app_env)
    outbox.store(first.parents[1], PurePosixPath("a.pdf"), [b"two"])
    assert app_env.sync()["uploaded"] == 1
    assert app_env.stored() == {("a.pdf", digest(b"two")): 1}
    assert not files(app_env)


def test_what_a_killed_process_staged_is_swept(tmp_path: Path) -> None:
    stale, young = tmp_path / f"{outbox.STAGING_PREFIX}1", tmp_path / f"{outbox.STAGING_PREFIX}2"
    for folder in (stale, young):
        folder.mkdir()
        (folder / "a.pdf").write_bytes(b"half")
    os.utime(stale, (1, 1))
    (tmp_path / "0123456789ab-01" / "deep" / "er").mkdir(parents=True)
    outbox.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
