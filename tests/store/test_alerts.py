"""Test the rows of alerts, for each host by itself."""

from __future__ import annotations

import pytest

from docferry.store.alerts import Alert, AlertDelivery, Alerts, Observed
from store.conftest import StoreEnv

pytestmark = pytest.mark.anyio


def alert(key: str, since: float = 1.25, **more: object) -> Alert:
    found = Alert(key, since, (("mapping", "a'b\n\udcff"),), "sum", "do", Observed.FIRING, 3.0, 2.0)
    for name, value in more.items():
        setattr(found, name, value)
    return found


async def test_what_is_kept_comes_back(env: StoreEnv) -> None:
    rows = Alerts(env.database)
    told = {"ops": AlertDelivery(Observed.FIRING, 4.5, 0), "pager": AlertDelivery(None, 0.0, 17)}
    kept = [
        alert("disk", labels=()),
        alert("folder/a", deliveries=told),
        alert("folder/a", since=9.0, observed=Observed.RESOLVED, ended=8.0),
    ]
    await rows.replace(kept)
    assert await rows.all() == kept
    await rows.replace(kept[1:2])
    assert await rows.all() == kept[1:2]
    await rows.replace([])
    assert await rows.all() == []
    assert await env.column("SELECT count(*) FROM alert_delivery") == [0]


async def test_each_host_has_its_own(env: StoreEnv) -> None:
    here, there = Alerts(env.database, "here"), Alerts(env.database, "there")
    await here.replace([alert("disk", deliveries={"ops": AlertDelivery(Observed.FIRING, 1.0, 0)})])
    await there.replace([alert("disk", summary="other")])
    assert [each.summary for each in await here.all()] == ["sum"]
    await there.replace([])
    assert [each.deliveries["ops"].delivered for each in await here.all()] == [Observed.FIRING]


async def test_silences_end(env: StoreEnv) -> None:
    rows = Alerts(env.database)
    await rows.silence("disk", 200.0, now=100.0)
    await rows.silence("folder/*", 300.0, now=100.0)
    assert await rows.silences(150.0) == {"disk": 200.0, "folder/*": 300.0}
    assert await rows.silences(250.0) == {"folder/*": 300.0}
    await rows.silence("disk", 400.0, now=250.0)
    await rows.silence("folder/*", 0.0, now=250.0)
    assert await rows.silences(250.0) == {"disk": 400.0}


async def test_uploads_of_a_day_are_counted(env: StoreEnv) -> None:
    await env.sending("a.pdf")
    await env.change("UPDATE transfer SET state = 'sent', last_sent = 50")
    assert await Alerts(env.database).uploaded_since(49.0) == 1
    assert await Alerts(env.database).uploaded_since(50.0) == 0
