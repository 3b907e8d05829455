"""Test the state folder: private, of one user, and never written through a link."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from docferry.app import last_sync, status_file
from docferry.errors import DatabaseBusy, DocferryError, StateError
from docferry.store import locks, schema
from docferry.store.state_dir import prepare_state_dir, problem_of, unusable, usable

NOBODY = 65534
OWN_FILES = ("docferry.db", "docferry.db-wal", "docferry.db-shm", "run.lock", "status.json", "status.json.new")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    prepare_state_dir(folder)
    return folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("found", [0o2770, 0o755, 0o2777, 0o705])
def test_the_mode_of_an_own_folder_is_repaired(tmp_path: Path, found: int) -> None:
    """Kubernetes' fsGroup changes the mode, on an empty volume and on one in use."""
    folder = tmp_path / "state"
    (folder / "lost+found").mkdir(parents=True)
    for _ in range(2):
        folder.chmod(found)
        prepare_state_dir(folder)
        assert mode(folder) & 0o077 == 0
        assert mode(folder) & 0o2000 == found & 0o2000


def test_files_of_an_older_release_become_private(state: Path) -> None:
    for name in (*OWN_FILES, "owners/1-a"):
        (state / name).touch()
        (state / name).chmod(0o664)
    (state / "owners").chmod(0o2775)
    prepare_state_dir(state)
    assert {mode(state / name) for name in (*OWN_FILES, "owners/1-a")} == {0o600}
    assert mode(state / "owners") & 0o077 == 0


def test_sqlite_keeps_its_locks_when_modes_are_repaired(state: Path) -> None:
    """Closing a descriptor of the database would end the locks of this process."""
    schema.prepare(state / "docferry.db")
    (state / "docferry.db").chmod(0o644)
    writer = sqlite3.connect(state / "docferry.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    prepare_state_dir(state)
    schema.prepare(state / "docferry.db")
    pid = os.fork()
    if pid == 0:  # another process, which has no part in these locks
        other = sqlite3.connect(state / "docferry.db", timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    writer.close()


def test_the_database_is_made_with_mode_600(state: Path) -> None:
    mask = os.umask(0)
    try:
        schema.prepare(state / "docferry.db")
        last_sync.write(state, 0, 1.0)
        assert status_file.write(state, {"pid": 1})
    finally:
        os.umask(mask)
    assert {mode(path) for path in state.iterdir() if path.is_file()} == {0o600}


def test_a_folder_of_other_things_is_refused_with_the_fix(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "letter.txt").touch()
    folder.chmod(0o755)
    with pytest.raises(StateError, match=f"chmod 700 {re.escape(str(folder))}"):
        prepare_state_dir(folder)
    folder.chmod(0o700)
    prepare_state_dir(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="set state_dir"):
        prepare_state_dir(tmp_path / "file" / "state")


@pytest.mark.parametrize("name", [*OWN_FILES, "owners", "spool", "last_sync.json.new", "docferry.db-journal"])
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, kind: str) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    state.mkdir(mode=0o700)
    if kind == "link":
        victim.write_text("precious")
    if kind == "fifo":
        os.mkfifo(state / name)
    else:
        (state / name).symlink_to(victim)
    with pytest.raises(StateError, match=f"{re.escape(name)} is .*: remove it"):
        prepare_state_dir(state)
    assert victim.read_text() == "precious" if kind == "link" else not victim.exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda state: status_file.write(state, {"pid": 1}),
        lambda state: last_sync.write(state, 0, 1.0),
        lambda state: locks.single_instance(state).__enter__(),
        lambda state: schema.prepare(state / "docferry.db"),
    ],
)
def test_a_link_that_comes_later_is_not_followed(state: Path, tmp_path: Path, write: Callable[[Path], object]) -> None:
    victim = tmp_path / "victim"
    for name in ("status.json", "status.json.new", "last_sync.json.new", "run.lock"):
        (state / name).symlink_to(victim)
    with suppress(StateError):
        write(state)
    assert not victim.exists()


@needs_root
def test_a_folder_of_another_user_is_refused_with_chown(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(StateError, match=f"sudo -u nobody docferry.*chown -R root {re.escape(str(folder))}"):
        prepare_state_dir(folder)
    assert list(folder.iterdir()) == []


@needs_root
@pytest.mark.parametrize("name", ["docferry.db", "run.lock", "owners", "owners/7-a"])
def test_a_file_that_root_left_is_named_with_chown(state: Path, name: str) -> None:
    (state / name).touch()
    for path in (state, *state.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.chown(state / name, 0, 0)
    for above in state.parents:
        above.chmod(above.stat().st_mode | 0o111)
    os.seteuid(NOBODY)
    try:
        assert f"chown -R nobody {state}" in (problem_of(state) or "")
    finally:
        os.seteuid(0)


KINDS = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ELOOP")]


@pytest.mark.parametrize("number", KINDS)
def test_each_error_of_the_system_names_folder_and_fix(tmp_path: Path, number: int) -> None:
    error = OSError(number, os.strerror(number), "x")
    said = unusable(tmp_path, error)
    assert str(tmp_path) in str(said)
    assert any(fix in str(said) for fix in ("df -i", "mount it", "chown -R", "set state_dir"))
    assert isinstance(said, DatabaseBusy) == (number in (errno.ENOSPC, errno.EDQUOT))
    with pytest.raises(DocferryError), usable(tmp_path):
        raise error


def test_what_cannot_be_opened_counts_as_alive(state: Path) -> None:
    """An owner is dead only on proof; otherwise its transfers would be sent twice."""
    (state / "owners" / "7-a").symlink_to(state / "owners" / "7-a")
    assert locks.dead_owners(state, {"7-a", "8-b"}, "me") == {"8-b"}


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "nothing", '"\\ud800"', "", "\0"])
def test_a_damaged_status_file_is_no_error(state: Path, text: str) -> None:
    with locks.single_instance(state):
        (state / "status.json").write_text(text)
        found = status_file.read_status(state)
    assert found is not None
    assert found["pid"] == os.getpid()
    (state / "last_sync.json").write_text(text)
    assert last_sync.read(state) is None


def test_a_number_beyond_a_float_is_no_error(state: Path) -> None:
    (state / "last_sync.json").write_text(f'{{"ended": 1{"0" * 400}, "exit_code": 0, "succeeded": 1}}')
    assert last_sync.read(state) is None
