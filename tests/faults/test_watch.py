"""Test rows W1 to W10 and W14 to W16: every file is found, even if the kernel reports nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app_env import Daemon, digest, until
from faults.conftest import FULL, FaultEnv
from faults.measured import Drops, odd_path, peak_memory, report
from faults.watch_status import wait_until_watched, watch_status

PDF = b"a document\n"  # of no kind whose end tells whether it is complete
SETTLE = 0.2  # seconds, as in the environment


def _in_namespace_of(daemon: Daemon, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(daemon.running.pid), "-U", "-m", "--preserve-credentials", *words], check=True)


def test_w1_inotify_overflow(fault_env: FaultEnv) -> None:
    """Files created while the daemon stood still, more than the kernel remembers, are all queued by the next scan."""
    folder = fault_env.upload("bank")
    fault_env.settings |= {"rescan": '"5s"', "log_level": '"info"'}
    drops = Drops(fault_env)
    count = 50_000 if FULL else 5_000
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with fault_env.daemon() as daemon:
        wait_until_watched(fault_env)
        daemon.running.send_signal(signal.SIGSTOP)
        for number in range(count):
            drops.drop(folder / f"{number}.pdf", b"%d" % number)
        for _ in range(0 if FULL else max(0, limit - 3 * count)):  # the rest of the kernel's queue, cheaply
            os.utime(folder / "0.pdf")
            os.utime(folder / "1.pdf")
        daemon.running.send_signal(signal.SIGCONT)
        drops.since_now()
        arrived = drops.arrive(600 if FULL else 110)
    report("W1", "queued after an overflow", drops.found(), 5 + SETTLE + 30)  # all are hashed, and sent meanwhile
    report("W1", "sent", arrived, 600)


@pytest.mark.parametrize("hogs", [0, 4 if FULL else 1], ids=["idle", "busy"])
def test_w2_mkdir_copy_race(fault_env: FaultEnv, hogs: int) -> None:
    """`mkdir -p` and a copy at once, idle and with a busy processor: none missing after settle + 2 s."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    drops = Drops(fault_env)
    jitter = random.Random(2)  # noqa: S311 - the same trees every time
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(hogs)]
    try:
        with fault_env.daemon():
            wait_until_watched(fault_env)
            for number in range(1000 if FULL else 80):
                _plant(drops, folder / f"t{number}", number)
                time.sleep(jitter.choice((0, 0, 0.001, 0.01)))  # the race is to be run in many ways
            arrived = drops.arrive(60)
    finally:
        for hog in busy:
            hog.kill()
            hog.wait()
    report("W2", f"trees with {hogs} busy programs: queued", drops.found(), SETTLE + 2)
    report("W2", f"trees with {hogs} busy programs: sent", arrived, SETTLE + 2 + 3 * bool(hogs))


def _plant(drops: Drops, tree: Path, number: int) -> None:
    """Make a file four folders down, in one of four ways."""
    content = PDF + b"%d" % number
    deep = tree / "a" / "b" / "c"
    match number % 4:
        case 0:
            deep.mkdir(parents=True)
            drops.drop(deep / f"{number}.pdf", content)
        case 1:
            beside = drops.fault_env.root / "beside" / str(number)
            (beside / "b" / "c").mkdir(parents=True)
            (beside / "b" / "c" / f"{number}.pdf").write_bytes(content)
            shutil.copytree(beside, tree / "a")
            drops.note(content)
        case 2:
            deep.mkdir(parents=True)
            (deep / "part").write_bytes(content)
            (deep / "part").rename(deep / f"{number}.pdf")
            drops.note(content)
        case _:
            drops.fault_env.root.joinpath("beside").mkdir(exist_ok=True)
            made = drops.fault_env.root / "beside" / f"{number}.pdf"
            made.write_bytes(content)
            deep.mkdir(parents=True)
            made.rename(deep / f"{number}.pdf")
            drops.note(content)


