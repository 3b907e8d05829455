"""Test network shares that do not answer: the commands and the other mappings continue."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from app_env import AppEnv, Daemon, until
from docferry.simulator import Fault
from hung_share import hung_share

COMMANDS = (("status",), ("list",), ("check", "--offline"), ("config", "show"), ("retry", "--all"), ("sync", "--json"))


def _start(app_env: AppEnv, *words: str) -> subprocess.Popen[str]:
    environment, pipe = app_env.environment, subprocess.PIPE
    return subprocess.Popen(app_env.command(*words), env=environment, stdout=pipe, stderr=pipe, text=True)


def test_commands_name_a_share_that_does_not_answer(app_env: AppEnv) -> None:
    """Every command starts, names the folder, and does its work for the other mappings."""
    share, bank = app_env.upload("share"), app_env.upload("bank")
    (bank / "1.pdf").write_bytes(b"%PDF-1.4 a document\n%%EOF")
    app_env.write_config()
    with hung_share(share):
        running = {words[0]: _start(app_env, *words) for words in COMMANDS}
        ended = {name: (*process.communicate(timeout=90), process.returncode) for name, process in running.items()}
    for name, (_, stderr, _) in ended.items():
        assert f"{share} does not answer" in stderr + ended[name][0], (name, stderr)
        assert "Traceback" not in stderr
    codes = {name: code for name, (_, _, code) in ended.items()}
    assert codes == {"status": 0, "list": 0, "check": 75, "config": 0, "retry": 0, "sync": 75}
    assert json.loads(ended["sync"][0])["uploaded"] == 1


def test_the_daemon_serves_the_others_and_takes_the_share_up_again(app_env: AppEnv) -> None:
    """The daemon starts without the share, `status` names it, and its documents go once it answers."""
    share, bank = app_env.upload("share"), app_env.upload("bank")
    for folder in (share, bank):
        (folder / f"{folder.name}.pdf").write_bytes(b"%PDF-1.4 " + folder.name.encode() + b"\n%%EOF")
    with ExitStack() as mounted:
        mounted.enter_context(hung_share(share))
        with app_env.daemon() as daemon:
            until(lambda: len(app_env.stored()) == 1, what="the upload of the other mapping")
            until(lambda: f"{share} does not answer" in _status_text(app_env), what="the problem in the status file")
            problems = {name: row["problem"] for name, row in json.loads(_status_text(app_env))["mappings"].items()}
            assert problems["bank"] is None
            assert f"{share} does not answer" in problems["share"]
            mounted.close()
            until(lambda: len(app_env.stored()) == 2, what="the upload of the share's document")
            assert daemon.running.poll() is None
    assert set(app_env.stored().values()) == {1}


def test_a_share_that_turns_out_to_be_another_mapping_sends_nothing(app_env: AppEnv) -> None:
    """A folder that answers late and is the folder of another mapping goes to one target only."""
    bank = app_env.upload("bank")
    (bank / "1.pdf").write_bytes(b"%PDF-1.4 a document\n%%EOF")
    way = app_env.root / "way"
    way.mkdir()
    (way / "link").symlink_to(bank)
    app_env.sections.append(f'[[upload]]\nname = "share"\nfolder = "{way}/link"\nto = "wootiv"\n')
    with ExitStack() as mounted:
        mounted.enter_context(hung_share(way))
        with app_env.daemon() as daemon:
            until(lambda: len(app_env.stored()) == 1, what="the upload of the first mapping")
            mounted.close()
            until(lambda: "folder_refused" in daemon.text(), what="the refusal of the second mapping")
            assert "have different targets" in daemon.text()
            (bank / "2.pdf").write_bytes(b"%PDF-1.4 another document\n%%EOF")
            until(lambda: len(app_env.stored()) == 2, what="the second document of the first mapping")
    assert set(app_env.stored().values()) == {1}


def test_a_scan_that_hangs_does_not_delay_the_stop(app_env: AppEnv) -> None:
    """SIGTERM ends the daemon with 0 although a thread scans a hung share, and the log names the share."""
    share, bank = app_env.upload("share"), app_env.upload("bank")
    app_env.settings["rescan"] = '"1s"'
    with app_env.daemon() as daemon, ExitStack() as mounted:
        (share / "1.pdf").write_bytes(b"%PDF-1.4 before\n%%EOF")
        until(lambda: len(app_env.stored()) == 1, what="the upload before the share hangs")
        mounted.enter_context(hung_share(share))
        until(lambda: _threads_in(daemon, "fuse") >= 1, what="the scan in the hung share")
        (bank / "2.pdf").write_bytes(b"%PDF-1.4 after\n%%EOF")
        until(lambda: len(app_env.stored()) == 2, what="the upload of the other mapping")
        assert daemon.end(60) == 0
        assert f"{share} does not answer" in daemon.text()
    assert {row["state"] for row in app_env.rows()} == {"sent"}


def test_a_file_that_hangs_does_not_delay_the_stop(app_env: AppEnv) -> None:
    """SIGTERM ends the daemon although a document of a hung share is being opened, and the document stays queued."""
    share, bank = app_env.upload("share"), app_env.upload("bank", "wootiv")
    app_env.settings |= {"rescan": '"1h"', "stop_grace": '"1s"'}
    pause = {"retry_after": "seconds", "seconds": 3}
    app_env.simulator.set_faults([Fault("too_many", "codat.upload", first=1, params=pause)])
    (share / "1.pdf").write_bytes(b"%PDF-1.4 before\n%%EOF")
    with app_env.daemon() as daemon, ExitStack() as mounted:
        until(lambda: "becomes=waiting" in daemon.text(), what="the refusal of the first attempt")
        until(lambda: '"watch": "watching"' in _status_text(app_env), what="the watch")
        mounted.enter_context(hung_share(share))
        until(lambda: "leased" in _states(app_env), what="the document that is opened in the hung share")
        (bank / "2.pdf").write_bytes(b"%PDF-1.4 after\n%%EOF")
        until(lambda: len(app_env.stored()) == 1, what="the upload of the other mapping")
        assert daemon.end(60) == 0
        assert f"{share} does not answer" in daemon.text()
    assert {row["mapping"]: row["state"] for row in app_env.rows()} == {"share": "waiting", "bank": "sent"}
    assert app_env.sync()["uploaded"] == 1


def _states(app_env: AppEnv) -> set[str]:
    with closing(sqlite3.connect(f"file:{app_env.state}/docferry.db?mode=ro", uri=True)) as queue:
        return {state for (state,) in queue.execute("SELECT state FROM transfer")}


def _status_text(app_env: AppEnv) -> str:
    path = app_env.state / "status.json"
    return path.read_text() if path.exists() else ""


def _threads_in(daemon: Daemon, function: str) -> int:
    """Return the number of the daemon's threads that wait in a function of the kernel with this prefix."""
    found = 0
    for thread in Path(f"/proc/{daemon.running.pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            found += (thread / "wchan").read_text().startswith(function)
    return found


def test_real_paths_are_known_behind_a_hung_one(tmp_path: Path) -> None:
    """A path that hangs does not delay the answer of those behind it."""
    from docferry.settings.real_paths import RealPaths

    hung, target, link = tmp_path / "hung", tmp_path / "target", tmp_path / "link"
    hung.mkdir()
    target.mkdir()
    link.symlink_to(target)
    with hung_share(hung):
        found = RealPaths([hung / "a", link, tmp_path / "none", hung / "b", target], limit=1.0)
        assert [found[path].answers for path in (hung / "a", link, tmp_path / "none", hung / "b")] == [
            False,
            True,
            True,
            False,
        ]
        assert found[link].path == target
        assert found[link].is_same(found[target])
        assert found.unanswered([target, hung / "b"]) == hung / "b"
        assert not found.has_late_answer
    until(lambda: found.has_late_answer, what="the answer after the end of the share")
