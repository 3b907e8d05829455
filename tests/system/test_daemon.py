"""The daemon on real folders, from outside."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from docferry.simulator import Fault
from ground import Ground, digest, until

PDF = b"%PDF-1.4\n"


def _has(ground: Ground, name: str) -> bool:
    return name in _names(ground)


def _has_more(ground: Ground, than: int) -> bool:
    return len(ground.simulator.stored) > than


def _names(ground: Ground) -> set[str]:
    return {each.name for each in list(ground.simulator.stored)}


def test_files_dropped_while_it_runs_arrive_once_with_their_exact_bytes(ground: Ground) -> None:
    folder = ground.upload("bank")
    scans = ground.upload("scans", "wootiv", object_name='"{name}"')
    dice = random.Random(1)  # noqa: S311 - the same documents every time
    made = {}
    with ground.daemon():
        for number in range(160):
            place = (folder if number % 2 else scans) / f"a{number % 4}" / f"b{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            content = dice.randbytes(dice.randrange(1, 50_000))
            (place / f"{number}.pdf").write_bytes(content)
            made[f"{number}.pdf"] = digest(content)
        until(lambda: len(ground.stored()) == 160, 30, "all 160 arriving")
    assert ground.stored() == dict.fromkeys(made.items(), 1)


def test_a_file_written_in_pieces_over_four_seconds_arrives_once_and_whole(ground: Ground) -> None:
    folder = ground.upload("bank")
    with ground.daemon():
        with (folder / "slow.pdf").open("wb") as file:
            for number in range(8):
                file.write(PDF + bytes([number]) * 1000)
                file.flush()
                time.sleep(0.5)  # the writer is what is slow here
        until(lambda: _names(ground) == {"slow.pdf"})
    assert ground.stored() == {("slow.pdf", digest((folder / "slow.pdf").read_bytes())): 1}


def test_a_tree_made_at_once_is_found_whole(ground: Ground) -> None:
    folder = ground.upload("bank")
    with ground.daemon():
        for number in range(50):
            place = folder / f"t{number}" / "a" / "b" / "c"
            place.mkdir(parents=True)
            (place / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
        until(lambda: len(_names(ground)) == 50, 20)


def test_a_filled_tree_renamed_in_is_found(ground: Ground) -> None:
    folder = ground.upload("bank")
    ground.settings["rescan"] = '"1h"'
    beside = ground.root / "beside" / "x" / "y"
    beside.mkdir(parents=True)
    (beside / "in.pdf").write_bytes(PDF)
    with ground.daemon():
        (ground.root / "beside").rename(folder / "inside")
        until(lambda: _names(ground) == {"in.pdf"}, 10)


@pytest.mark.alone
def test_from_the_last_write_to_the_request_it_takes_less_than_a_second(ground: Ground) -> None:
    folder = ground.upload("bank")
    delays = []
    with ground.daemon():
        for number in range(20):
            (folder / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
            written = time.time()
            until(partial(_has, ground, f"{number}.pdf"))
            delays.append(time.time() - written)
    delays.sort()
    assert delays[18] < 1.0, delays


@pytest.mark.alone
def test_sigterm_with_nothing_in_flight_ends_within_a_second_with_0(ground: Ground) -> None:
    ground.upload("bank")
    with ground.daemon() as daemon:
        began = time.monotonic()
        daemon.running.send_signal(signal.SIGTERM)
        assert daemon.running.wait(10) == 0
        assert time.monotonic() - began < 1.0


def test_sigterm_lets_what_is_in_flight_finish(ground: Ground) -> None:
    folder = ground.upload("bank")
    ground.simulator.switches.latency = 1.0
    with ground.daemon() as daemon:
        (folder / "a.pdf").write_bytes(PDF)
        until(lambda: " planned " in daemon.text())
        until(lambda: ground.simulator.requests)
        assert daemon.end() == 0
    assert [row["state"] for row in ground.rows()] == ["sent"]


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(ground: Ground) -> None:
    ground.upload("bank")
    with ground.daemon() as daemon:
        second = subprocess.run(
            ground.command("run"), env=ground.environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert str(daemon.running.pid) in second.stderr
        assert "Traceback" not in second.stderr


def test_a_daemon_killed_with_sigkill_is_followed_by_one_that_loses_and_doubles_nothing(ground: Ground) -> None:
    folder = ground.upload("bank")
    ground.simulator.switches.latency = 0.05
    made = {}
    for round_ in range(4):
        with ground.daemon(wait=False) as daemon:
            for number in range(15):
                content = PDF + b"%d/%d" % (round_, number)
                (folder / f"{round_}-{number}.pdf").write_bytes(content)
                made[f"{round_}-{number}.pdf"] = digest(content)
            until(partial(_has_more, ground, len(ground.simulator.stored) + 3))
            daemon.kill()
    with ground.daemon():
        until(lambda: len(ground.stored()) == len(made), 30)
    assert ground.sync()["due"] == 0
    assert ground.stored() == dict.fromkeys(made.items(), 1)
    with sqlite3.connect(ground.state / "docferry.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_folder_removed_and_made_again_is_watched_again(ground: Ground) -> None:
    folder = ground.upload("bank")
    with ground.daemon():
        (folder / "a.pdf").write_bytes(PDF + b"a")
        until(lambda: _names(ground) == {"a.pdf"})
        shutil.rmtree(folder)
        time.sleep(0.3)  # long enough for a watch to notice that its folder went away
        folder.mkdir()
        (folder / "b.pdf").write_bytes(PDF + b"b")
        until(lambda: _names(ground) == {"a.pdf", "b.pdf"}, 15)


def test_names_links_and_pipes_that_would_hurt_others(ground: Ground) -> None:
    folder = ground.upload("bank")
    secret = ground.root / "secret.pdf"
    secret.write_bytes(b"secret")
    (folder / "before.pdf").symlink_to(secret)
    with ground.daemon():
        os.mkfifo(folder / "pipe.pdf")
        (folder / "loop").symlink_to(folder)
        (folder / "out.pdf").symlink_to(secret)
        with Path(os.fsdecode(os.path.join(os.fsencode(folder), b"\xff.pdf"))).open("wb") as file:  # noqa: PTH118
            file.write(b"latin")
        (folder / "plain.pdf").write_bytes(b"plain")
        until(lambda: len(ground.stored()) == 2, 15)
    assert {sha for _, sha in ground.stored()} == {digest(b"latin"), digest(b"plain")}


def test_sighup_takes_a_sound_configuration_and_refuses_a_broken_one(ground: Ground) -> None:
    ground.upload("bank")
    with ground.daemon() as daemon:
        good = (ground.root / "docferry.toml").read_text()
        (ground.root / "docferry.toml").write_text(good + "\nnonsense = [")
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in daemon.text())
        more = ground.upload("more")
        ground.write_config()
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in daemon.text())
        (more / "a.pdf").write_bytes(PDF)
        until(lambda: _names(ground) == {"a.pdf"})


def test_a_company_that_hangs_does_not_stop_another(ground: Ground) -> None:
    other = "11111111-2222-4333-8444-555555555555"
    ground.upload("customers", folder="customers/{company_id}/{connection_id}")
    slow = ground.root / "customers" / "99999999-2222-4333-8444-555555555555" / other
    quick = ground.root / "customers" / other / other
    for place in (slow, quick):
        place.mkdir(parents=True)
    ground.simulator.set_faults([Fault("stall", "POST */companies/99999999*/files")])
    with ground.daemon():
        for number in range(30):
            (slow / f"s{number}.pdf").write_bytes(PDF + b"s%d" % number)
        until(lambda: ground.simulator.requests)
        for number in range(10):
            (quick / f"q{number}.pdf").write_bytes(PDF + b"q%d" % number)
        until(lambda: len(_names(ground)) == 10, 8)


def test_no_secret_is_in_the_log_the_output_or_the_database(ground: Ground) -> None:
    folder, scans = ground.upload("bank"), ground.upload("scans", "wootiv")
    ground.simulator.set_faults([Fault("status", rate=0.3, params={"status": 500}), Fault("reset_inside", rate=0.2)])
    with ground.daemon() as daemon:
        for number in range(10):
            (folder / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
            (scans / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
        until(lambda: len(ground.simulator.objects) == 10, 30)
    shown = daemon.log.read_bytes()
    shown += b"".join(path.read_bytes() for path in ground.state.rglob("*") if path.is_file())
    for words in (["status", "--json"], ["list", "--json"], ["config", "show"]):
        done = ground.run(*words)
        shown += (done.stdout + done.stderr).encode()
    for secret in (ground.simulator.switches.codat_key, ground.simulator.switches.wootiv_key, "X-Amz-Signature="):
        assert secret.encode() not in shown


@pytest.mark.parametrize("settle", ["200ms"])
def test_sync_beside_the_daemon_is_safe(ground: Ground, settle: str) -> None:
    folder = ground.upload("bank")
    ground.settings["settle"] = f'"{settle}"'
    made = {}
    with ground.daemon():
        passes: list[threading.Thread] = []
        for number in range(60):
            content = PDF + b"%d" % number
            (folder / f"{number}.pdf").write_bytes(content)
            made[f"{number}.pdf"] = digest(content)
            if number % 20 == 5:
                passes.append(threading.Thread(target=ground.sync, kwargs={"code": None}))
                passes[-1].start()
        for each in passes:
            each.join()
        until(lambda: len(ground.stored()) == 60, 20)
    assert ground.stored() == dict.fromkeys(made.items(), 1)
