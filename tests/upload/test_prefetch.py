"""Test prefetched documents: they are sent when a slot is free, unless their lane was closed."""

from __future__ import annotations

import pytest

from docferry.model import State
from docferry.simulator import Fault
from upload.conftest import UploadEnv, names_of

pytestmark = pytest.mark.anyio

#: The number of documents that one worker sends before the fault: then others are prefetched.
FAST = 20


@pytest.fixture
def loaded(env: UploadEnv) -> UploadEnv:
    env.app_env.settings["workers"] = "1"
    env.write_documents(env.app_env.upload("bank"), *names_of(40))
    return env


async def test_it_does_not_go_through_a_gate_that_closed(loaded: UploadEnv) -> None:
    loaded.inject(Fault("too_many", "codat.upload", nth=FAST, params={"seconds": 3600}))
    async with loaded.app() as app:
        counts = await loaded.run_uploads(
            app, lambda _: "codat" in app.gate_manager.closed and not app.scheduler.is_busy
        )
    assert loaded.requests("codat.upload") == FAST
    assert (counts["sent"], counts["waiting"]) == (FAST - 1, 41 - FAST)
    loaded.inject()
    async with loaded.app() as app:
        await app.gates.open_all()
        counts = await loaded.run_uploads(app)
    assert counts["sent"] == sum(loaded.at_codat().values()) == 40


async def test_a_cut_puts_only_what_was_on_its_way_in_doubt(loaded: UploadEnv) -> None:
    loaded.inject(Fault("slow_read", "codat.upload", nth=FAST, params={"rate": 1}))
    async with loaded.app() as app:
        await loaded.run_until(app, lambda: loaded.requests("codat.upload") == FAST)
        counts = await loaded.states(app)
    assert (counts["sent"], counts["doubtful"], counts["waiting"]) == (FAST - 1, 1, 40 - FAST)


async def test_a_stop_sends_nothing_of_it(loaded: UploadEnv) -> None:
    loaded.inject(Fault("slow_read", "codat.upload", nth=FAST, params={"rate": 250}))
    async with loaded.app() as app:
        counts = await loaded.run_uploads(app, lambda _: loaded.requests("codat.upload") == FAST)
        assert not app.scheduler.is_busy
        counts = await loaded.states(app)
    assert loaded.requests("codat.upload") == FAST
    assert (counts["sent"], counts["waiting"]) == (FAST, 40 - FAST)
    assert not any(counts[state] for state in (State.LEASED, State.SENDING, State.DOUBTFUL))
