"""Test `sync`, `status`, `retry` and `run` on a real queue."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app_env import AppEnv, digest, until
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from docferry.store import locks
from system.conftest import Say
from system.terminal import on_a_terminal

SYNC_KEYS = ["uploaded", "downloaded", "unchanged", "held", "due", "bytes_up", "bytes_down", "requests", "seconds"]


@pytest.fixture
def app_env(tmp_path: Path) -> Iterator[AppEnv]:
    with SimulatorThread(Simulator(SimulatorOptions())) as simulator_thread:
        app_env = AppEnv(tmp_path, simulator_thread)
        app_env.settings["log_level"] = '"info"'
        yield app_env


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- sync --------------------------------------------------------------------------------------------------------------


def test_sync_tells_in_aligned_lines_and_in_one_object(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a" * 1500)
    (folder / "b.exe").write_bytes(b"b")
    code, out, _ = say("sync")
    assert code == 1
    assert re.search(r"^uploaded +1 +1.5 kB$", out, re.MULTILINE)
    assert re.search(r"^held +1 +see why: docferry list --state held$", out, re.MULTILINE)
    assert "\x1b" not in out
    code, out, _ = say("sync", "--json")
    assert code == 1
    (told,) = objects(out)
    assert list(told) == SYNC_KEYS
    assert (told["uploaded"], told["unchanged"], told["held"], told["requests"]) == (0, 1, 1, 0)


def test_sync_of_an_unknown_mapping_names_the_nearest(app_env: AppEnv, say: Say) -> None:
    app_env.upload("acme-bank")
    code, out, err = say("sync", "--mapping", "acme-bnk")
    assert (code, out, err) == (2, "", 'docferry: there is no mapping "acme-bnk"; did you mean "acme-bank"?\n')


def test_a_folder_that_is_not_there_is_told_on_stderr_and_ends_with_75(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank").rmdir()
    code, out, err = say("sync", "--json")
    assert code == 75
    assert list(objects(out)[0]) == SYNC_KEYS
    assert str(app_env.root / "bank") in err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    (folder / "b.exe").write_bytes(b"b")
    for each in folder.iterdir():
        os.utime(each, (1, 1))
    until(lambda: "would be uploaded" in (out := say("sync", "--dry-run")[1]) and "1 document (1 B)" in out)
    code, out, _ = say("sync", "--dry-run", "--json")
    assert code == 0
    told = {Path(row["path"]).name: (row["would"], row["path"], row["mapping"]) for row in objects(out)}
    assert told == {
        "a.pdf": ("upload", str(folder / "a.pdf"), "bank"),
        "b.exe": ("held", str(folder / "b.exe"), "bank"),
    }
    assert not app_env.state.exists()
    assert app_env.simulator.requests.total() == 0


def test_a_dry_run_after_a_retry_names_the_rule_that_still_holds(app_env: AppEnv, say: Say) -> None:
    (app_env.upload("bank") / "empty.pdf").write_bytes(b"")
    assert say("sync")[0] == 1
    assert say("retry", "--all")[0] == 0
    row = objects(say("sync", "--dry-run", "--json")[1])[0]
    assert row["would"] == "held"
    assert "the file is empty" in row["reason"]


def test_on_a_terminal_there_is_a_bar_and_a_summary(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    for number in range(30):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    app_env.simulator.options.latency = 0.1
    code, shown = on_a_terminal(app_env, "sync")
    assert code == 0
    assert "of 30 files" in shown
    assert re.search(r"uploaded +\x1b\[\S*30", shown)
    code, shown = on_a_terminal(app_env, "sync", "--json")
    assert json.loads(shown)["unchanged"] == 30


def test_no_colour_is_honoured(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.exe").write_bytes(b"a")
    app_env.sync(code=1)
    assert "\x1b[31m" in on_a_terminal(app_env, "list")[1]
    assert not re.search(r"\x1b\[[\d;]*3\d", on_a_terminal(app_env, "list", NO_COLOR="1")[1])


def test_an_interrupted_pass_ends_in_order_and_nothing_is_lost(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    made = {}
    for number in range(40):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        made[f"{number}.pdf"] = digest(b"%d" % number)
    app_env.simulator.options.latency = 0.5
    app_env.write_config()
    pass_ = subprocess.Popen(app_env.command("sync"), env=app_env.environment, stderr=subprocess.PIPE, text=True)
    until(lambda: len(app_env.simulator.stored) >= 4)
    pass_.send_signal(signal.SIGINT)
    _, err = pass_.communicate(timeout=60)
    assert pass_.returncode in {75, 130}
    assert "Traceback" not in err
    app_env.simulator.options.latency = 0
    app_env.sync()
    assert app_env.stored() == dict.fromkeys(made.items(), 1)


# -- list and show -----------------------------------------------------------------------------------------------------


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_counts_and_says_what_needs_a_person(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    (folder / "b.exe").write_bytes(b"b")
    say("sync")
    code, out, _ = say("status")
    assert code == 0
    assert "no daemon runs" in out
    assert "1 document held: extension" in out
    assert "docferry list --reason extension" in out
    told = json.loads(say("status", "--json")[1])
    assert told["running"] is None
    assert told["documents"]["sent"] == told["documents"]["held"] == 1
    assert told["held"] == [{"mapping": "bank", "reason": "extension", "count": 1}]


def test_status_tells_which_gate_is_closed_and_retry_opens_it(
    app_env: AppEnv, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    with monkeypatch.context() as wrong:
        wrong.setenv("CODAT_API_KEY", "wrong")
        assert say("sync")[0] == 75
    told = json.loads(say("status", "--json")[1])
    assert [(gate["gate"], gate["reason"]) for gate in told["gates"]] == [("codat", "key")]
    assert "put the right key in place" in say("status")[1]
    code, out, _ = say("retry", "--all")
    assert code == 0
    assert "1 document is due now" in out
    assert json.loads(say("status", "--json")[1])["gates"] == []
    assert say("sync")[0] == 0


def test_status_of_a_folder_that_is_away(app_env: AppEnv, say: Say) -> None:
    app_env.upload("bank").rmdir()
    assert "bank does not exist; create it" in say("status")[1]


def test_status_beside_a_daemon_tells_its_pid_and_the_remotes_quota(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.options.daily_quota = 5000
    (folder / "a.pdf").write_bytes(b"a")
    with app_env.daemon() as daemon:
        told = until(lambda: (now := json.loads(say("status", "--json")[1]))["remotes"][0]["limit"] and now)
        assert told["running"]["pid"] == daemon.running.pid
        assert told["remotes"][0]["remaining"] < 5000
        out = say("status")[1]
        assert f"pid {daemon.running.pid}" in out
        assert "of 5,000" in out
        code, _, err = say("run")
        assert code == 2
        assert f"pid {daemon.running.pid}" in err
    assert json.loads(say("status", "--json")[1])["running"] is None


def test_status_watch_prints_again_and_again_in_a_pipe_and_ends_with_0(app_env: AppEnv) -> None:
    app_env.upload("bank")
    app_env.write_config()
    watching = subprocess.Popen(
        app_env.command("status", "--watch", "--json"), env=app_env.environment, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert {json.loads(watching.stdout.readline())["running"] for _ in range(2)} == {None}
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 0


# -- retry -------------------------------------------------------------------------------------------------------------


def test_retry_makes_held_documents_due(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("status", "codat.upload", params={"status": 400})])
    (folder / "a.pdf").write_bytes(b"a")
    (folder / "b.pdf").write_bytes(b"b")
    assert say("sync")[0] == 1
    app_env.simulator.set_faults([])
    assert say("sync")[0] == 1  # held stays held
    first, second = (row["id"] for row in objects(say("list", "--state", "held", "--json")[1]))
    assert "1 document is due now" in say("retry", str(first))[1]
    assert json.loads(say("sync", "--json")[1])["uploaded"] == 1
    code, out, err = say("retry", str(first), str(second), "99")
    assert code == 2
    assert "1 document is due now" in out
    assert f"document {first} is sent" in err
    assert "no document 99" in err
    assert say("sync")[0] == 0
    assert "nothing was held" in say("retry", "--mapping", "bank")[1]


def test_naming_a_mapping_whose_folder_is_empty_accepts_that(app_env: AppEnv, say: Say) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    assert say("sync")[0] == 0
    (folder / "a.pdf").unlink()
    assert say("sync")[0] == 75  # suddenly empty
    assert "accepted as emptied: 1 document marked as absent" in say("retry", "--mapping", "bank")[1]
    assert say("sync")[0] == 0


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_ends_with_0_on_sigterm(app_env: AppEnv, say: Say) -> None:
    """The command runs in this process, so the signal is sent after its ready message."""
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")

    def stop() -> None:
        until(lambda: locks.running(app_env.state) and len(app_env.simulator.stored) == 1)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    code, _, _ = say("run")
    stopper.join()
    assert code == 0
