"""Test clock jumps and suspended machines: row D17 of the catalogue."""

from __future__ import annotations

import signal
import time

import pytest

from app_env import AppEnv, digest, until
from crash.process_pool import ProcessPool
from docferry.simulator import Fault


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_jumps(app_env: AppEnv, process_pool: ProcessPool, jump: int) -> None:
    """The remaining delay of a transfer stays equal: no early retry, no endless delay."""
    folder, said = app_env.upload("bank"), app_env.root / "clock"
    said.write_text("0")
    app_env.simulator.set_faults([Fault("too_many", "codat.upload", first=1, params={"seconds": 8})])
    with process_pool.daemon(app_env, clock=said):
        (folder / "a.pdf").write_bytes(b"a")
        # The jump comes once the pause is recorded; one between the response and its row may let it end early.
        until(lambda: any(row["attempts"] == 1 for row in app_env.rows("--state", "waiting")), what="the pause")
        said.write_text(str(jump))
        until(app_env.stored, what="the document arriving")
        refused, again = [seen.at_first_byte for seen in app_env.simulator.log if seen.route == "codat.upload"]
        assert again - refused > 5
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: len(app_env.stored()) == 2, what="the next one arriving")
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1, ("b.pdf", digest(b"b")): 1}


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_was_turned_while_docferry_was_off(app_env: AppEnv, process_pool: ProcessPool, jump: int) -> None:
    """No transfer waits for a time that the corrected clock reaches much later."""
    folder, said = app_env.upload("bank"), app_env.root / "clock"
    (folder / "a.pdf").write_bytes(b"a")
    said.write_text("0")
    assert (
        process_pool.spawn(app_env, "sync", clock=said, kill_at=("sending>sent:after", 99), CODAT_API_KEY="no").wait()
        == 75
    )
    said.write_text(str(jump))
    assert process_pool.sync(app_env, clock=said)["due"] == 0
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


def test_d17_suspended(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """Stopped in the middle of an upload for longer than the remote's patience: one copy."""
    app_env.codat["timeout"] = '"1s"'
    folder = app_env.upload("bank")
    app_env.simulator.options.latency = 0.3
    with process_pool.daemon(app_env) as daemon:
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: app_env.simulator.requests["codat.upload"] == 1)
        daemon.signal(signal.SIGSTOP)
        time.sleep(2)  # the machine sleeps
        daemon.signal(signal.SIGCONT)
        until(app_env.stored)
    process_pool.drained(app_env)
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}
