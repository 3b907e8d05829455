"""Test the daemon on real folders, from outside."""

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

from app_env import AppEnv, digest, until
from docferry.simulator import Fault

PDF = b"%PDF-1.4\n%%EOF\n"


def _has(app_env: AppEnv, name: str) -> bool:
    return name in _names(app_env)


def _has_more(app_env: AppEnv, than: int) -> bool:
    return len(app_env.simulator.stored) > than


def _names(app_env: AppEnv) -> set[str]:
    return {each.name for each in list(app_env.simulator.stored)}


def test_files_dropped_while_it_runs_arrive_once_with_their_exact_bytes(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    scans = app_env.upload("scans", "wootiv", object_name='"{name}"')
    jitter = random.Random(1)  # noqa: S311 - the same documents every time
    made = {}
    with app_env.daemon():
        for number in range(160):
            place = (folder if number % 2 else scans) / f"a{number % 4}" / f"b{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            content = jitter.randbytes(jitter.randrange(1, 50_000))
            (place / f"{number}.pdf").write_bytes(content)
            made[f"{number}.pdf"] = digest(content)
        until(lambda: len(app_env.stored()) == 160, what="all 160 arriving")
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


def test_a_file_written_in_pieces_over_four_seconds_arrives_once_and_whole(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    with app_env.daemon():
        with (folder / "slow.pdf").open("wb") as file:
            for number in range(8):
                file.write(PDF + bytes([number]) * 1000)
                file.flush()
                time.sleep(0.5)  # the writer is slow
        until(lambda: _names(app_env) == {"slow.pdf"})
    assert app_env.stored() == {("slow.pdf", digest((folder / "slow.pdf").read_bytes())): 1}


def test_a_tree_made_at_once_is_found_whole(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    with app_env.daemon():
        for number in range(50):
            place = folder / f"t{number}" / "a" / "b" / "c"
            place.mkdir(parents=True)
            (place / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
        until(lambda: len(_names(app_env)) == 50)


def test_a_filled_tree_renamed_in_is_found(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    app_env.settings["rescan"] = '"1h"'
    beside = app_env.root / "beside" / "x" / "y"
    beside.mkdir(parents=True)
    (beside / "in.pdf").write_bytes(PDF)
    with app_env.daemon():
        (app_env.root / "beside").rename(folder / "inside")
        until(lambda: _names(app_env) == {"in.pdf"})


@pytest.mark.alone
def test_from_the_last_write_to_the_request_it_takes_less_than_a_second(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    delays = []
    with app_env.daemon():
        for number in range(20):
            (folder / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
            written = time.time()
            until(partial(_has, app_env, f"{number}.pdf"))
            delays.append(time.time() - written)
    delays.sort()
    assert delays[10] < 1.0, delays  # the load of the machine decides the slowest


@pytest.mark.alone
def test_sigterm_with_nothing_in_flight_ends_soon_with_0(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with app_env.daemon() as daemon:
        began = time.monotonic()
        daemon.running.send_signal(signal.SIGTERM)
        assert daemon.running.wait(60) == 0
        assert time.monotonic() - began < 10.0  # a third of `stop_grace`


def test_sigterm_lets_what_is_in_flight_finish(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.options.latency = 1.0
    with app_env.daemon() as daemon:
        (folder / "a.pdf").write_bytes(PDF)
        until(lambda: " planned " in daemon.text())
        until(lambda: app_env.simulator.requests)
        assert daemon.end() == 0
    assert [row["state"] for row in app_env.rows()] == ["sent"]


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with app_env.daemon() as daemon:
        second = subprocess.run(
            app_env.command("run"), env=app_env.environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert str(daemon.running.pid) in second.stderr
        assert "Traceback" not in second.stderr


def test_a_daemon_killed_with_sigkill_is_followed_by_one_that_loses_and_doubles_nothing(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.options.latency = 0.05
    made = {}
    for round_ in range(4):
        with app_env.daemon(wait=False) as daemon:
            for number in range(15):
                content = PDF + b"%d/%d" % (round_, number)
                (folder / f"{round_}-{number}.pdf").write_bytes(content)
                made[f"{round_}-{number}.pdf"] = digest(content)
            until(partial(_has_more, app_env, len(app_env.simulator.stored) + 3))
            daemon.kill()
    with app_env.daemon():
        until(lambda: len(app_env.stored()) == len(made))
    until(lambda: app_env.sync(code=None)["due"] == 0, what="every doubt being resolved")
    assert app_env.stored() == dict.fromkeys(made.items(), 1)
    with sqlite3.connect(app_env.state / "docferry.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_folder_removed_and_made_again_is_watched_again(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    with app_env.daemon():
        (folder / "a.pdf").write_bytes(PDF + b"a")
        until(lambda: _names(app_env) == {"a.pdf"})
        shutil.rmtree(folder)
        time.sleep(0.3)  # long enough for a watch to notice that its folder went away
        folder.mkdir()
        (folder / "b.pdf").write_bytes(PDF + b"b")
        until(lambda: _names(app_env) == {"a.pdf", "b.pdf"})


def test_names_links_and_pipes_that_would_hurt_others(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    secret = app_env.root / "secret.pdf"
    secret.write_bytes(b"secret")
    (folder / "before.pdf").symlink_to(secret)
    with app_env.daemon():
        os.mkfifo(folder / "pipe.pdf")
        (folder / "loop").symlink_to(folder)
        (folder / "out.pdf").symlink_to(secret)
        with Path(os.fsdecode(os.path.join(os.fsencode(folder), b"\xff.pdf"))).open("wb") as file:  # noqa: PTH118
            file.write(b"latin")
        (folder / "plain.pdf").write_bytes(b"plain")
        until(lambda: len(app_env.stored()) == 2)
    assert {sha for _, sha in app_env.stored()} == {digest(b"latin"), digest(b"plain")}


def test_sighup_takes_a_sound_configuration_and_refuses_a_broken_one(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with app_env.daemon() as daemon:
        good = (app_env.root / "docferry.toml").read_text()
        (app_env.root / "docferry.toml").write_text(good + "\nnonsense = [")
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in daemon.text())
        more = app_env.upload("more")
        app_env.write_config()
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in daemon.text())
        (more / "a.pdf").write_bytes(PDF)
        until(lambda: _names(app_env) == {"a.pdf"})


def test_a_company_that_hangs_does_not_stop_another(app_env: AppEnv) -> None:
    other = "11111111-2222-4333-8444-555555555555"
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    slow = app_env.root / "customers" / "99999999-2222-4333-8444-555555555555" / other
    quick = app_env.root / "customers" / other / other
    for place in (slow, quick):
        place.mkdir(parents=True)
    app_env.simulator.set_faults([Fault("stall", "POST */companies/99999999*/files")])
    with app_env.daemon():
        for number in range(30):
            (slow / f"s{number}.pdf").write_bytes(PDF + b"s%d" % number)
        until(lambda: app_env.simulator.requests)
        for number in range(10):
            (quick / f"q{number}.pdf").write_bytes(PDF + b"q%d" % number)
        until(lambda: len(_names(app_env)) == 10, 15)  # the hanging ones take longer


def test_no_secret_is_in_the_log_the_output_or_the_database(app_env: AppEnv) -> None:
    folder, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv")
    app_env.simulator.set_faults([Fault("status", rate=0.3, params={"status": 500}), Fault("reset_inside", rate=0.2)])
    with app_env.daemon() as daemon:
        for number in range(10):
            (folder / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
            (scans / f"{number}.pdf").write_bytes(PDF + b"%d" % number)
        until(lambda: len(app_env.simulator.objects) == 10)
    shown = daemon.log.read_bytes()
    shown += b"".join(path.read_bytes() for path in app_env.state.rglob("*") if path.is_file())
    for words in (["status", "--json"], ["list", "--json"], ["config", "show"]):
        done = app_env.run(*words)
        shown += (done.stdout + done.stderr).encode()
    for secret in (app_env.simulator.options.codat_key, app_env.simulator.options.wootiv_key, "X-Amz-Signature="):
        assert secret.encode() not in shown


@pytest.mark.parametrize("settle", ["200ms"])
def test_sync_beside_the_daemon_is_safe(app_env: AppEnv, settle: str) -> None:
    folder = app_env.upload("bank")
    app_env.settings["settle"] = f'"{settle}"'
    made = {}
    with app_env.daemon():
        passes: list[threading.Thread] = []
        for number in range(60):
            content = PDF + b"%d" % number
            (folder / f"{number}.pdf").write_bytes(content)
            made[f"{number}.pdf"] = digest(content)
            if number % 20 == 5:
                passes.append(threading.Thread(target=app_env.sync, kwargs={"code": None}))
                passes[-1].start()
        for each in passes:
            each.join()
        until(lambda: len(app_env.stored()) == 60)
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


def test_an_anchor_that_hangs_delays_no_stop(app_env: AppEnv) -> None:
    """A FIFO that nobody reads hangs like a share whose server is gone, and Python waits for its threads."""
    app_env.settings["stop_grace"] = '"1s"'
    folder = app_env.upload("bank")
    app_env.sections.append(f'[receipts]\nanchor = ["file:{app_env.root}/heads"]')
    with app_env.daemon() as daemon:
        os.mkfifo(app_env.root / "heads")
        (folder / "a.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
        until(lambda: [row["state"] for row in app_env.rows()] == ["sent"], what="the document")
        assert daemon.end() == 0
