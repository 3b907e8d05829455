"""Test daemons of several hosts on one PostgreSQL queue: killed, stopped, and their server restarted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from app_env import AppEnv, digest, until
from docferry.simulator import Fault
from faults.conftest import FULL
from postgresql_server import running_server

#: Documents of a run.
DOCUMENTS = 600 if FULL else 120
#: Longer than the time after which others take over, seconds.
TAKEOVER_S = 90.0


#: Python runs this file at its start: a clock that is wrong by so many seconds.
SKEWED = """
import os, time
real, skew = time.time, float(os.environ.get("CLOCK_SKEW", "0"))
time.time = lambda: real() + skew
"""


@contextmanager
def daemons(
    app_env: AppEnv, url: str, *hosts: str, skew: Mapping[str, int] | None = None
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run one daemon for each host, with state folders of their own; kill them at the end.

    `skew` is how many seconds the clock of a host is ahead.
    """
    app_env.write_config()
    running = {}
    try:
        for host in hosts:
            state = app_env.root / f"state-{host}"
            more = {"DOCFERRY_DATABASE_URL": url, "DOCFERRY_HOST": host, "DOCFERRY_STATE_DIR": str(state)}
            if skew is not None:
                more |= {"PYTHONPATH": str(app_env.root / "skewed"), "CLOCK_SKEW": str(skew[host])}
            log = (app_env.root / f"{host}.log").open("wb")
            running[host] = subprocess.Popen(
                app_env.command("run"), env={**app_env.environment, **more}, stdout=log, stderr=log
            )
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def lay(folder: Path, numbers: range) -> None:
    for number in numbers:
        (folder / f"{number:04}.pdf").write_bytes(b"document %d" % number)


def states(url: str) -> Counter[str]:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        return Counter(dict(connection.execute("SELECT state, count(*) FROM transfer GROUP BY 1").fetchall()))


def rows(url: str, query: str) -> list[tuple[str, float]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return [(str(name), float(number)) for name, number in connection.execute(query.encode()).fetchall()]


def value(url: str, query: str) -> str | None:
    """Return the first column of the first row as text."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else str(row[0])


SENDING = "SELECT split_part(lease_owner, ':', 1) FROM transfer WHERE state = 'sending' LIMIT 1"
ALIVE = "SELECT host FROM process WHERE host = '{}' AND heartbeat > extract(epoch FROM clock_timestamp()) - 5"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", ["killed", "stopped", "server"])
def test_each_document_is_sent_once(app_env: AppEnv, fault: str) -> None:
    folder = app_env.upload("share", shared="true")
    app_env.simulator.set_faults([Fault("slow_answer", "codat.upload", params={"rate": 1000})])
    half = range(DOCUMENTS // 2)
    with running_server() as server:
        url = server.new_database()
        lay(folder, half)
        with daemons(app_env, url, "h1", "h2", "h3") as running:
            until(lambda: len(app_env.stored()) > DOCUMENTS // 8, what="the first uploads")
            # A host that finds no server when it starts ends with 75; one that has begun waits for it.
            until(lambda: all(value(url, ALIVE.format(host)) for host in running), what="a heartbeat of each host")
            victim = until(lambda: value(url, SENDING), what="a document in flight")
            if fault == "killed":
                running[victim].kill()
            elif fault == "stopped":
                running[victim].send_signal(signal.SIGSTOP)
            else:
                server.stop()
                server.start()
            lay(folder, range(DOCUMENTS // 2, DOCUMENTS))
            until(lambda: states(url)["sent"] == DOCUMENTS, 60 + TAKEOVER_S, "the last receipt")
            if fault == "stopped":
                os.kill(running[victim].pid, signal.SIGCONT)
                until(lambda: value(url, ALIVE.format(victim)), what="its heartbeat")  # by then it has cut its requests
            assert [host for host, process in running.items() if process.poll() is not None] == (
                [victim] if fault == "killed" else []
            )
        expected = {(f"{n:04}.pdf", digest(b"document %d" % n)): 1 for n in range(DOCUMENTS)}
        assert app_env.stored() == Counter(expected)


@pytest.mark.timeout(300)
def test_clocks_that_differ_by_minutes(app_env: AppEnv) -> None:
    """Answers are lost, and Codat lists documents late: no host may look for them too early, or wait for minutes."""
    app_env.codat["list_lag"] = '"3s"'
    app_env.simulator.options.list_lag = 2.0
    app_env.simulator.set_faults([Fault("lost_answer", "codat.upload", first=10)])
    folder = app_env.upload("share", shared="true")
    skewed = app_env.root / "skewed"
    skewed.mkdir()
    (skewed / "sitecustomize.py").write_text(SKEWED)
    with running_server() as server:
        url = server.new_database()
        lay(folder, range(30))
        with daemons(app_env, url, "late", "early", skew={"late": -300, "early": 300}):
            until(app_env.stored, 60, "the first upload")
            until(lambda: states(url)["sent"] == 30, 120, "the last receipt")
        offsets = dict(rows(url, "SELECT host, clock_offset FROM process"))
        assert (round(offsets["late"], -1), round(offsets["early"], -1)) == (-300, 300)
    expected = {(f"{n:04}.pdf", digest(b"document %d" % n)): 1 for n in range(30)}
    assert app_env.stored() == Counter(expected)