def test_w3_filled_tree_renamed_in(fault_env: FaultEnv) -> None:
    """A tree renamed into the folder is scanned at once, and later files in it are found."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    drops = Drops(fault_env)
    with fault_env.daemon():
        wait_until_watched(fault_env)
        for tree in range(40 if FULL else 2):
            beside = fault_env.root / "beside"
            for number in range(25):
                place = beside / f"d{number % 5}" / "e"
                place.mkdir(parents=True, exist_ok=True)
                content = PDF + b"%d/%d" % (tree, number)
                (place / f"{number}.pdf").write_bytes(content)
                drops.note(content)
            beside.rename(folder / f"in{tree}")
            drops.at |= dict.fromkeys(list(drops.at)[-25:], time.time())
            drops.drop(folder / f"in{tree}" / "d1" / "e" / "at-once.pdf", b"at once %d" % tree)
            drops.arrive(60)
            drops.drop(folder / f"in{tree}" / "d1" / "e" / "later.pdf", b"later %d" % tree)
        arrived = drops.arrive(60)
    report("W3", "trees renamed in: queued", drops.found(), SETTLE + 2)
    report("W3", "trees renamed in: sent", arrived, SETTLE + 2)


def test_w4_watch_limit_at_run_time(fault_env: FaultEnv, namespace: Callable[[str], list[str]]) -> None:
    """Without a free watch, scans find the files, and `status` names the sysctl."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1s"'
    fault_env.prefix = namespace("echo 50 > /proc/sys/user/max_inotify_watches")
    drops = Drops(fault_env)
    with fault_env.daemon():
        wait_until_watched(fault_env)
        for number in range(70):
            (folder / f"d{number}").mkdir()
        until(lambda: "max_user_watches" in watch_status(fault_env, "bank")["watch"])
        for number in range(1000 if FULL else 70):
            drops.drop(folder / f"d{number % 70}" / f"{number}.pdf", PDF + b"%d" % number)
            time.sleep(0.01)  # over several scans
        arrived = drops.arrive(60)
    report("W4", "70 folders, 50 watches, a scan each second: queued", drops.found(), 1 + SETTLE + 2)
    report("W4", "sent", arrived, 1 + SETTLE + 2)


def test_w5_instance_limit(fault_env: FaultEnv, namespace: Callable[[str], list[str]]) -> None:
    """Without inotify, only scans find files: no crash, and no loop of attempts."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1s"'
    fault_env.prefix = namespace("echo 0 > /proc/sys/user/max_inotify_instances")
    with fault_env.daemon() as daemon:
        (folder / "a.pdf").write_bytes(PDF)
        until(lambda: fault_env.names() == {"a.pdf"})
        until(lambda: "max_user_instances" in watch_status(fault_env, "bank")["watch"])
        (folder / "b.pdf").write_bytes(PDF + b"b")
        until(lambda: "b.pdf" in fault_env.names())
        assert daemon.text().count("watch_degraded") <= 2
        assert daemon.running.poll() is None


def test_w6_root_removed_made_again_renamed(fault_env: FaultEnv) -> None:
    """Watched again within 5 s, and nothing of it is taken for deleted; even while something is not quiet yet."""
    folder = fault_env.upload("bank")
    other = fault_env.upload("other")
    fault_env.settings["rescan"] = '"1h"'
    with fault_env.daemon() as daemon:
        wait_until_watched(fault_env)
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: fault_env.names() == {"a.pdf"})
        with (folder / "unsettled.pdf").open("wb") as writer:
            writer.write(b"u")
            writer.flush()
            until(lambda: watch_status(fault_env, "bank")["unsettled"], what="the file that is open being waited for")
            folder.rename(fault_env.root / "aside")
            until(lambda: watch_status(fault_env, "bank")["problem"], what="the missing folder being noticed")
            (other / "x.pdf").write_bytes(b"x")
            until(lambda: "x.pdf" in fault_env.names())
        (fault_env.root / "aside").rename(folder)
        until(lambda: "unsettled.pdf" in fault_env.names())
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: "b.pdf" in fault_env.names())
        folder.rename(fault_env.root / "old")
        folder.mkdir()
        (folder / "c.pdf").write_bytes(b"c")
        until(lambda: "c.pdf" in fault_env.names())
        wait_until_watched(fault_env)
        assert daemon.running.poll() is None
    assert {row["state"] for row in fault_env.rows()} == {"sent"}


def test_w6_how_soon(fault_env: FaultEnv) -> None:
    """Files in a recreated or replaced root are found as soon as the change is noticed."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    drops = Drops(fault_env)
    with fault_env.daemon():
        wait_until_watched(fault_env)
        for round_ in range(30 if FULL else 2):
            if round_ % 2:
                shutil.rmtree(folder)
            else:
                folder.rename(fault_env.root / f"old{round_}")
            if round_ % 3:
                time.sleep(0.3 * (round_ % 7))  # it is missing, seen or unseen
            folder.mkdir()
            for number in range(10):
                drops.drop(folder / f"{number}.pdf", b"%d/%d" % (round_, number))
            drops.arrive(60)
    report("W6", "in a root made again: queued", drops.found(), 5 + SETTLE + 2)


