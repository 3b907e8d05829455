"""Faults of processes, database and clock, caused for real: rows D1 to D17 of the catalogue."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection, text

from crash.nursery import KILLED, Life, Nursery
from crash.siege import ARROWS, Dropper, Siege, at_arrow, judge
from docferry.errors import StateError
from docferry.model import Gate, Reason
from docferry.simulator import Fault
from docferry.store import schema, tenure
from docferry.store.database import open_database
from docferry.store.gates import Gates
from ground import Ground, digest, until

#: Bigger, for an hour when the machine is free.
FULL = bool(os.environ.get("DOCFERRY_FULL"))


def test_d1_killed_at_random(ground: Ground, nursery: Nursery) -> None:
    """kill -9 of daemon and `sync` at random, documents dropped all the time: 0 lost, 0 doubled."""
    folders = {"bank": ground.upload("bank"), "scans": ground.upload("scans", "wootiv", object_name='"{name}"')}
    siege = Siege(ground, nursery, seed=1)
    with Dropper(folders, seed=2, most=20_000, pause=0.02 if FULL else 0.08) as dropper:
        siege.storm(200 if FULL else 40)
    siege.peace()
    judge(ground, dropper.made)
    assert len(dropper.made) > 40


@pytest.mark.parametrize("arrow", ARROWS)
def test_d2_killed_at_every_arrow(ground: Ground, nursery: Nursery, arrow: str) -> None:
    """kill -9 before, inside and after each move, several in a row: 0 lost, 0 doubled."""
    kills, made = at_arrow(ground, nursery, arrow, in_a_row=5 if FULL else 2)
    judge(ground, made)
    assert kills >= 2


def test_d3_power_cut(tmp_path: Path) -> None:
    """Every write and sync is recorded; cut at any moment, with any of what was not synced yet there, gone or torn, the
    database is sound and has all that was told to be written."""
    database, log = tmp_path / "docferry.db", tmp_path / "log"
    schema.prepare(database)
    before = database.read_bytes()
    environment = {**os.environ, "LD_PRELOAD": str(_compiled(tmp_path, "recorded_disk")), "RECORDED_DISK": str(log)}
    log.touch()
    program = Path(__file__).parent.parent / "crash" / "acknowledger.py"
    subprocess.run([sys.executable, str(program), str(database), "100"], env=environment, check=True, timeout=100)
    records = list(_records(log.read_bytes()))
    told = [name for what, name, *_ in records if what == "ack"]
    assert len(told) == 800
    assert any(what == "sync" for what, *_ in records)
    dice = random.Random(3)  # noqa: S311 - the same cuts for the same seed
    for number in range(2_000 if FULL else 60):
        cut = dice.randrange(len(records))
        place = tmp_path / f"cut{number}"
        place.mkdir()
        _play(records[:cut], before, place, dice)
        promised = {name for what, name, *_ in records[:cut] if what == "ack"}
        with closing(sqlite3.connect(place / "docferry.db")) as read:
            assert read.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = {row[0] for row in read.execute("SELECT subject FROM bookmark")}
        assert promised <= found, cut
        shutil.rmtree(place)


def test_d4_the_disk_under_the_database_is_full(ground: Ground, nursery: Nursery) -> None:
    """Pause, say so in `status`, resume alone when there is room; nothing is sent that was not written down."""
    with _small_disk(ground.state, "3m"):
        folder = ground.upload("bank")
        with nursery.daemon(ground) as daemon:
            filler = ground.state / "filler"
            _fill(filler)
            (folder / "a.pdf").write_bytes(b"a")
            until(lambda: "cannot be written" in ground.run("status", "--json").stdout, 60, "status saying so")
            assert ground.simulator.requests["codat.upload"] == 0
            assert not daemon.ended()
            filler.unlink()
            until(ground.stored, 60, "the document arriving once there is room")
        assert ground.stored() == {("a.pdf", digest(b"a")): 1}


def test_d4_a_pass_on_a_full_disk_ends_with_75(ground: Ground, nursery: Nursery) -> None:
    """A person waits for `sync`: it gives up in the end, sends nothing, and says what to do."""
    with _small_disk(ground.state, "3m"):
        folder = ground.upload("bank")
        nursery.sync(ground)
        _fill(ground.state / "filler")
        (folder / "a.pdf").write_bytes(b"a")
        life = nursery.bear(ground, "sync", "--json", patience=2.0)
        assert life.wait() == 75
        assert "nothing is lost" in life.text()
        assert "Traceback" not in life.text()
        assert ground.simulator.requests["codat.upload"] == 0
        (ground.state / "filler").unlink()
        assert nursery.sync(ground)["uploaded"] == 1


def test_d4_a_stop_on_a_full_disk_is_a_stop(ground: Ground, nursery: Nursery) -> None:
    """SIGTERM ends the daemon with 0 though nothing can be written down any more; nothing is lost or doubled."""
    with _small_disk(ground.state, "3m"):
        folder = ground.upload("bank")
        daemon = nursery.bear(ground, "run").ready()
        _fill(ground.state / "filler")
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: "cannot be written" in daemon.text(), 60, "the log saying so")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(40) == 0
        (ground.state / "filler").unlink()
        nursery.drained(ground)
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}


def test_d5_the_disk_gives_errors(ground: Ground, nursery: Nursery) -> None:
    """Some writes and syncs of the database fail with EIO: waited out, never a false "sent", all arrives once."""
    ground.simulator.switches.idempotency = False
    folder = ground.upload("bank")
    ground.write_config()
    made: Counter[tuple[str, str]] = Counter()
    for number in range(200 if FULL else 40):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        made[f"{number}.pdf", digest(b"%d" % number)] += 1
    unsound = {**ground.environment, "LD_PRELOAD": str(_compiled(ground.root, "unsound_disk")), "UNSOUND_DISK": "100"}
    unsound["UNSOUND_DISK_LOG"] = str(ground.root / "struck")
    codes = []
    for _ in range(6):
        done = subprocess.run(
            ground.command("sync", "--json"), env=unsound, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        codes.append(done.returncode)
    assert set(codes) <= {0, 2, 75}, codes
    assert (ground.root / "struck").stat().st_size > 3
    sent = {row["path"].rsplit("/", 1)[1] for row in ground.rows() if row["state"] == "sent"}
    assert sent <= {name for name, _ in ground.stored()}
    nursery.drained(ground)
    judge(ground, made)


def test_d6_an_old_sqlite_and_a_second_checkpointer(ground: Ground, nursery: Nursery) -> None:
    """Nothing is lost while somebody else checkpoints all the time; `check` names a version with the defect."""
    folder = ground.upload("bank")
    made: Counter[tuple[str, str]] = Counter()
    with nursery.daemon(ground), _checkpointer(ground.state / "docferry.db") as rounds:
        for number in range(300 if FULL else 60):
            (folder / f"{number}.pdf").write_bytes(b"%d" % number)
            made[f"{number}.pdf", digest(b"%d" % number)] += 1
        until(lambda: ground.stored() == made, 60, "all arriving")
    assert rounds[0] > 10
    nursery.drained(ground)
    judge(ground, made)
    if sqlite3.sqlite_version_info < (3, 44, 6):
        assert "WAL reset" in ground.run("check", "--offline").stdout


def test_d7_one_sender_for_each_document(ground: Ground, nursery: Nursery) -> None:
    """Daemon and passes that overlap all the time: each document once."""
    ground.settings |= {"settle": '"50ms"', "log_level": '"info"'}
    folders = {"bank": ground.upload("bank"), "scans": ground.upload("scans", "wootiv", object_name='"{name}"')}
    ground.simulator.switches.idempotency = False
    starts = 1_000 if FULL else 40
    with nursery.daemon(ground), Dropper(folders, seed=7, most=10_000, pause=0.03) as dropper:
        lives: list[Life] = []
        for _ in range(starts):
            lives = [life for life in lives if not life.ended()]
            if len(lives) == 4:
                assert lives.pop(0).wait() in (0, 75)
            lives.append(nursery.bear(ground, "sync", "--json"))
        for life in lives:
            assert life.wait() in (0, 75)
    nursery.drained(ground)
    judge(ground, dropper.made)
    assert Counter(each.name for each in ground.simulator.stored).most_common(1)[0][1] == 1


def test_d8_a_second_daemon_and_a_stale_lock(ground: Ground, nursery: Nursery) -> None:
    """The second is refused with the pid of the first; the lock of a killed one is taken over."""
    ground.upload("bank")
    ground.settings["log_level"] = '"info"'
    first = nursery.bear(ground, "run").ready()
    second = nursery.bear(ground, "run")
    assert second.wait() == 2
    assert f"pid {first.pid}" in second.text()
    first.kill()
    with nursery.daemon(ground) as third:
        assert not third.ended()


@pytest.mark.anyio
async def test_d9_a_foreign_write_lock_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """The writer waits for a lock in a thread; everything else goes on, and the write is made afterwards."""
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
                await anyio.sleep(0.01)  # what is measured: how late the loop comes round
                lags.append(anyio.current_time() - began - 0.01)
            assert not done.is_set()
            assert sorted(lags)[len(lags) * 9 // 10] < 0.1
            stranger.execute("ROLLBACK")
        with anyio.fail_after(40):
            await done.wait()
        assert "codat" in await Gates(database).all()


def test_d9_the_daemon_outlives_a_foreign_lock(ground: Ground, nursery: Nursery) -> None:
    """A document dropped under a foreign lock is not sent before it is written down, and arrives afterwards."""
    folder = ground.upload("bank")
    with nursery.daemon(ground) as daemon:
        with closing(sqlite3.connect(ground.state / "docferry.db", isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            (folder / "a.pdf").write_bytes(b"a")
            time.sleep(20 if FULL else 3)  # so long the lock is held
            assert not ground.stored()
            assert not daemon.ended()
            stranger.execute("ROLLBACK")
        until(ground.stored, 60)
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}


@pytest.mark.anyio
async def test_d10_a_reader_that_never_ends(tmp_path: Path) -> None:
    """The log grows, since what somebody reads is kept: there is an alarm, and it ends with the reader."""
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
            assert read.execute("SELECT count(*) FROM bookmark").fetchone() == (73,)


@pytest.mark.anyio
async def test_d11_cancelled_in_a_commit(tmp_path: Path) -> None:
    """Whoever is cancelled around a commit still learns what happened: what was told as written is there, once."""
    told: list[int] = []
    async with open_database(tmp_path / "docferry.db") as database:
        dice = random.Random(11)  # noqa: S311 - the same moments for the same seed

        async def write(number: int) -> None:
            await database.write(lambda connection: _insert(connection, number))
            told.append(number)

        for number in range(10_000 if FULL else 300):
            with anyio.move_on_after(dice.uniform(0, 0.004)):
                await write(number)
    with closing(sqlite3.connect(tmp_path / "docferry.db")) as read:
        rows = Counter(row[0] for row in read.execute("SELECT CAST(mark AS INTEGER) FROM bookmark"))
    assert rows == Counter(told)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_d12_the_database_goes_away(ground: Ground, nursery: Nursery, how: str) -> None:
    """The daemon stops within 5 s with 2 and says what happened and what to do."""
    folder = ground.upload("bank")
    database = ground.state / "docferry.db"
    (folder / "a.pdf").write_bytes(b"a")
    with nursery.daemon(ground) as daemon:
        until(ground.stored)
        copy = ground.root / "copy.db"
        shutil.copy(database, copy)
        began = time.monotonic()
        database.unlink()
        if how == "replaced":
            copy.rename(database)
        assert daemon.wait(30) == 2
        assert time.monotonic() - began < 5
        assert how in daemon.text()
        assert "--adopt" in daemon.text()
        assert "Traceback" not in daemon.text()


@pytest.mark.parametrize("seed", range(20 if FULL else 5))
@pytest.mark.parametrize("words", [("run",), ("sync", "--json")], ids=["run", "sync"])
def test_d13_the_database_is_corrupt(ground: Ground, nursery: Nursery, words: tuple[str, ...], seed: int) -> None:
    """Nothing is sent, and the way to recover is told."""
    folder = ground.upload("bank")
    for number in range(30):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    nursery.sync(ground)
    (folder / "new.pdf").write_bytes(b"new")
    before = ground.simulator.requests.total()
    database = ground.state / "docferry.db"
    broken = bytearray(database.read_bytes())
    dice = random.Random(seed)  # noqa: S311 - the same bytes for the same seed
    for _ in range(1_000):
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
    database.write_bytes(broken)
    life = nursery.bear(ground, *words)
    assert life.wait(30) == 2
    assert "docferry sync --adopt" in life.text()
    assert "Traceback" not in life.text()
    assert ground.simulator.requests.total() == before


def test_d14_the_database_is_lost(ground: Ground, nursery: Nursery) -> None:
    """`sync --adopt` rebuilds it from the folders and the remote: 0 sent again, what is new is sent."""
    folder, scans = ground.upload("bank"), ground.upload("scans", "wootiv", object_name='"{name}"')
    for number in range(20):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        (scans / f"s{number}.pdf").write_bytes(b"s%d" % number)
    nursery.sync(ground)
    for path in ground.state.glob("docferry.db*"):
        path.unlink()
    (folder / "new.pdf").write_bytes(b"new")
    made = ground.stored() + Counter({("new.pdf", digest(b"new")): 1})
    before = ground.simulator.requests["codat.upload"]
    for _ in range(5):
        if not nursery.sync(ground, "--adopt", code=None)["due"]:
            break
    assert ground.simulator.requests["codat.upload"] == before + 1
    judge(ground, made)
    assert nursery.sync(ground)["uploaded"] == 0


@pytest.mark.parametrize("before", ["", "0001"], ids=["fresh", "first_schema"])
def test_d15_killed_in_a_migration(ground: Ground, nursery: Nursery, before: str) -> None:
    """Old or new schema, never between: killed at each statement, again and again on the same file."""
    ground.upload("bank")
    database = ground.state / "docferry.db"
    if before:
        ground.state.mkdir(mode=0o700)
        schema.migrate(database, before)
    whole: dict[str, frozenset[str]] = {}
    for nth in range(1, 200, 1 if FULL else 3):
        life = nursery.bear(ground, "sync", "--json", fate=("statement", nth))
        code = life.wait()
        with closing(sqlite3.connect(database)) as read:
            made = frozenset(row[0] for row in read.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
            assert read.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            if made:
                (found,) = read.execute("SELECT version_num FROM alembic_version").fetchone()
                assert whole.setdefault(found, made) == made
        if code == 0:
            break
        assert code == KILLED
    assert nth > 15
    assert list(whole)[-1] == schema.HEAD
    with closing(sqlite3.connect(database)) as read:
        assert read.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705])
def test_d16_a_state_folder_that_others_can_read(ground: Ground, nursery: Nursery, mode: int) -> None:
    """Refused, with the cure; nothing is sent."""
    (ground.upload("bank") / "a.pdf").write_bytes(b"a")
    ground.state.mkdir()
    ground.state.chmod(mode)
    for words in (("run",), ("sync", "--json")):
        life = nursery.bear(ground, *words)
        assert life.wait() == 2
        assert f"chmod 700 {ground.state}" in life.text()
    assert not ground.stored()
    ground.state.chmod(0o700)
    assert nursery.sync(ground)["uploaded"] == 1


def test_d16_what_docferry_makes_is_for_itself_alone(ground: Ground, nursery: Nursery) -> None:
    """The state folder is made with mode 700."""
    (ground.upload("bank") / "a.pdf").write_bytes(b"a")
    nursery.sync(ground)
    assert ground.state.stat().st_mode & 0o777 == 0o700


def test_d16_a_database_on_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, with the cure. No share can be mounted here, so the kind of this disk is counted among them."""
    monkeypatch.setattr(tenure, "_NETWORK", {tenure._filesystem(tmp_path)})
    with pytest.raises(StateError, match="set state_dir to a local disk"):
        tenure.prepare_state_dir(tmp_path / "state")


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_jumps(ground: Ground, nursery: Nursery, jump: int) -> None:
    """What is due in some seconds stays due in some seconds: no early retry, nothing stuck."""
    folder, said = ground.upload("bank"), ground.root / "clock"
    said.write_text("0")
    ground.simulator.set_faults([Fault("too_many", "codat.upload", first=1, params={"seconds": 8})])
    with nursery.daemon(ground, clock=said):
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: ground.simulator.requests["codat.upload"] == 1)
        began = time.monotonic()
        said.write_text(str(jump))
        until(ground.stored, 40, "the document arriving")
        assert time.monotonic() - began > 5
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: len(ground.stored()) == 2, 20, "the next one arriving")
    assert ground.stored() == {("a.pdf", digest(b"a")): 1, ("b.pdf", digest(b"b")): 1}


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_was_turned_while_docferry_was_off(ground: Ground, nursery: Nursery, jump: int) -> None:
    """Nothing stays stuck behind a time that lies in a future that no longer comes."""
    folder, said = ground.upload("bank"), ground.root / "clock"
    (folder / "a.pdf").write_bytes(b"a")
    said.write_text("0")
    assert nursery.bear(ground, "sync", clock=said, fate=("sending>sent:after", 99), CODAT_API_KEY="no").wait() == 75
    said.write_text(str(jump))
    assert nursery.sync(ground, clock=said)["due"] == 0
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}


