"""Test Wootiv's client: signed URLs, ETags of other bytes, interrupted and resumed downloads."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from contract.conftest import RemoteEnv
from contract.upload_items import WOOTIV, Bytes, transfer
from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.model import Found, UploadItem
from docferry.remotes.protocol import NOTHING
from docferry.simulator import Simulator, SimulatorOptions

pytestmark = pytest.mark.anyio
Make = Callable[..., Any]


class OtherMd5(Bytes):
    """Provide a source with a wrong digest that is known before the upload."""

    @property
    def md5(self) -> str:
        return "0" * 32


class LateMd5(Bytes):
    """Provide a large source with a wrong digest that is known after the upload."""

    gone = False

    @property
    def md5(self) -> str | None:  # type: ignore[override]  # as a Source may; Bytes knows it at once
        return "0" * 32 if self.gone else None

    async def blocks(self) -> AsyncIterator[bytes]:
        async for block in super().blocks():
            yield block
        self.gone = True


class HastyClock(SystemClock):
    """Advance a minute at each read."""

    def __init__(self) -> None:
        self.ahead, self.step = 0.0, 60.0

    def now(self) -> float:
        self.ahead += self.step
        return super().now() + self.ahead


async def refused(env: RemoteEnv) -> RemoteError:
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    return failure.value


# sending


@pytest.mark.parametrize("signed", ["put", "post"])
@pytest.mark.parametrize("sign_content_type", [False, True])
async def test_what_was_signed_is_sent_as_it_was_signed(wootiv: Make, signed: str, sign_content_type: bool) -> None:
    env = wootiv(signed=signed)
    env.sim.options.sign_content_type = sign_content_type
    receipt = await env.send("scans/2026/na\u0308ive 100%.pdf", b"x" * 100_000)
    assert receipt.proof == "etag"
    ((_, key),) = env.sim.objects
    assert key == "scans/2026/na\u0308ive 100%.pdf"


@pytest.mark.parametrize("signed", ["put", "post"])
async def test_an_etag_of_other_bytes_means_send_again(wootiv: Make, signed: str) -> None:
    env = wootiv(signed=signed)
    with pytest.raises(RemoteError, match="ETag") as failure:
        await env.remote.send([UploadItem(transfer("a.pdf", target=WOOTIV), LateMd5(b"some bytes"))], "")
    assert (failure.value.kind, failure.value.body_complete) == ("redo", True)


async def test_a_digest_that_is_known_goes_along_and_other_bytes_never_stand(wootiv: Make) -> None:
    env = wootiv()
    with pytest.raises(RemoteError, match="BadDigest") as failure:
        await env.remote.send([UploadItem(transfer("a.pdf", target=WOOTIV), OtherMd5(b"some bytes"))], "")
    assert (failure.value.kind, failure.value.status) == ("redo", 400)
    assert env.names == []


@pytest.mark.parametrize("where", ["signed", "in the fields alone"])
async def test_a_digest_that_wootiv_names_goes_before_ours(
    wootiv: Make, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours would be refused with BadDigest, or break the signature; so it gets as far as the ETag."""
    env = wootiv()
    theirs = {"content-md5": b64encode(hashlib.md5(b"some bytes", usedforsecurity=False).digest()).decode()}
    sign = env.sim.s3.sign

    def signed(method: str, base: str, bucket: str, key: str, headers: dict[str, str]) -> str:
        url: str = sign(method, base, bucket, key, headers | theirs if where == "signed" else headers)
        return url

    monkeypatch.setattr(env.sim.s3, "sign", signed)
    put_url = env.sim.wootiv.put_url

    def answered(base: str, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = put_url(base, name)
        return answer | {"fields": answer["fields"] | {"Content-MD5": theirs["content-md5"]}}

    monkeypatch.setattr(env.sim.wootiv, "put_url", answered)
    with pytest.raises(RemoteError, match="its ETag is"):
        await env.remote.send([UploadItem(transfer("a.pdf", target=WOOTIV), OtherMd5(b"some bytes"))], "")
    assert env.names == ["a.pdf"]


async def test_nothing_is_added_to_a_signed_form(wootiv: Make) -> None:
    """The policy names every field; an additional digest would be refused."""
    env = wootiv(signed="post")
    with pytest.raises(RemoteError, match="its ETag is"):
        await env.remote.send([UploadItem(transfer("a.pdf", target=WOOTIV), OtherMd5(b"some bytes"))], "")


async def test_an_etag_that_is_no_md5_proves_nothing_either_way(wootiv: Make) -> None:
    env = wootiv()
    for headers in (
        {"ETag": '"abc-12"'},
        {"ETag": f'"{"1" * 32}"', "x-amz-server-side-encryption": "aws:kms"},
        {"ETag": f'"{"1" * 32}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ):
        env.inject("status", status=200, headers=headers, stored=True)
        assert (await env.send("a.pdf")).proof == "answer"


async def test_a_200_without_an_etag_is_no_receipt(wootiv: Make) -> None:
    env = wootiv()
    env.inject("swallow")
    assert (await refused(env)).kind == "not_ours"
    env.inject("status", status=200)
    assert (await refused(env)).kind == "not_ours"


@pytest.mark.parametrize("signed", ["put", "post"])
async def test_an_expired_url_asks_for_a_new_one(wootiv: Make, simulated: Make, signed: str) -> None:
    clock = HastyClock()
    env = wootiv(simulated(SimulatorOptions(requests_per_minute=0, url_lifetime=5.0), clock=clock), signed)
    error = await refused(env)
    assert (error.kind, error.status, error.scope) == ("signature", 403, None)
    clock.step = 0.0
    await env.send("a.pdf")


async def test_a_wrong_signature_says_nothing_about_the_key(wootiv: Make) -> None:
    env = wootiv()
    env.inject("status", status=403, code="SignatureDoesNotMatch")
    assert (await refused(env)).kind == "signature"
    env.inject("status", status=403, code="AccessDenied")
    error = await refused(env)
    assert (error.kind, error.scope) == ("storage", None)


@pytest.mark.parametrize("code", ["BadDigest", "IncompleteBody", "RequestTimeout"])
async def test_a_400_about_the_bytes_on_their_way_is_not_about_the_document(wootiv: Make, code: str) -> None:
    env = wootiv()
    env.inject("status", status=400, code=code)
    assert (await refused(env)).kind == "redo"


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_wootiv_s_own_refusal_closes_wootiv(wootiv: Make, status: int) -> None:
    env = wootiv()
    env.inject("status", match="wootiv.sign", status=status)
    error = await refused(env)
    assert (error.status, error.scope, error.body_complete) == (status, "wootiv", False)


async def test_wootiv_s_validation_is_about_the_document(wootiv: Make) -> None:
    env = wootiv()
    env.inject("status", match="wootiv.sign", status=422)
    error = await refused(env)
    assert (error.scope, error.about_document) == (None, True)


async def test_a_question_that_is_too_large_says_nothing_about_the_document(wootiv: Make) -> None:
    env = wootiv()
    env.inject("early_413", match="wootiv.sign")
    error = await refused(env)
    assert (error.kind, error.status, error.scope, error.body_complete) == ("not_ours", 413, None, False)


@pytest.mark.parametrize("kind", ["html_200", "lost_answer", "endless_json", "truncated_answer", "redirect"])
async def test_trouble_while_signing_never_leaves_a_doubt(wootiv: Make, kind: str) -> None:
    env = wootiv()
    env.inject(kind, match="wootiv.sign")
    error = await refused(env)
    assert not error.body_complete
    assert not env.sim.requests["s3.put"]


async def test_no_error_shows_a_signature(wootiv: Make) -> None:
    env = wootiv()
    for kind in ("lost_answer", "html_502", "redirect", "early_413", "reset_inside", "html_200"):
        env.inject(kind)
        text = repr((await refused(env)).__dict__) + str(await refused(env))
        assert "X-Amz" not in text
        assert "/s3/" not in text


async def test_a_put_may_be_repeated(wootiv: Make) -> None:
    env = wootiv()
    doubt = transfer("a.pdf", target=WOOTIV)
    finding = (await env.remote.lookup([doubt], NOTHING))[doubt.id]
    assert (finding.found, finding.proof) == (Found.ABSENT, "put")
    await env.send("a.pdf")
    await env.send("a.pdf")
    assert len(env.sim.objects) == 1


async def test_an_empty_document_can_be_put(wootiv: Make) -> None:
    env = wootiv()
    await env.send("empty.txt", b"")
    assert env.names == ["empty.txt"]


# fetching


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def stored(sim: Simulator, content: bytes) -> str:
    return sim.put_object("reports/latest 1.pdf", content).etag.strip('"')


async def test_an_object_comes_whole_and_only_when_it_changed(wootiv: Make, tmp_path: Path) -> None:
    env = wootiv()
    to = tmp_path / "latest"
    etag = stored(env.sim, b"x" * 3_000_000)
    fetched = await env.remote.fetch("reports/latest 1.pdf", to, None)
    assert (fetched.etag, fetched.changed, to.read_bytes()) == (etag, True, b"x" * 3_000_000)
    to.unlink()
    assert not (await env.remote.fetch("reports/latest 1.pdf", to, etag)).changed
    assert left_in(tmp_path) == [], "nothing is left behind"


async def test_a_download_goes_on_where_it_broke_off(wootiv: Make, tmp_path: Path) -> None:
    env = wootiv()
    to = tmp_path / "latest"
    content = bytes(range(256)) * 8000
    stored(env.sim, content)
    env.inject("truncated_answer", match="s3.get", at=1_500_000, extra=0, first=1)
    with pytest.raises(RemoteError) as failure:
        await env.remote.fetch("reports/latest 1.pdf", to, None)
    assert (failure.value.kind, to.stat().st_size) == ("cut", 1_500_000)
    assert (await env.remote.fetch("reports/latest 1.pdf", to, None)).changed
    assert to.read_bytes() == content
    assert [seen.status for seen in env.sim.log if seen.route == "s3.get"] == [200, 206]
    assert left_in(tmp_path) == [to]


async def test_an_object_that_changed_meanwhile_is_not_glued_together(wootiv: Make, tmp_path: Path) -> None:
    env = wootiv()
    to = tmp_path / "latest"
    stored(env.sim, b"old" * 500_000)
    env.inject("truncated_answer", match="s3.get", at=1_000_000, extra=0, first=1)
    with pytest.raises(RemoteError):
        await env.remote.fetch("reports/latest 1.pdf", to, None)
    stored(env.sim, b"new" * 600_000)
    with pytest.raises(RemoteError, match="changed"):
        await env.remote.fetch("reports/latest 1.pdf", to, None)
    assert (await env.remote.fetch("reports/latest 1.pdf", to, None)).changed
    assert to.read_bytes() == b"new" * 600_000


async def test_bytes_that_are_not_the_object_s_are_thrown_away(wootiv: Make, tmp_path: Path) -> None:
    env = wootiv()
    to = tmp_path / "latest"
    etag = stored(env.sim, b"x" * 1000)
    env.inject("status", match="s3.get", status=200, headers={"ETag": f'"{etag}"'})
    with pytest.raises(RemoteError, match="ETag"):
        await env.remote.fetch("reports/latest 1.pdf", to, None)
    assert not to.exists()


async def test_an_object_that_is_not_there_is_said(wootiv: Make, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as failure:
        await wootiv().remote.fetch("nothing.pdf", tmp_path / "x", None)
    assert (failure.value.status, failure.value.scope) == (404, None)


async def test_a_url_without_tls_is_not_used_behind_tls(
    wootiv: Make, simulated: Make, certificates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = simulated(tls=certificates.server)
    env = wootiv(sim, ca_file=certificates.ca_file)
    sign = sim.s3.sign
    monkeypatch.setattr(sim.s3, "sign", lambda *args, **more: sign(*args, **more).replace("https://", "http://"))
    assert "TLS" in str(await refused(env))
    assert not sim.requests["s3.put"]