def test_w7_mounts_come_and_go(fault_env: FaultEnv, namespace: Callable[[str], list[str]]) -> None:
    """Mounted over and unmounted: noticed within 5 s each time; an empty mount is not taken for a deletion."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    fault_env.prefix = namespace("true")
    with fault_env.daemon() as daemon:
        wait_until_watched(fault_env)
        (folder / "below.pdf").write_bytes(b"below")
        until(lambda: "below.pdf" in fault_env.names())
        _in_namespace_of(daemon, "mount", "-t", "tmpfs", "none", str(folder))
        until(lambda: watch_status(fault_env, "bank")["problem"], what="an empty mount being noticed")
        _in_namespace_of(daemon, "sh", "-c", f"echo over > {folder}/over.pdf")
        until(lambda: "over.pdf" in fault_env.names())
        _in_namespace_of(daemon, "umount", str(folder))
        until(lambda: daemon.text().count("watch_lost") >= 2, what="the unmount being noticed")
        (folder / "again.pdf").write_bytes(b"again")
        until(lambda: "again.pdf" in fault_env.names())
    assert {row["state"] for row in fault_env.rows()} == {"sent"}


def test_w7_how_soon(fault_env: FaultEnv, namespace: Callable[[str], list[str]]) -> None:
    """Files on a new mount, or under a removed one, are found as soon as the change is noticed."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    fault_env.prefix = namespace("true")
    drops = Drops(fault_env)
    with fault_env.daemon() as daemon:
        wait_until_watched(fault_env)
        inside = Path(f"/proc/{daemon.running.pid}/root{folder}")
        for round_ in range(10 if FULL else 1):
            _in_namespace_of(daemon, "mount", "-t", "tmpfs", "none", str(folder))
            for number in range(10):
                drops.drop(inside / f"{number}.pdf", b"over %d/%d" % (round_, number))
            drops.arrive(60)
            _in_namespace_of(daemon, "umount", str(folder))
            for number in range(10):
                drops.drop(folder / f"{number}.pdf", b"below %d/%d" % (round_, number))
            drops.arrive(60)
    report("W7", "on a mount, and under it: queued", drops.found(), 5 + SETTLE + 2)


def test_w8_root_missing_at_start(fault_env: FaultEnv) -> None:
    """The mapping waits while others work, and starts once the folder exists."""
    folder, other = fault_env.upload("bank"), fault_env.upload("other")
    fault_env.settings["rescan"] = '"1h"'
    folder.rmdir()
    (other / "x.pdf").write_bytes(b"x")
    with fault_env.daemon():
        until(lambda: fault_env.names() == {"x.pdf"})
        until(lambda: "does not exist" in (watch_status(fault_env, "bank")["problem"] or ""))
        folder.mkdir()
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: "a.pdf" in fault_env.names())
        until(lambda: watch_status(fault_env, "bank")["problem"] is None)


