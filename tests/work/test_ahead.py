"""What is made ready ahead of the workers: it goes when one is free, and not where its way was closed meanwhile."""

from __future__ import annotations

import pytest

from docferry.model import State
from docferry.simulator import Fault
from work.conftest import Harbour, names_of

pytestmark = pytest.mark.anyio

#: One worker is fast for so many documents that others are ahead of it when something happens.
FAST = 20


@pytest.fixture
def loaded(harbour: Harbour) -> Harbour:
    harbour.ground.settings["workers"] = "1"
    harbour.lay(harbour.ground.upload("bank"), *names_of(40))
    return harbour


async def test_it_does_not_go_through_a_gate_that_closed(loaded: Harbour) -> None:
    loaded.strike(Fault("too_many", "codat.upload", nth=FAST, params={"seconds": 3600}))
    async with loaded.house() as house:
        counts = await loaded.carried(house, lambda _: "codat" in house.keeper.closed and not house.runner.is_busy)
    assert loaded.requests("codat.upload") == FAST
    assert (counts["sent"], counts["waiting"]) == (FAST - 1, 41 - FAST)
    loaded.strike()
    async with loaded.house() as house:
        await house.gates.open_all()
        counts = await loaded.carried(house)
    assert counts["sent"] == sum(loaded.at_codat().values()) == 40


async def test_a_cut_puts_only_what_was_on_its_way_in_doubt(loaded: Harbour) -> None:
    loaded.strike(Fault("slow_read", "codat.upload", nth=FAST, params={"rate": 1}))
    async with loaded.house() as house:
        await loaded.carried_beside(house, lambda: loaded.requests("codat.upload") == FAST)
        counts = await loaded.states(house)
    assert (counts["sent"], counts["doubtful"], counts["waiting"]) == (FAST - 1, 1, 40 - FAST)


async def test_a_stop_sends_nothing_of_it(loaded: Harbour) -> None:
    loaded.strike(Fault("slow_read", "codat.upload", nth=FAST, params={"rate": 1000}))
    async with loaded.house() as house:
        counts = await loaded.carried(house, lambda _: loaded.requests("codat.upload") == FAST)
        assert not house.runner.is_busy
        counts = await loaded.states(house)
    assert loaded.requests("codat.upload") == FAST
    assert (counts["sent"], counts["waiting"]) == (FAST, 40 - FAST)
    assert not any(counts[state] for state in (State.LEASED, State.SENDING, State.DOUBTFUL))
