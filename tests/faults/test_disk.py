"""Disks that lose, refuse or garble, and what else writes to them: rows D3 to D6 of the catalogue."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from crash.nursery import Nursery
from crash.siege import judge
from docferry.store import schema
from faults.conftest import FULL
from ground import Ground, digest, until


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
