"""Test uploads through Wootiv itself: proof by ETag, lookups, several documents in a request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from contract.conftest import RemoteEnv
from contract.upload_items import WOOTIV, transfer
from docferry.errors import RemoteError
from docferry.model import Finding, Found, Transfer
from docferry.remotes.wootiv import listing
from docferry.remotes.wootiv.direct import MAX_BULK_BYTES, BulkPolicy
from docferry.simulator import Fault, SimulatorOptions

pytestmark = pytest.mark.anyio
Make = Callable[..., Any]
DIRECT = frozenset({"test"})


async def look_up(env: RemoteEnv, doubt: Transfer) -> Finding:
    found: dict[int, Finding] = dict(await env.remote.lookup([doubt], None, None))  # type: ignore[arg-type]  # unused
    return found[doubt.id]


def doubt(name: str, content: bytes, **more: Any) -> Transfer:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return transfer(name, content, WOOTIV, **{"md5": md5, **more})


@pytest.mark.parametrize("name", ["a.pdf", "scans/2026/a b.pdf"])
async def test_the_receipt_is_the_etag_of_the_object(wootiv: Make, name: str) -> None:
    env = wootiv(direct=DIRECT)
    receipt = await env.send(name, b"the bytes")
    assert (receipt.proof, receipt.etag) == ("etag", hashlib.md5(b"the bytes", usedforsecurity=False).hexdigest())
    assert list(env.sim.objects) == [("wootiv-documents", name)]
    assert env.sim.requests["s3.put"] == 0


async def test_a_name_that_no_form_can_carry_goes_by_a_signed_url(wootiv: Make) -> None:
    env = wootiv(direct=DIRECT)
    await env.send("a%22b.pdf")
    assert list(env.sim.objects) == [("wootiv-documents", "a%22b.pdf")]


async def test_other_mappings_go_by_signed_urls(wootiv: Make) -> None:
    env = wootiv(direct=frozenset({"another"}))
    await env.send("a.pdf")
    assert (env.sim.requests["s3.put"], env.sim.requests["wootiv.upload"]) == (1, 0)


@pytest.mark.parametrize("documents", [2, 20])
async def test_several_documents_share_a_request_and_each_is_proved(wootiv: Make, documents: int) -> None:
    env = wootiv(direct=DIRECT)
    items = [env.item(f"scans/{number}.pdf", b"%d" % number) for number in range(documents)]
    receipt = await env.remote.send(items, "")
    assert receipt.proof == "etag"
    assert {key: found.sha256 for (_, key), found in env.sim.objects.items()} == {
        item.transfer.remote_name: item.transfer.sha256 for item in items
    }
    assert (env.sim.requests["wootiv.bulk"], env.sim.requests["wootiv.upload"]) == (1, 0)


async def test_an_object_that_cannot_be_read_is_a_doubt_that_the_lookup_decides(wootiv: Make) -> None:
    env = wootiv(direct=DIRECT)
    env.sim.set_faults([Fault("status", "s3.get", first=1, params={"status": 503})])
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf", b"the bytes")
    assert failure.value.body_complete
    assert (await look_up(env, doubt("a.pdf", b"the bytes"))).found is Found.PRESENT


async def test_an_object_that_shows_late_is_a_doubt(wootiv: Make, simulated: Make) -> None:
    env = wootiv(simulated(SimulatorOptions(store_lag=30.0)), direct=DIRECT)
    with pytest.raises(RemoteError, match="has no object") as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("cut", True)


async def test_the_lookup_tells_absent_other_and_same_bytes(wootiv: Make) -> None:
    env = wootiv(direct=DIRECT)
    assert (await look_up(env, doubt("a.pdf", b"v1"))).found is Found.ABSENT
    await env.send("a.pdf", b"v1")
    assert (await look_up(env, doubt("a.pdf", b"v1"))).found is Found.PRESENT
    assert (await look_up(env, doubt("a.pdf", b"v2"))).found is Found.ABSENT


@pytest.mark.parametrize(("content", "found"), [(b"v1", Found.PRESENT), (b"v2", Found.ABSENT)])
async def test_without_an_md5_the_object_is_read(wootiv: Make, content: bytes, found: Found) -> None:
    """The object has the same size, so only its bytes differ."""
    env = wootiv(direct=DIRECT)
    await env.send("a.pdf", b"v1")
    assert (await look_up(env, doubt("a.pdf", content, md5=None))).found is found


@pytest.mark.parametrize(
    ("status", "about_document", "scope"), [(413, True, None), (422, True, None), (401, False, "wootiv")]
)
async def test_a_refusal_of_a_document(wootiv: Make, status: int, about_document: bool, scope: str | None) -> None:
    env = wootiv(direct=DIRECT)
    env.inject("status", status=status)
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.about_document, failure.value.scope) == (about_document, scope)


async def test_the_health_of_the_buckets_is_checked(wootiv: Make) -> None:
    env = wootiv()
    assert all(each.ok for each in await env.remote.check([WOOTIV]))
    env.sim.set_faults([Fault("status", "wootiv.health", params={"status": 503})])
    *_, buckets = await env.remote.check([WOOTIV])
    assert (buckets.ok, buckets.passes) == (False, True)


async def test_objects_and_buckets_are_listed(wootiv: Make) -> None:
    env = wootiv()
    await env.send("scans/a.pdf", b"abc")
    assert [(each.name, each.size) for each in await env.remote.objects()] == [("scans/a.pdf", 3)]
    assert await env.remote.buckets() == ["wootiv-documents"]


@pytest.mark.parametrize(
    "answer",
    [
        ["a.pdf"],
        [{"Key": "a.pdf", "Size": 3, "ETag": '"abc"'}],
        {"Contents": [{"Key": "a.pdf"}]},
        {"objects": [{"key": "a.pdf"}, {"size": 1}, None, 7]},
    ],
)
def test_objects_are_read_as_s3_and_as_wootiv_write_them(answer: object) -> None:
    assert [each.name for each in listing.objects(answer)] == ["a.pdf"]


@pytest.mark.parametrize("answer", [None, "ok", {"status": "ok"}, {"objects": 7}])
def test_what_is_no_list_is_an_error(answer: object) -> None:
    with pytest.raises(RemoteError, match="not a list"):
        listing.objects(answer)


def test_a_request_has_documents_of_one_folder_up_to_its_limits() -> None:
    policy = BulkPolicy(DIRECT, 2)
    names = ["a/1.pdf", "b/1.pdf", "a/2.pdf", "a/3.pdf", "a/%22.pdf"]
    transfers = [transfer(name, b"", WOOTIV) for name in names]
    transfers.append(replace(transfers[0], id=1, tries=1))
    transfers.append(replace(transfers[0], id=2, mapping="another"))
    transfers.append(replace(transfers[0], id=3, size=MAX_BULK_BYTES + 1))
    divided = [[each.remote_name for each in request] for request in policy.divide(transfers)]
    assert divided[0] == ["a/1.pdf", "a/2.pdf"]
    assert sorted(map(len, divided)) == [1, 1, 1, 1, 1, 1, 2]
    large = [replace(each, size=MAX_BULK_BYTES // 2 + 1) for each in transfers[:1] * 2]
    assert [len(request) for request in BulkPolicy(DIRECT, 20).divide(large)] == [1, 1]
