"""Test the whole program with sender processes: row D18 of the catalogue."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from app_env import COMPANY, AppEnv, digest, until
from crash.process_pool import KILLED, ChildProcess, ProcessPool
from docferry.senders.handle import CANCEL_S, END_S
from senders.conftest import is_alive

SIZES = (10, 40_000, 700_000)
#: The delay of a response while senders are killed, seconds. A request that was cut is stored after it, so `list_lag`
#: is longer.
LATENCY_S = 2.0
LIST_LAG = '"6s"'


@pytest.fixture
def env(app_env: AppEnv) -> AppEnv:
    app_env.settings |= {"senders": "2", "settle": '"50ms"', "rescan": '"1s"'}
    return app_env


def drop(folder: Path, count: int, sizes: Sequence[int] = SIZES, batch: str = "") -> Counter[tuple[str, str]]:
    """Write documents of these sizes in turn; return their names and digests."""
    made = Counter[tuple[str, str]]()
    for number in range(count):
        name = f"{folder.name}{batch}{number}.pdf"
        content = name.encode() + os.urandom(sizes[number % len(sizes)])
        (folder / name).write_bytes(content)
        made[name, digest(content)] += 1
    return made


def senders_of(daemon: ChildProcess) -> list[int]:
    words = [line.partition("pid=")[2].split()[0] for line in daemon.text().splitlines() if "sender_started" in line]
    return [pid for pid in map(int, words) if is_alive(pid)]


def have_ended(pids: Sequence[int]) -> bool:
    return not any(map(is_alive, pids))


def requests_of(daemon: ChildProcess) -> int:
    """Return the requests of senders that have stopped."""
    stopped = [line for line in daemon.text().splitlines() if "sender_stopped" in line]
    return sum(int(line.partition("requests=")[2].split()[0]) for line in stopped)


def in_flight(env: AppEnv, company: str = COMPANY) -> int:
    return env.simulator.codat.limits.in_flight(company)


def states(env: AppEnv) -> Counter[str]:
    with closing(sqlite3.connect(env.state / "docferry.db")) as database:
        return Counter(row[0] for row in database.execute("SELECT state FROM transfer"))


def test_documents_go_to_every_remote_through_senders(env: AppEnv, process_pool: ProcessPool) -> None:
    folders = [
        env.upload("bank"),
        env.upload("scans", "wootiv", object_name='"{name}"'),
        env.upload("forms", "wootiv", object_name='"{name}"', via='"direct"'),
    ]
    with process_pool.daemon(env, senders=True) as daemon:
        made = sum((drop(folder, 4) for folder in folders), Counter[tuple[str, str]]())
        until(lambda: env.stored() == made, 60, "every document")
        until(lambda: states(env) == {"sent": 12}, 20, "every receipt")
    assert requests_of(daemon) >= 12


def test_one_pass_uses_senders_too(env: AppEnv, process_pool: ProcessPool) -> None:
    made = drop(env.upload("bank"), 6)
    child = process_pool.spawn(env, "sync", "--json", senders=True)
    assert child.wait() == 0
    assert child.report()["uploaded"] == 6
    assert env.stored() == made
    assert requests_of(child) >= 6


def test_without_senders_everything_is_sent_in_process(env: AppEnv, process_pool: ProcessPool) -> None:
    env.settings["senders"] = "0"
    made = drop(env.upload("bank"), 40, [2_000_000])
    child = process_pool.spawn(env, "sync", "--json")
    assert child.wait() == 0
    assert env.stored() == made
    assert "sender_started" not in child.text()


def test_killed_senders_lose_and_double_nothing(env: AppEnv, process_pool: ProcessPool) -> None:
    env.codat |= {"timeout": '"30s"', "list_lag": LIST_LAG}
    folder, made = env.upload("bank"), Counter[tuple[str, str]]()
    with process_pool.daemon(env, senders=True) as daemon:
        for batch in ("a", "b"):
            until(lambda: len(senders_of(daemon)) == 2, 60, "two senders")
            env.simulator.options.latency = LATENCY_S
            made += drop(folder, 10, batch=batch)
            until(lambda: in_flight(env), 60, "requests of senders")
            killed = senders_of(daemon)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            until(partial(have_ended, killed), 20, "the end of the senders")
            env.simulator.options.latency = 0.0
        until(lambda: states(env) == {"sent": 20}, 60, "every receipt")
        assert env.stored() == made
        assert daemon.text().count("sender_died") == 4


def test_a_killed_daemon_takes_its_senders_along(env: AppEnv, process_pool: ProcessPool) -> None:
    env.codat |= {"timeout": '"30s"', "list_lag": LIST_LAG}
    env.simulator.options.latency = LATENCY_S
    folder = env.upload("bank")
    daemon = process_pool.spawn(env, "run", senders=True).ready()
    until(lambda: len(senders_of(daemon)) == 2, 60, "two senders")
    made = drop(folder, 20)
    until(lambda: in_flight(env), 60, "requests in flight")
    senders = senders_of(daemon)
    daemon.kill()
    assert daemon.code == KILLED
    until(partial(have_ended, senders), 20, "the end of the senders")
    env.simulator.options.latency = 0.0
    process_pool.drained(env)
    assert env.stored() == made


def test_a_stop_waits_for_requests_of_senders(env: AppEnv, process_pool: ProcessPool) -> None:
    """Requests in flight after `stop_grace` are cut, doubtful, and resolved by the next pass."""
    env.settings["stop_grace"] = '"200ms"'
    env.codat |= {"timeout": '"30s"', "list_lag": LIST_LAG}
    env.simulator.options.latency = LATENCY_S
    folder = env.upload("bank")
    daemon = process_pool.spawn(env, "run", senders=True).ready()
    made = drop(folder, 12, [40_000])
    until(lambda: in_flight(env), 60, "requests in flight")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert not states(env)["sending"]
    assert "sender_died" not in daemon.text()
    assert not senders_of(daemon)
    env.simulator.options.latency = 0.0
    process_pool.drained(env)
    assert env.stored() == made


def test_a_sender_that_stands_still_delays_no_stop(env: AppEnv, process_pool: ProcessPool) -> None:
    env.settings |= {"stop_grace": '"200ms"', "senders": "1"}
    env.codat |= {"timeout": '"30s"', "list_lag": LIST_LAG}
    env.simulator.options.latency = LATENCY_S
    folder = env.upload("bank")
    daemon = process_pool.spawn(env, "run", senders=True).ready()
    until(lambda: senders_of(daemon), 60, "a sender")
    made = drop(folder, 6, [40_000])
    until(lambda: in_flight(env), 60, "requests in flight")
    for pid in senders_of(daemon):
        os.kill(pid, signal.SIGSTOP)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    assert CANCEL_S + 2 * END_S < 5  # it ends within `stop_grace` + 5 s
    assert not states(env)["sending"]
    assert not senders_of(daemon)
    env.simulator.options.latency = 0.0
    process_pool.drained(env)
    assert env.stored() == made
