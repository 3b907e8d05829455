"""Test killed and concurrent processes: rows D1, D2, D7, D8 and D15 of the catalogue."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from app_env import AppEnv
from crash.kill_harness import KILL_POINTS, Dropper, KillHarness, kill_at_transition, verify_remote
from crash.process_pool import KILLED, ChildProcess, ProcessPool
from docferry.store import schema
from faults.conftest import FULL


def test_d1_killed_at_random(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Kill -9 of daemon and `sync` at random, documents dropped all the time: 0 lost, 0 doubled."""
    folders = {"bank": app_env.upload("bank"), "scans": app_env.upload("scans", "wootiv", object_name='"{name}"')}
    kill_harness = KillHarness(app_env, process_pool, seed=1)
    with Dropper(folders, seed=2, most=20_000, pause=0.02 if FULL else 0.08) as dropper:
        kill_harness.storm(200 if FULL else 40)
    kill_harness.drain()
    verify_remote(app_env, dropper.made)
    assert len(dropper.made) > 40


@pytest.mark.parametrize("transition", KILL_POINTS)
def test_d2_killed_at_every_transition(app_env: AppEnv, process_pool: ProcessPool, transition: str) -> None:
    """Kill -9 before, inside and after each move, several in a row: 0 lost, 0 doubled."""
    kills, made = kill_at_transition(app_env, process_pool, transition, in_a_row=5 if FULL else 2)
    verify_remote(app_env, made)
    assert kills >= 2


def test_d7_one_sender_for_each_document(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Daemon and passes that overlap all the time: each document once."""
    app_env.settings |= {"settle": '"50ms"', "log_level": '"info"'}
    folders = {"bank": app_env.upload("bank"), "scans": app_env.upload("scans", "wootiv", object_name='"{name}"')}
    app_env.simulator.options.idempotency = False
    starts = 1_000 if FULL else 40
    with process_pool.daemon(app_env), Dropper(folders, seed=7, most=10_000, pause=0.03) as dropper:
        lives: list[ChildProcess] = []
        for _ in range(starts):
            lives = [child for child in lives if not child.ended()]
            if len(lives) == 4:
                assert lives.pop(0).wait() in (0, 75)
            lives.append(process_pool.spawn(app_env, "sync", "--json"))
        for child in lives:
            assert child.wait() in (0, 75)
    process_pool.drained(app_env)
    verify_remote(app_env, dropper.made)
    assert Counter(each.name for each in app_env.simulator.stored).most_common(1)[0][1] == 1


def test_d8_a_second_daemon_and_a_stale_lock(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """The second daemon is refused with the pid of the first; the lock of a killed one is taken over."""
    app_env.upload("bank")
    app_env.settings["log_level"] = '"info"'
    first = process_pool.spawn(app_env, "run").ready()
    second = process_pool.spawn(app_env, "run")
    assert second.wait() == 2
    assert f"pid {first.pid}" in second.text()
    first.kill()
    with process_pool.daemon(app_env) as third:
        assert not third.ended()


@pytest.mark.parametrize("before", ["", "0001"], ids=["fresh", "first_schema"])
def test_d15_killed_in_a_migration(app_env: AppEnv, process_pool: ProcessPool, before: str) -> None:
    """Old or new schema, never between: killed at each statement, again and again on the same file."""
    app_env.upload("bank")
    database = app_env.state / "docferry.db"
    if before:
        app_env.state.mkdir(mode=0o700)
        schema.migrate(database, before)
    whole: dict[str, frozenset[str]] = {}
    for nth in range(1, 200, 1 if FULL else 3):
        child = process_pool.spawn(app_env, "sync", "--json", kill_at=("statement", nth))
        code = child.wait()
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
