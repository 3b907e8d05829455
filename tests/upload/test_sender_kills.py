"""Kill a sender, or the daemon with its sender, at every step of a request: row D18 of the catalogue."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from app_env import AppEnv, digest, until
from crash.kill_harness import kill_at_transition, verify_remote
from crash.killed_sender import SENDER_KILL_POINTS
from crash.process_pool import ProcessPool
from upload.test_senders import states

#: The requests with the document, and whether the remote is asked for it. "sent all": the kernel may still have bytes.
EXPECTED = {
    "received": ((1,), False),
    "begun": ((1,), True),
    "sent a part": ((2,), True),
    "sent all": ((1, 2), True),
    "has the response": ((1,), True),
    "replied": ((1,), False),
}
SMALL, LARGE = 3_000, 300_000
CASES = [(point, SMALL) for point in SENDER_KILL_POINTS if point != "sent a part"]  # a small one has no parts
CASES += [("begun", LARGE), ("sent a part", LARGE), ("sent all", LARGE)]
#: So long after a death no other sender starts, seconds.
NEVER_S = 3_600.0


@pytest.fixture
def env(app_env: AppEnv) -> AppEnv:
    app_env.settings |= {"senders": "1", "settle": '"20ms"'}
    app_env.codat |= {"list_lag": '"200ms"', "timeout": '"10s"'}
    app_env.simulator.options.idempotency = False
    return app_env


@pytest.mark.parametrize(("point", "size"), CASES, ids=str)
def test_a_sender_killed_at_every_step(env: AppEnv, process_pool: ProcessPool, point: str, size: int) -> None:
    """The document arrives once. The remote is asked only if it may have the document without a receipt."""
    folder = env.upload("bank")
    with process_pool.daemon(env, senders=(point, NEVER_S)) as daemon:
        made = {("a.pdf", digest(write(folder / "a.pdf", size))): 1}
        until(lambda: "sender_died" in daemon.text(), what="the death of the sender")
        until(lambda: states(env) == {"sent": 1}, what="the receipt")
    assert env.stored() == made
    requests, asks = EXPECTED[point]
    assert env.simulator.requests["codat.upload"] in requests
    assert bool(env.simulator.requests["codat.list"]) is asks


@pytest.mark.parametrize("point", ["begun", "has the response"])
def test_senders_that_die_at_every_request(env: AppEnv, process_pool: ProcessPool, point: str) -> None:
    """Between two senders the daemon sends the documents; the log tells of each death."""
    folder, made = env.upload("bank"), Counter[tuple[str, str]]()
    with process_pool.daemon(env, senders=(point, 0.2)) as daemon:
        for number in range(3):
            died = daemon.text().count("sender_died")
            until(lambda: daemon.text().count("sender_started") > died, what="another sender")  # noqa: B023 - used at once
            for each in range(4):
                name = f"{number}-{each}.pdf"
                made[name, digest(write(folder / name, SMALL))] += 1
            until(lambda: daemon.text().count("sender_died") > died, what="its death")  # noqa: B023 - used at once
            until(lambda: env.stored() == made, what="every document")
        until(lambda: states(env) == {"sent": made.total()}, what="every receipt")
        told = [line for line in daemon.text().splitlines() if "sender_died" in line]
    assert env.stored() == made
    assert all(" error " in line and "exit code -9" in line for line in told), told


@pytest.mark.parametrize("transition", ["waiting>leased", "leased>sending", "send", "sending>sent"])
def test_a_daemon_with_a_sender_killed_at_every_transition(
    app_env: AppEnv, process_pool: ProcessPool, transition: str
) -> None:
    """Before, inside and after each commit; `make soak` has the other transitions, and several kills in a row."""
    kills, made = kill_at_transition(app_env, process_pool, transition, in_a_row=1, senders=1)
    verify_remote(app_env, made)
    assert kills >= 2


def write(path: Path, size: int) -> bytes:
    content = os.urandom(size)
    path.write_bytes(content)
    return content