def test_w9_folder_unreadable_then_readable(fault_env: FaultEnv, bounded: list[str]) -> None:
    """The folder is reported, other folders continue, and its files are found later."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1s"'
    fault_env.prefix = bounded
    closed = folder / "closed"
    closed.mkdir()
    (closed / "a.pdf").write_bytes(b"a")
    closed.chmod(0)
    try:
        with fault_env.daemon():
            until(lambda: "closed cannot be read" in (watch_status(fault_env, "bank")["problem"] or ""))
            (folder / "b.pdf").write_bytes(b"b")
            until(lambda: fault_env.names() == {"b.pdf"})
            closed.chmod(0o755)
            until(lambda: "a.pdf" in fault_env.names())
            until(lambda: watch_status(fault_env, "bank")["problem"] is None)
            closed.chmod(0)
            until(lambda: watch_status(fault_env, "bank")["problem"], what="its being reported again")
            closed.chmod(0o755)
            shutil.rmtree(closed)
            until(
                lambda: watch_status(fault_env, "bank")["problem"] is None, what="nobody missing a folder that is gone"
            )
            closed.mkdir()
    finally:
        closed.chmod(0o755)


def test_w10_name_that_is_not_utf8(fault_env: FaultEnv) -> None:
    """The watcher restarts at once, and the file is sent under a replaced name."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    odd = os.fsencode(folder) + b"/\xff.pdf"
    with fault_env.daemon():
        wait_until_watched(fault_env)
        with open(odd, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
            file.write(b"latin")
        until(lambda: digest(b"latin") in {sha for _, sha in fault_env.stored()})
        for number in range(5):
            with open(odd, "rb") as file:  # noqa: PTH123 - pathlib takes no bytes
                file.read()
            (folder / f"{number}.pdf").write_bytes(b"%d" % number)
            fault_env.wait_for_upload(f"{number}.pdf")
    assert any(row["path"].endswith("/\\xff.pdf") and row["state"] == "sent" for row in fault_env.rows())


def test_w10_how_soon(fault_env: FaultEnv) -> None:
    """Several such names, among others: each ends the watch, and no file waits long."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    drops = Drops(fault_env)
    with fault_env.daemon():
        wait_until_watched(fault_env)
        for number in range(200 if FULL else 10):
            drops.drop(odd_path(folder, number), b"odd %d" % number)
            drops.drop(folder / f"{number}.pdf", b"even %d" % number)
            time.sleep(0.3)  # they come one after the other
        drops.arrive(60)
    report("W10", "names that are not UTF-8, and others: queued", drops.found(), SETTLE + 2)


DYING = """
import threading, time, watchfiles
import docferry.files.watch.watcher as ours
real, turns = watchfiles.watch, [0]
def watch_function(*roots, **named):
    turns[0] += 1
    if turns[0] == 1:
        raise RuntimeError("the watcher died at once")
    if turns[0] == 2:
        time.sleep(3600)
    yield from real(*roots, **named)
watchfiles.watch = watch_function
ours.Watcher.__init__.__kwdefaults__.update(hung=2.0)
"""


def test_w14_watcher_dies_then_hangs(fault_env: FaultEnv) -> None:
    """The watch is started again, and a scan covers the time between."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1h"'
    fault_env.wrapper = DYING
    with fault_env.daemon():
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: "a.pdf" in fault_env.names())
        wait_until_watched(fault_env)
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: "b.pdf" in fault_env.names())


def test_w15_share_without_events(fault_env: FaultEnv) -> None:
    """Without events, new, changed and removed files are found within `rescan`."""
    folder = fault_env.upload("bank", poll="true")
    fault_env.settings["rescan"] = '"500ms"'
    with fault_env.daemon():
        for number in range(3):
            place = folder / f"d{number}"
            place.mkdir()
            (place / f"{number}.pdf").write_bytes(b"%d" % number)
            fault_env.wait_for_upload(f"{number}.pdf")
        assert watch_status(fault_env, "bank")["watch"] != "watching"


def test_w16_a_flood(fault_env: FaultEnv) -> None:
    """Many files at once are all sent, in constant memory."""
    folder = fault_env.upload("bank")
    fault_env.settings["log_level"] = '"info"'
    drops = Drops(fault_env)
    with fault_env.daemon() as daemon:
        for number in range(100_000 if FULL else 3_000):
            drops.drop(folder / f"{number}.pdf", b"%d" % number)
        report("W16", "sent", drops.arrive(1200 if FULL else 100), 1200)
        memory = peak_memory(daemon.running.pid)
        print(f"  W16: at most {memory / 1e6:.0f} MB")
        assert memory < 200_000_000
    assert len(fault_env.stored()) == len(drops.at)
