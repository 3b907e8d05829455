"""Faults of processes, database and clock, caused for real: rows D1 to D17 of the catalogue."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from crash.cradle import MOMENTS
from crash.nursery import KILLED, Nursery
from crash.siege import Dropper, Siege, judge
from docferry.simulator import Fault
from ground import Ground, digest

#: Bigger, for an hour when the machine is free.
FULL = bool(os.environ.get("DOCFERRY_FULL"))
LOST = [Fault("lost_answer", "codat.upload", first=3)]
NEVER_CAME = [Fault("reset_after", "codat.upload", first=3)]

#: Each arrow of a transfer's life, and what must happen at the far shore for it to be passed.
ARROWS: dict[str, list[Fault]] = {
    "new>waiting": [],
    "waiting>leased": [],
    "leased>sending": [],
    "send": [],
    "sending>sent": [],
    "sending>waiting": [Fault("too_many", "codat.upload", first=3, params={"seconds": 0})],
    "sending>doubtful": LOST,
    "doubtful>asking": LOST,
    "find": LOST,
    "asking>sent": LOST,
    "asking>sending": NEVER_CAME,
    "asking>doubtful": [*LOST, Fault("status", "codat.list", first=3)],
    "sweep": [],
}
#: A claim, a sweep and a question have no inside of their own: they are one statement, or none.
WITHOUT_INSIDE = {"waiting>leased", "doubtful>asking", "find", "sweep"}


def test_d1_killed_at_random(ground: Ground, nursery: Nursery) -> None:
    """kill -9 of daemon and `sync` at random, documents dropped all the time: 0 lost, 0 doubled."""
    folders = {"bank": ground.upload("bank"), "scans": ground.upload("scans", "wootiv", object_name='"{name}"')}
    siege = Siege(ground, nursery, seed=1)
    with Dropper(folders, seed=2, most=20_000, pause=0.02 if FULL else 0.08) as dropper:
        siege.storm(200 if FULL else 40)
    siege.peace()
    judge(ground, dropper.made)
    assert len(dropper.made) > 40


@pytest.mark.parametrize("arrow", ARROWS)
def test_d2_killed_at_every_arrow(ground: Ground, nursery: Nursery, arrow: str) -> None:
    """kill -9 before, inside and after each move, several in a row: 0 lost, 0 doubled."""
    ground.settings |= {"settle": '"10ms"', "log_level": '"warning"'}
    ground.codat |= {"list_lag": '"60ms"', "timeout": '"2s"'}
    ground.simulator.switches.idempotency = False
    folder = ground.upload("bank")
    made: Counter[tuple[str, str]] = Counter()
    for moment in MOMENTS:
        if moment == "inside" and arrow in WITHOUT_INSIDE:
            continue
        ground.simulator.set_faults(ARROWS[arrow])
        for number in range(3):
            content = f"{moment} {number}".encode()
            (folder / f"{moment}-{number}.pdf").write_bytes(content)
            made[f"{moment}-{number}.pdf", digest(content)] += 1
        if arrow == "sweep":
            assert nursery.bear(ground, "sync", fate=("send:before", 1)).wait() == KILLED
        for death in range(5 if FULL else 2):
            ended = nursery.bear(ground, "sync", fate=(f"{arrow}:{moment}", 1)).wait()
            assert ended == KILLED or death, f"{arrow}:{moment} was not passed"
        nursery.drained(ground)
    judge(ground, made)
