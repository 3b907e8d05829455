"""File locks: living owners, the only daemon, and the state folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from docferry.errors import AlreadyRunning
from docferry.store import locks
from docferry.store.state_dir import prepare_state_dir

HOLDS = """
import sys
from pathlib import Path
from docferry.store import locks
folder = Path(sys.argv[1])
with locks.lease_owner(folder) as name, locks.single_instance(folder):
    print(name, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], str]:
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    return program, program.stdout.readline().strip()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    prepare_state_dir(folder)
    return folder


def test_a_second_run_is_refused_while_the_first_is_alive(state: Path) -> None:
    program, name = holder(state)
    try:
        with pytest.raises(AlreadyRunning, match=f"pid {program.pid}"), locks.single_instance(state):
            pass
        assert locks.running(state) == program.pid
        assert locks.dead_owners(state, {name}, "me") == set()
    finally:
        program.kill()
        program.communicate()
    assert locks.running(state) is None
    assert locks.dead_owners(state, {name, "me"}, "me") == {name}
    with locks.single_instance(state):
        assert locks.running(state) == os.getpid()
    locks.remove_files(state, {name})
    assert list((state / "owners").iterdir()) == []


def test_an_owner_is_dead_as_soon_as_its_process_ends(state: Path) -> None:
    program, name = holder(state)
    program.communicate()
    assert locks.dead_owners(state, {name}, "me") == {name}


def test_a_check_for_a_running_daemon_does_not_refuse_one(state: Path) -> None:
    (state / "run.lock").touch()
    ended = threading.Event()

    def looks() -> None:
        while not ended.is_set():
            locks.running(state)

    watcher = threading.Thread(target=looks)
    watcher.start()
    try:
        for _ in range(300):
            with locks.single_instance(state):
                pass
    finally:
        ended.set()
        watcher.join()
