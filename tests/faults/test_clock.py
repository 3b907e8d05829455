"""A clock that jumps, and a machine that sleeps: row D17 of the catalogue."""

from __future__ import annotations

import signal
import time

import pytest

from crash.nursery import Nursery
from docferry.simulator import Fault
from ground import Ground, digest, until


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_jumps(ground: Ground, nursery: Nursery, jump: int) -> None:
    """What is due in some seconds stays due in some seconds: no early retry, nothing stuck."""
    folder, said = ground.upload("bank"), ground.root / "clock"
    said.write_text("0")
    ground.simulator.set_faults([Fault("too_many", "codat.upload", first=1, params={"seconds": 8})])
    with nursery.daemon(ground, clock=said):
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: ground.simulator.requests["codat.upload"] == 1)
        began = time.monotonic()
        said.write_text(str(jump))
        until(ground.stored, 40, "the document arriving")
        assert time.monotonic() - began > 5
        (folder / "b.pdf").write_bytes(b"b")
        until(lambda: len(ground.stored()) == 2, 20, "the next one arriving")
    assert ground.stored() == {("a.pdf", digest(b"a")): 1, ("b.pdf", digest(b"b")): 1}


@pytest.mark.parametrize("jump", [86_400, -86_400, -1_700_000_000], ids=["day_ahead", "day_back", "1970"])
def test_d17_the_clock_was_turned_while_docferry_was_off(ground: Ground, nursery: Nursery, jump: int) -> None:
    """Nothing stays stuck behind a time that lies in a future that no longer comes."""
    folder, said = ground.upload("bank"), ground.root / "clock"
    (folder / "a.pdf").write_bytes(b"a")
    said.write_text("0")
    assert nursery.bear(ground, "sync", clock=said, fate=("sending>sent:after", 99), CODAT_API_KEY="no").wait() == 75
    said.write_text(str(jump))
    assert nursery.sync(ground, clock=said)["due"] == 0
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}


def test_d17_suspended(ground: Ground, nursery: Nursery) -> None:
    """Stopped in the middle of an upload for longer than the remote's patience: one copy."""
    ground.codat["timeout"] = '"1s"'
    folder = ground.upload("bank")
    ground.simulator.switches.latency = 0.3
    with nursery.daemon(ground) as daemon:
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: ground.simulator.requests["codat.upload"] == 1)
        daemon.signal(signal.SIGSTOP)
        time.sleep(2)  # the machine sleeps
        daemon.signal(signal.SIGCONT)
        until(ground.stored)
    nursery.drained(ground)
    assert ground.stored() == {("a.pdf", digest(b"a")): 1}