def test_d17_suspended(ground: Ground, nursery: Nursery) -> None:
    """Stopped in the middle of an upload for longer than the remote's patience: one copy."""
    ground.codat["timeout"] = '"1s"'
    folder = ground.upload("bank")
    ground.simulator.switches.latency = 0.3
    with nursery.daemon(ground) as daemon:
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: ground.simulator.requests["codat.upload"] == 1)
        daemon.signal(signal.SIGSTOP)
        time.sleep(2)  # the machine sleeps
        daemon.signal(signal.SIGCONT)
        until(ground.stored)
    nursery.drained(ground)
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}


# -- what the rows need -----------------------------------------------------------------------------------------------


@contextmanager
def _small_disk(place: Path, size: str) -> Iterator[None]:
    """A tmpfs of its own; skipped where it may not be mounted."""
    place.mkdir(mode=0o700)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a small disk needs the right to mount one (root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1 << 9, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue


Record = tuple[str, str, int, bytes]


def _records(log: bytes) -> Iterator[Record]:
    """What was done, to which file, where, with which bytes."""
    at = 0
    while at < len(log):
        end = log.index(b"\n", at)
        what, name, place, size = log[at:end].decode().split(" ")
        at = end + 1 + int(size)
        yield what, name, int(place), log[end + 1 : at]


def _play(records: list[Record], before: bytes, place: Path, dice: random.Random) -> None:
    """The files as they are after a power cut: what was synced, and some of the rest, some of it torn."""
    files = {"docferry.db": bytearray(before)}
    loose: dict[str, list[Record]] = {}
    for record in records:
        what, name, *_ = record
        if what == "sync":
            for each in loose.pop(name, ()):
                _apply(files.setdefault(name, bytearray()), each)
        elif what != "ack":
            loose.setdefault(name, []).append(record)
    for name, rest in loose.items():
        for what, _, at, block in rest:
            if dice.random() < 0.5:
                kept = block[: dice.randrange(0, len(block) + 1, 512)] if dice.random() < 0.3 else block
                _apply(files.setdefault(name, bytearray()), (what, name, at, kept))
    for name, content in files.items():
        (place / name).write_bytes(content)


def _apply(content: bytearray, record: Record) -> None:
    what, _, at, block = record
    if what == "cut":
        del content[at:]
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(block)] = block


def _compiled(folder: Path, name: str) -> Path:
    """A library that stands between a program and its disk; skipped without a compiler."""
    library = folder / f"{name}.so"
    if shutil.which("cc") is None:
        pytest.skip("a disk with errors needs a C compiler (cc)")
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@contextmanager
def _checkpointer(database: Path) -> Iterator[list[int]]:
    stop, rounds = threading.Event(), [0]

    def run() -> None:
        with closing(sqlite3.connect(database, timeout=30)) as second:
            while not stop.wait(0.005):
                second.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                rounds[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()


def _insert(connection: Connection, number: int, size: int = 0) -> None:
    connection.execute(
        text("INSERT INTO bookmark (subject, mark, updated) VALUES (:subject, :mark, 0)"),
        {"subject": f"test/{number}", "mark": str(number).ljust(size)},
    )
