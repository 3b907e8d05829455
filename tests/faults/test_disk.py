"""Test disks that lose, refuse or corrupt writes: rows D3 to D6 of the catalogue."""

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

from app_env import AppEnv, digest, until
from crash.kill_harness import verify_remote
from crash.process_pool import ProcessPool
from docferry.store import schema
from faults.conftest import FULL


def test_d3_power_cut(tmp_path: Path) -> None:
    """After a cut at any moment the database is sound and has all acknowledged rows.

    Every write and sync is recorded. Writes without a sync are replayed, dropped or torn.
    """
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
    jitter = random.Random(3)  # noqa: S311 - the same cuts for the same seed
    for number in range(2_000 if FULL else 60):
        cut = jitter.randrange(len(records))
        place = tmp_path / f"cut{number}"
        place.mkdir()
        _play(records[:cut], before, place, jitter)
        promised = {name for what, name, *_ in records[:cut] if what == "ack"}
        with closing(sqlite3.connect(place / "docferry.db")) as read:
            assert read.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = {row[0] for row in read.execute("SELECT key FROM cursor")}
        assert promised <= found, cut
        shutil.rmtree(place)


def test_d4_the_disk_under_the_database_is_full(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """The daemon pauses, reports it, and resumes when there is space; nothing is sent without a committed state."""
    with _small_disk(app_env.state, "3m"):
        folder = app_env.upload("bank")
        with process_pool.daemon(app_env) as daemon:
            filler = app_env.state / "filler"
            _claim(filler)
            (folder / "a.pdf").write_bytes(b"a")
            until(lambda: "cannot be written" in app_env.run("status", "--json").stdout, what="status saying so")
            assert app_env.simulator.requests["codat.upload"] == 0
            assert not daemon.ended()
            filler.unlink()
            until(app_env.stored, what="the document arriving once there is room")
        assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


def test_d4_a_pass_on_a_full_disk_ends_with_75(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """`sync` gives up after a minute, sends nothing, and names the fix."""
    with _small_disk(app_env.state, "3m"):
        folder = app_env.upload("bank")
        process_pool.sync(app_env)
        _claim(app_env.state / "filler")
        (folder / "a.pdf").write_bytes(b"a")
        child = process_pool.spawn(app_env, "sync", "--json", patience=2.0)
        assert child.wait() == 75
        assert "nothing is lost" in child.text()
        assert "Traceback" not in child.text()
        assert app_env.simulator.requests["codat.upload"] == 0
        (app_env.state / "filler").unlink()
        assert process_pool.sync(app_env)["uploaded"] == 1


def test_d4_a_stop_on_a_full_disk_is_a_stop(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """SIGTERM ends the daemon with 0 though nothing can be written down any more; nothing is lost or doubled."""
    with _small_disk(app_env.state, "3m"):
        folder = app_env.upload("bank")
        daemon = process_pool.spawn(app_env, "run").ready()
        _claim(app_env.state / "filler")
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: "cannot be written" in daemon.text(), what="the log saying so")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(40) == 0
        (app_env.state / "filler").unlink()
        process_pool.drained(app_env)
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


def test_d5_the_disk_gives_errors(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Some writes and syncs fail with EIO: docferry waits, reports no false "sent", and sends all once."""
    app_env.simulator.options.idempotency = False
    folder = app_env.upload("bank")
    app_env.write_config()
    made: Counter[tuple[str, str]] = Counter()
    for number in range(200 if FULL else 40):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        made[f"{number}.pdf", digest(b"%d" % number)] += 1
    unsound = {**app_env.environment, "LD_PRELOAD": str(_compiled(app_env.root, "unsound_disk")), "UNSOUND_DISK": "100"}
    unsound["UNSOUND_DISK_LOG"] = str(app_env.root / "struck")
    codes = []
    for _ in range(6):
        done = subprocess.run(
            app_env.command("sync", "--json"), env=unsound, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        codes.append(done.returncode)
    assert set(codes) <= {0, 2, 75}, codes
    assert (app_env.root / "struck").stat().st_size > 3
    sent = {row["path"].rsplit("/", 1)[1] for row in app_env.rows() if row["state"] == "sent"}
    assert sent <= {name for name, _ in app_env.stored()}
    process_pool.drained(app_env)
    verify_remote(app_env, made)


def test_d6_an_old_sqlite_and_a_second_checkpointer(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Nothing is lost while another program checkpoints; `check` names a defective version."""
    folder = app_env.upload("bank")
    made: Counter[tuple[str, str]] = Counter()
    with process_pool.daemon(app_env), _checkpointer(app_env.state / "docferry.db") as rounds:
        for number in range(300 if FULL else 60):
            (folder / f"{number}.pdf").write_bytes(b"%d" % number)
            made[f"{number}.pdf", digest(b"%d" % number)] += 1
        until(lambda: app_env.stored() == made, what="all arriving")
    assert rounds[0] > 10
    process_pool.drained(app_env)
    verify_remote(app_env, made)
    if sqlite3.sqlite_version_info < (3, 44, 6):
        assert "WAL reset" in app_env.run("check", "--offline").stdout


# -- helpers of the rows ----------------------------------------------------------------------------------------------


@contextmanager
def _small_disk(place: Path, size: str) -> Iterator[None]:
    """Mount a small tmpfs; skip the test where it may not be mounted."""
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


def _claim(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1 << 9, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue


Record = tuple[str, str, int, bytes]


def _records(log: bytes) -> Iterator[Record]:
    """Return the recorded operations: kind, file, offset, bytes."""
    at = 0
    while at < len(log):
        end = log.index(b"\n", at)
        what, name, place, size = log[at:end].decode().split(" ")
        at = end + 1 + int(size)
        yield what, name, int(place), log[end + 1 : at]


def _play(records: list[Record], before: bytes, place: Path, jitter: random.Random) -> None:
    """Build the files after a power cut: all synced writes, and some of the rest, some of it torn."""
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
            if jitter.random() < 0.5:
                kept = block[: jitter.randrange(0, len(block) + 1, 512)] if jitter.random() < 0.3 else block
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
    """Return a compiled library that intercepts disk calls; skip without a compiler."""
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
