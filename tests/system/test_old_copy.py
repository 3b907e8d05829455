"""Test a restored old database: the anchored head reveals it, and nothing is sent twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from app_env import AppEnv, digest, until
from docferry.receipts.heads import parse_notes


@pytest.fixture
def anchored(app_env: AppEnv, tmp_path: Path) -> AppEnv:
    (tmp_path / "share").mkdir()
    app_env.sections.append(f'[receipts]\nanchor = ["file:{tmp_path}/share/heads.txt"]')
    return app_env


def sizes(app_env: AppEnv) -> list[int]:
    return [each.head.size for each in parse_notes((app_env.root / "share" / "heads.txt").read_text())]


def backup(app_env: AppEnv) -> Callable[[], None]:
    """Copy the queue; returns how to restore it."""
    copy = app_env.root / "copy.db"
    with closing(sqlite3.connect(app_env.state / "docferry.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)

    def restore() -> None:
        for each in app_env.state.glob("docferry.db*"):
            each.unlink()
        shutil.copy(copy, app_env.state / "docferry.db")

    return restore


def kinds(app_env: AppEnv, content: bytes) -> list[str]:
    done = app_env.run("receipts", "find", digest(content), "--json")
    return [json.loads(line)["kind"] for line in done.stdout.splitlines()]


def test_heads_go_to_a_file_after_each_pass_and_when_the_daemon_stops(anchored: AppEnv) -> None:
    folder = anchored.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    anchored.sync()
    anchored.sync()
    assert sizes(anchored) == [1]
    with anchored.daemon():
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: anchored.stored()["b.pdf", digest(b"b")], what="b.pdf at Codat")
    assert sizes(anchored) == [1, 2]
    done = anchored.run("receipts", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared with 4 heads" in done.stdout


def test_what_an_old_copy_does_not_know_is_asked_for_and_not_sent_again(anchored: AppEnv) -> None:
    folder = anchored.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    anchored.sync()
    (folder / "waits.pdf").write_bytes(b"waits")
    restore = backup(anchored)
    (folder / "new.pdf").write_bytes(b"new")
    anchored.sync()
    assert sizes(anchored) == [1, 3]
    restore()
    (folder / "later.pdf").write_bytes(b"later")
    report = anchored.sync()
    assert set(anchored.stored().values()) == {1}
    assert len(anchored.stored()) == 4
    assert report["due"] == 0
    assert [kinds(anchored, each) for each in (b"a", b"waits", b"new")] == [["sent"], ["adopted"], ["adopted"]]
    done = anchored.run("receipts", "verify")
    assert done.returncode == 1
    assert "older copy" in done.stdout


def test_a_lost_database_is_noticed_and_nothing_goes_again(anchored: AppEnv) -> None:
    folder = anchored.upload("bank")
    for name in ("a.pdf", "b.pdf"):
        (folder / name).write_bytes(name.encode())
    anchored.sync()
    for each in anchored.state.glob("docferry.db*"):
        each.unlink()
    with anchored.daemon() as daemon:
        until(lambda: "old_copy" in daemon.text(), what="the old copy being noticed")
        until(lambda: kinds(anchored, b"b.pdf") == ["adopted"], what="b.pdf being adopted")
        (folder / "c.pdf").write_bytes(b"c")
        until(lambda: anchored.stored()["c.pdf", digest(b"c")], what="c.pdf at Codat")
    assert set(anchored.stored().values()) == {1}


def test_a_pass_without_a_terminal_logs_its_head(app_env: AppEnv) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.settings["log_level"] = '"info"'
    done = app_env.run("sync")
    (head,) = parse_notes(done.stderr)
    assert (done.returncode, head.head.size) == (0, 1)
