"""What is accounted for at a remote: sent, or not known to be there."""

from __future__ import annotations

import pytest

from docferry.model import Outcome, State, Target
from docferry.store.transfers import Pick
from store.conftest import ACME, Shop

pytestmark = pytest.mark.anyio


async def test_what_was_sent_explains_names_and_digests(shop: Shop) -> None:
    first = await shop.sending("a.pdf")
    await shop.transfers.settle(first, Outcome(State.SENT), was=State.SENDING)
    middle = shop.clock.now() + 5
    shop.clock.turn(10)
    second = await shop.sending("b.pdf")
    await shop.transfers.settle(second, Outcome(State.SENT), was=State.SENDING)
    found = await shop.transfers.accounted(ACME, names_since=0, digests_since=middle)
    assert found.names == {"a.pdf": 1, "b.pdf": 1}
    assert found.digests == {second.sha256: 1}
    until = await shop.transfers.accounted(ACME, names_since=0, digests_since=0, until=middle)
    assert (until.names, until.digests) == ({"a.pdf": 1}, {first.sha256: 1})
    stranger = Target("codat", "stranger", "bank")
    assert (await shop.transfers.accounted(stranger, names_since=0, digests_since=0)).names == {}


async def test_what_may_or_may_not_show_yet_is_unsettled(shop: Shop) -> None:
    old = await shop.sending("old.pdf")
    await shop.transfers.settle(old, Outcome(State.SENT), was=State.SENDING)
    shop.clock.turn(100)
    await shop.held("too large.pdf", "too_large")
    await shop.held("undecidable.pdf", "undecidable")
    fresh = await shop.sending("fresh.pdf")
    await shop.transfers.settle(fresh, Outcome(State.SENT), was=State.SENDING)
    asked = await shop.asking("asked.pdf")
    await shop.sending("wire.pdf")
    doubt = await shop.sending("doubt.pdf")
    await shop.transfers.settle(doubt, Outcome(State.DOUBTFUL), was=State.SENDING)
    await shop.enqueue("leased.pdf")
    await shop.transfers.claim([Pick(each, 1) for each in await shop.transfers.lanes() if not each.doubtful], 1)
    await shop.enqueue("waits.pdf")
    since = shop.clock.now() - 50
    found = await shop.transfers.unsettled(ACME, sent_since=since, apart_from=[asked.id])
    assert found.names == {"fresh.pdf": 1, "wire.pdf": 1, "doubt.pdf": 1, "undecidable.pdf": 1}
    assert (await shop.transfers.unsettled(ACME, sent_since=since, apart_from=[])).names["asked.pdf"] == 1
