"""Test locked, lost, corrupt and foreign databases: rows D9 to D14 and D16 of the catalogue."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import pytest

from app_env import AppEnv, digest, until
from crash.kill_harness import verify_remote
from crash.process_pool import ProcessPool
from docferry.errors import StateError
from docferry.model import Gate, Reason
from docferry.store import state_dir
from docferry.store.connection import Transaction
from docferry.store.gates import Gates
from docferry.store.opening import open_database
from docferry.store.statement import Sql
from faults.conftest import FULL


@pytest.mark.anyio
async def test_d9_a_foreign_write_lock_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """The writer waits for the lock in a thread; the event loop continues, and the write follows."""
    path = tmp_path / "docferry.db"
    async with open_database(path) as database, anyio.create_task_group() as group:
        with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            done = anyio.Event()

            async def write() -> None:
                await Gates(database).close(Gate("codat", Reason.KEY, "", 1.0, 1, 1.0))
                done.set()

            group.start_soon(write)
            lags = []
            until_ = anyio.current_time() + (20.0 if FULL else 3.0)
            while (began := anyio.current_time()) < until_:
                await anyio.sleep(0.01)  # the measurement: how late the loop runs this task again
                lags.append(anyio.current_time() - began - 0.01)
            assert not done.is_set()
            assert sorted(lags)[len(lags) * 9 // 10] < 0.1
            stranger.execute("ROLLBACK")
        with anyio.fail_after(40):
            await done.wait()
        assert "codat" in await Gates(database).all()


def test_d9_the_daemon_outlives_a_foreign_lock(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """A document dropped during a foreign lock is sent only after its row is committed."""
    folder = app_env.upload("bank")
    with process_pool.daemon(app_env) as daemon:
        with closing(sqlite3.connect(app_env.state / "docferry.db", isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            (folder / "a.pdf").write_bytes(b"a")
            time.sleep(20 if FULL else 3)  # so long the lock is held
            assert not app_env.stored()
            assert not daemon.ended()
            stranger.execute("ROLLBACK")
        until(app_env.stored)
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


@pytest.mark.anyio
async def test_d10_a_reader_that_never_ends(tmp_path: Path) -> None:
    """The log grows while the reader runs: an alarm reports it, and ends with the reader."""
    path = tmp_path / "docferry.db"
    async with open_database(path) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM transfer").fetchall()
            assert database.alarm is None
            for number in range(70):
                await database.write(partial(_insert, number=number, size=1 << 20))
            assert "fuser -v" in (database.alarm or "")
            reader.execute("ROLLBACK")
        for number in range(3):
            await database.write(partial(_insert, number=100 + number))
        with closing(sqlite3.connect(path)) as read:
            assert read.execute("SELECT count(*) FROM cursor").fetchone() == (73,)


@pytest.mark.anyio
async def test_d11_cancelled_in_a_commit(tmp_path: Path) -> None:
    """A cancelled task still learns the result of its commit: reported rows exist, once."""
    told: list[int] = []
    async with open_database(tmp_path / "docferry.db") as database:
        jitter = random.Random(11)  # noqa: S311 - the same moments for the same seed

        async def write(number: int) -> None:
            await database.write(lambda transaction: _insert(transaction, number))
            told.append(number)

        for number in range(10_000 if FULL else 300):
            with anyio.move_on_after(jitter.uniform(0, 0.004)):
                await write(number)
    with closing(sqlite3.connect(tmp_path / "docferry.db")) as read:
        rows = Counter(row[0] for row in read.execute("SELECT CAST(value AS INTEGER) FROM cursor"))
    assert rows == Counter(told)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_d12_the_database_goes_away(app_env: AppEnv, process_pool: ProcessPool, how: str) -> None:
    """The daemon stops within 5 s with exit code 2, and names the fix."""
    folder = app_env.upload("bank")
    database = app_env.state / "docferry.db"
    (folder / "a.pdf").write_bytes(b"a")
    with process_pool.daemon(app_env) as daemon:
        until(app_env.stored)
        copy = app_env.root / "copy.db"
        shutil.copy(database, copy)
        began = time.monotonic()
        database.unlink()
        if how == "replaced":
            copy.rename(database)
        assert daemon.wait(30) == 2
        assert time.monotonic() - began < (5 if FULL else 25)  # the load of all tests decides the time
        assert how in daemon.text()
        assert "--adopt" in daemon.text()
        assert "Traceback" not in daemon.text()


@pytest.mark.parametrize("seed", range(20 if FULL else 5))
@pytest.mark.parametrize("words", [("run",), ("sync", "--json")], ids=["run", "sync"])
def test_d13_the_database_is_corrupt(
    app_env: AppEnv, process_pool: ProcessPool, words: tuple[str, ...], seed: int
) -> None:
    """Nothing is sent, and the message names the recovery."""
    folder = app_env.upload("bank")
    for number in range(30):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    process_pool.sync(app_env)
    (folder / "new.pdf").write_bytes(b"new")
    before = app_env.simulator.requests.total()
    database = app_env.state / "docferry.db"
    broken = bytearray(database.read_bytes())
    jitter = random.Random(seed)  # noqa: S311 - the same bytes for the same seed
    for _ in range(1_000):
        broken[jitter.randrange(len(broken))] ^= 1 << jitter.randrange(8)
    database.write_bytes(broken)
    child = process_pool.spawn(app_env, *words)
    assert child.wait(30) == 2
    assert "docferry sync --adopt" in child.text()
    assert "Traceback" not in child.text()
    assert app_env.simulator.requests.total() == before


def test_d14_the_database_is_lost(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """`sync --adopt` rebuilds the queue from folders and remote: 0 sent again, new files are sent."""
    folder, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv", object_name='"{name}"')
    for number in range(20):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        (scans / f"s{number}.pdf").write_bytes(b"s%d" % number)
    process_pool.sync(app_env)
    for path in app_env.state.glob("docferry.db*"):
        path.unlink()
    (folder / "new.pdf").write_bytes(b"new")
    made = app_env.stored() + Counter({("new.pdf", digest(b"new")): 1})
    before = app_env.simulator.requests["codat.upload"]
    for _ in range(5):
        if not process_pool.sync(app_env, "--adopt", code=None)["due"]:
            break
    assert app_env.simulator.requests["codat.upload"] == before + 1
    verify_remote(app_env, made)
    assert process_pool.sync(app_env)["uploaded"] == 0


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705])
def test_d16_a_folder_of_other_things_that_others_can_read(
    app_env: AppEnv, process_pool: ProcessPool, mode: int
) -> None:
    """The folder is refused with the fix: changing its mode would affect its other users."""
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.state.mkdir()
    (app_env.state / "letter.txt").touch()
    app_env.state.chmod(mode)
    for words in (("run",), ("sync", "--json")):
        child = process_pool.spawn(app_env, *words)
        assert child.wait() == 2
        assert f"chmod 700 {app_env.state}" in child.text()
    assert not app_env.stored()
    app_env.state.chmod(0o700)
    assert process_pool.sync(app_env)["uploaded"] == 1


def test_d16_what_docferry_makes_is_for_itself_alone(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """The state folder is created with mode 700."""
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    process_pool.sync(app_env)
    assert app_env.state.stat().st_mode & 0o777 == 0o700


def test_d16_a_database_on_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, with the cure. No share can be mounted here, so the kind of this disk is counted among them."""
    monkeypatch.setattr(state_dir, "NETWORK_FILESYSTEMS", {state_dir.filesystem_type(tmp_path)})
    with pytest.raises(StateError, match="set state_dir to a local disk"):
        state_dir.prepare_state_dir(tmp_path / "state")


# -- helpers of the rows ----------------------------------------------------------------------------------------------


def _insert(transaction: Transaction, number: int, size: int = 0) -> None:
    transaction.execute(
        Sql("INSERT INTO cursor (key, value, updated) VALUES (:key, :value, 0)"),
        {"key": f"test/{number}", "value": str(number).ljust(size)},
    )
