"""Test the rules that hold for every remote and every way of upload."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from contract.conftest import RemoteEnv
from contract.upload_items import Bytes
from docferry.errors import RemoteError, SourceChanged
from docferry.model import Found, UploadItem
from docferry.remotes.codat.client import CODAT_RULES
from docferry.remotes.protocol import NOTHING
from docferry.remotes.wootiv.client import WOOTIV_RULES
from unreachable_hosts import full_backlog

pytestmark = pytest.mark.anyio
Make = Callable[..., RemoteEnv]


@pytest.mark.parametrize("size", [1, 40_000, 3_000_000])
async def test_a_document_arrives_once_with_its_bytes_and_name(open_env: Make, size: int) -> None:
    env = open_env()
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    receipt = await env.send("report.pdf", content)
    (stored,) = env.sim.stored
    assert (stored.name, stored.sha256, stored.size) == ("report.pdf", hashlib.sha256(content).hexdigest(), size)
    assert receipt.status is not None
    assert 200 <= receipt.status < 300


@pytest.mark.parametrize(
    "name",
    [
        'a "quoted" name.pdf',
        "two\r\nlines.pdf",
        "na\u0308ive \u4f60\u597d.pdf",
        "semi;colon=%22.pdf",
        "x" * 251 + ".pdf",
    ],
)
async def test_awkward_names_arrive_as_they_are(open_env: Make, name: str) -> None:
    env = open_env()
    await env.send(name)
    # The simulator undoes %22 as servers do. A name with a literal %22 looks like one with a quote.
    assert env.names in ([name], [name.replace("%22", '"')])


async def test_a_file_that_changes_is_never_stored(open_env: Make) -> None:
    env = open_env()
    for size in (10, 500_000):
        with pytest.raises(SourceChanged):
            await env.send("a.pdf", b"x" * size, changes=True)
    await env.send("b.pdf")
    assert env.names == ["b.pdf"], "the line is fit for use afterwards, and the others were never whole"


async def test_a_file_that_grows_or_shrinks_is_never_stored(open_env: Make) -> None:
    env = open_env()
    for delta in (-1, 1):
        changed = env.item("a.pdf", b"x" * 200_000)
        source = changed.source
        pretended = type("Pretended", (), {"size": source.size + delta, "blocks": source.blocks, "md5": None})()
        with pytest.raises(SourceChanged):
            await env.remote.send([type(changed)(changed.transfer, pretended)], "key")
    assert env.names == []


async def test_no_connection_is_surely_not_stored(open_env: Make) -> None:
    env = open_env()
    closed = env.sim.url
    env.inject("refuse", match="*", seconds=30.0)
    with pytest.raises(RemoteError):
        await env.send("a.pdf")
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete, failure.value.status) == ("unreachable", False, None)
    assert "127.0.0.1" in str(failure.value)
    assert closed not in str(failure.value)


@pytest.mark.parametrize("through", ["", "a proxy"])
async def test_nothing_of_a_document_is_wanted_before_there_is_a_line(open_env: Make, through: str) -> None:
    """An attempt that was stopped before the connection leaves no doubt, because nothing can have been sent."""

    class Shy(Bytes):
        wanted = False

        def blocks(self) -> AsyncIterator[bytes]:
            self.wanted = True
            return super().blocks()

    with full_backlog() as nobody:
        env = open_env(base_url=f"http://{nobody}") if not through else open_env(proxy=f"http://{nobody}")
        source = Shy(b"some bytes")
        with anyio.move_on_after(0.2) as scope:
            await env.remote.send([UploadItem(env.item("a.pdf").transfer, source)], "key")
        assert (scope.cancelled_caught, source.wanted) == (True, False)
    await env.remote.aclose()


async def test_a_lost_answer_may_have_been_stored(open_env: Make) -> None:
    env = open_env()
    env.inject("lost_answer")
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("cut", True)
    assert env.names == ["a.pdf"]


@pytest.mark.parametrize(
    "kind", ["reset_before", "reset_inside", "reset_after", "lost_answer", "early_413", "html_502"]
)
async def test_whatever_was_not_body_complete_is_not_there(open_env: Make, kind: str) -> None:
    """Certainty about an absent document depends on this."""
    env = open_env()
    env.inject(kind)
    for size in (10, 100_000, 2_000_000):
        before = len(env.names)
        with pytest.raises(RemoteError) as failure:
            await env.send(f"{size}.pdf", b"x" * size)
        assert failure.value.body_complete or len(env.names) == before


async def test_a_200_with_a_cut_body_is_a_200(open_env: Make) -> None:
    env = open_env()
    env.inject("truncated_answer")
    await env.send("a.pdf")
    assert env.names == ["a.pdf"]


@pytest.mark.parametrize("kind", ["html_200", "gzip_bomb", "endless_json"])
@pytest.mark.parametrize("stored", [False, True])
async def test_an_answer_that_is_not_the_remote_s_is_no_receipt(open_env: Make, kind: str, stored: bool) -> None:
    env = open_env()
    params: dict[str, Any] = {"size": 20_000_000} if kind != "html_200" else {}
    env.inject(kind, stored=stored, **params)
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("not_ours", True)


@pytest.mark.parametrize("kind", ["early_413", "early_401"])
async def test_an_early_refusal_is_heard_through_the_reset(open_env: Make, kind: str) -> None:
    env = open_env()
    env.inject(kind)
    for _ in range(10):
        with pytest.raises(RemoteError) as failure:
            await env.send("a.pdf", b"x" * 5_000_000)
        assert failure.value.status == int(kind[-3:])
    assert env.names == []


async def test_after_a_large_body_broke_off_the_next_asks_before_it_comes(open_env: Make) -> None:
    env = open_env()
    large = b"x" * 3_000_000
    env.inject("reset_inside", after=1)
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf", large)
    assert failure.value.status is None
    env.inject("early_413")
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf", large)
    assert (failure.value.status, failure.value.body_complete) == (413, False), "not one byte of it went out"
    env.sim.set_faults([])
    await env.send("a.pdf", large)
    assert env.names == ["a.pdf"]


async def test_a_stall_is_cut_at_the_deadline(open_env: Make) -> None:
    env = open_env(timeout=0.3)
    env.inject("stall")
    with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("timeout", True)


async def test_one_byte_a_second_is_cut_at_the_deadline(open_env: Make) -> None:
    env = open_env(timeout=0.4)
    env.inject("slow_answer", rate=5.0)
    with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.kind, failure.value.body_complete) == ("timeout", True)


async def test_a_server_that_takes_bytes_slowly_is_cut_at_the_deadline(open_env: Make) -> None:
    env = open_env(timeout=0.4)
    env.inject("slow_read", rate=5000.0)
    with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
        await env.send("a.pdf", b"x" * 70_000)
    assert failure.value.kind == "timeout"
    assert env.names == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [("seconds", 7.0), ("date", 7.0), ("past", 0.0), ("garbage", None), ("huge", 86_400.0), ("-3", 0.0), ("nan", None)],
)
async def test_retry_after_in_every_form(open_env: Make, said: str, expected: float | None) -> None:
    env = open_env()
    env.inject("too_many", retry_after=said, seconds=7.0)
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert failure.value.status == 429
    assert failure.value.retry_after == (pytest.approx(expected, abs=1.5) if expected else expected)


async def test_a_redirect_is_not_followed(open_env: Make) -> None:
    env = open_env()
    env.inject("redirect", location="http://localhost:1/elsewhere?secret=1")
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert failure.value.kind == "redirect"
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_after_the_body_is_a_doubt(open_env: Make, status: int) -> None:
    env = open_env()
    env.inject("status", status=status, stored=True)
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    error = failure.value
    assert (error.kind, error.status, error.body_complete, error.scope) == ("answer", status, True, None)
    assert error.correlation_id


async def test_x_should_retry_is_passed_on(open_env: Make) -> None:
    env = open_env()
    for said, expected in (("true", True), ("false", False), ("perhaps", None)):
        env.inject("status", status=409, headers={"X-Should-Retry": said})
        with pytest.raises(RemoteError) as failure:
            await env.send("a.pdf")
        assert failure.value.details.should_retry is expected


async def test_a_kept_line_that_dies_as_the_request_arrives_makes_no_second_copy(open_env: Make) -> None:
    env = open_env()
    await env.send("before.pdf")
    env.inject("stale_keepalive", match="*", first=1)
    with pytest.raises(RemoteError):
        await env.send("struck.pdf")
    assert env.names == ["before.pdf"]
    await env.send("after.pdf")
    assert env.names == ["before.pdf", "after.pdf"]


async def test_a_storm_of_cancels_leaves_the_remote_usable(open_env: Make) -> None:
    env = open_env()
    env.sim.options.latency = 0.01
    for round_ in range(10):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(env.send, f"{round_}-{number}.pdf", b"x" * 10_000)
            await anyio.sleep(0.003 * round_)  # the storm strikes at another point of the request each time
            group.cancel_scope.cancel()
    env.sim.options.latency = 0.0
    with anyio.fail_after(60):
        await env.send("after the storm.pdf")
    assert "after the storm.pdf" in env.names


async def test_the_environment_s_proxies_are_not_believed(open_env: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    env = open_env()
    await env.send("a.pdf")
    assert env.names == ["a.pdf"]


async def test_a_renewed_key_counts_at_once(open_env: Make) -> None:
    keys = ["old-secret-key"]
    env = open_env(key=lambda: keys[0])
    with pytest.raises(RemoteError) as failure:
        await env.send("a.pdf")
    assert (failure.value.status, failure.value.scope) == (401, env.target.remote)
    assert env.names == []
    assert "old-secret-key" not in str(failure.value)
    keys[0] = env.sim.options.codat_key if env.target.remote == "codat" else env.sim.options.wootiv_key
    await env.send("a.pdf")
    assert env.names == ["a.pdf"]


async def test_a_missing_key_is_said_before_anything_is_sent(open_env: Make) -> None:
    env = open_env(key=lambda: None)
    with pytest.raises(RemoteError, match="no API key") as failure:
        await env.send("a.pdf")
    assert (failure.value.status, failure.value.scope) == (401, env.target.remote)
    assert not env.sim.requests


async def test_nothing_to_ask_brings_nothing(open_env: Make) -> None:
    assert await open_env().remote.lookup([], NOTHING) == {}


async def test_what_was_never_sent_is_absent(open_env: Make) -> None:
    env = open_env()
    doubt = env.item("never.pdf").transfer
    found = await env.remote.lookup([doubt], NOTHING)
    assert found[doubt.id].found is Found.ABSENT


async def test_check_says_what_works(open_env: Make) -> None:
    env = open_env()
    assert all(each.ok for each in await env.remote.check([env.target]))
    assert not env.sim.stored


async def test_check_names_a_refused_key(open_env: Make) -> None:
    env = open_env(key=lambda: "wrong")
    first = (await env.remote.check([env.target]))[0]
    assert not first.ok
    assert "API_KEY" in first.cure


async def test_health_tells_of_the_last_answer_and_the_clock(open_env: Make) -> None:
    env = open_env()
    assert env.remote.health.last_answer is None
    env.sim.options.date_skew = -120.0
    await env.send("a.pdf")
    health = env.remote.health
    assert health.last_answer is not None
    assert health.clock_offset == pytest.approx(-120.0, abs=3.0)
    assert health.requests >= 1


def test_the_rules_name_the_cure() -> None:
    assert CODAT_RULES.broken("a.PDF", 10 * 1024 * 1024) is None
    assert WOOTIV_RULES.broken("a.exe", 5 * 1024**3) is None
    for rules, name, size, code in (
        (CODAT_RULES, "a.pdf", 0, "empty"),
        (CODAT_RULES, "a.pdf", 10 * 1024 * 1024 + 1, "too_large"),
        (CODAT_RULES, "a.exe", 1, "extension"),
        (CODAT_RULES, "pdf", 1, "extension"),
        (WOOTIV_RULES, "a.pdf", 5 * 1024**3 + 1, "too_large"),
    ):
        broken = rules.broken(name, size)
        assert broken is not None
        assert broken[0] == code
        assert "exclude" in broken[1]
