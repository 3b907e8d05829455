"""Counts of uploads that explain the list of a remote."""

from __future__ import annotations

import pytest

from docferry.model import Outcome, State, Target
from docferry.store.claims import Pick
from store.conftest import ACME, StoreEnv

pytestmark = pytest.mark.anyio


async def test_sent_transfers_account_for_names_and_digests(env: StoreEnv) -> None:
    first = await env.sending("a.pdf")
    await env.transfers.settle(first, Outcome(State.SENT), was=State.SENDING)
    middle = env.clock.now() + 5
    env.clock.turn(10)
    second = await env.sending("b.pdf")
    await env.transfers.settle(second, Outcome(State.SENT), was=State.SENDING)
    found = await env.transfers.accounted(ACME, names_since=0, digests_since=middle)
    assert found.names == {"a.pdf": 1, "b.pdf": 1}
    assert found.digests == {second.sha256: 1}
    until = await env.transfers.accounted(ACME, names_since=0, digests_since=0, until=middle)
    assert (until.names, until.digests) == ({"a.pdf": 1}, {first.sha256: 1})
    stranger = Target("codat", "stranger", "bank")
    assert (await env.transfers.accounted(stranger, names_since=0, digests_since=0)).names == {}


async def test_transfers_that_the_list_may_lack_are_unsettled(env: StoreEnv) -> None:
    old = await env.sending("old.pdf")
    await env.transfers.settle(old, Outcome(State.SENT), was=State.SENDING)
    env.clock.turn(100)
    await env.held("too large.pdf", "too_large")
    await env.held("undecidable.pdf", "undecidable")
    fresh = await env.sending("fresh.pdf")
    await env.transfers.settle(fresh, Outcome(State.SENT), was=State.SENDING)
    asked = await env.asking("asked.pdf")
    await env.sending("wire.pdf")
    doubt = await env.sending("doubt.pdf")
    await env.transfers.settle(doubt, Outcome(State.DOUBTFUL), was=State.SENDING)
    await env.enqueue("leased.pdf")
    await env.transfers.claim([Pick(each, 1) for each in await env.transfers.lanes() if not each.doubtful], 1)
    await env.enqueue("waits.pdf")
    since = env.clock.now() - 50
    found = await env.transfers.unsettled(ACME, sent_since=since, apart_from=[asked.id])
    assert found.names == {"fresh.pdf": 1, "wire.pdf": 1, "doubt.pdf": 1, "undecidable.pdf": 1}
    assert (await env.transfers.unsettled(ACME, sent_since=since, apart_from=[])).names["asked.pdf"] == 1
