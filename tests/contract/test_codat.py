"""Test Codat's client: batches, keys, gates, quota, downloads, and lookups with real lists and ZIPs."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from contract.conftest import RemoteEnv
from contract.upload_items import CODAT, COMPANY, CONNECTION, Bytes, item, transfer
from docferry import policy
from docferry.clock import TurnableClock
from docferry.errors import RemoteError
from docferry.model import Found, KnownUploads, State, Target, Transfer, UploadItem
from docferry.remotes.codat.client import Codat
from docferry.remotes.protocol import NOTHING
from docferry.simulator import Fault, SimulatorOptions

pytestmark = pytest.mark.anyio
Make = Callable[..., Any]


async def refused(env: RemoteEnv, name: str = "a.pdf", **more: Any) -> RemoteError:
    with pytest.raises(RemoteError) as failure:
        await env.send(name, **more)
    return failure.value


async def found(env: RemoteEnv, doubt: Transfer, **known: KnownUploads) -> tuple[Found, str]:
    assert isinstance(env.remote, Codat)
    finding = (await env.remote.lookup([doubt], known.get("accounted", NOTHING), known.get("unsettled", NOTHING)))[
        doubt.id
    ]
    return finding.found, finding.proof


def counted(*transfers: Transfer) -> KnownUploads:
    return KnownUploads(
        dict(Counter(each.remote_name for each in transfers)), dict(Counter(each.sha256 for each in transfers))
    )


# sending


async def test_a_batch_is_one_request(codat: Make) -> None:
    env = codat()
    items = [env.item(f"{number}.pdf", b"%d" % number * 50_000) for number in range(20)]
    await env.remote.send(items, "key")
    assert Counter(stored.sha256 for stored in env.sim.stored) == Counter(each.transfer.sha256 for each in items)
    assert env.sim.requests["codat.upload"] == 1


async def test_the_same_request_under_the_same_key_is_stored_once(codat: Make) -> None:
    env = codat()
    sent = env.item("a.pdf", b"x" * 300_000)
    for block in (64 * 1024, 100_000):  # however it was cut, it is the same body
        await env.remote.send([UploadItem(sent.transfer, Bytes(b"x" * 300_000, block))], "key")
    assert env.names == ["a.pdf"]


async def test_the_key_is_taken_raw_or_as_the_header_value(codat: Make) -> None:
    env = codat(key=lambda: "Basic Y29kYXQtZGVtby1rZXk=")
    await env.send("a.pdf")
    env = codat(key=lambda: "  codat-demo-key\n")
    await env.send("a.pdf")


@pytest.mark.parametrize(
    ("status", "scope"),
    [
        (401, "codat"),
        (402, "codat"),
        (403, f"codat/{COMPANY}"),
        (404, CODAT.lane),
        (400, None),
        (413, None),
        (409, None),
    ],
)
async def test_a_refusal_closes_what_it_is_about(codat: Make, status: int, scope: str | None) -> None:
    env = codat()
    env.inject("status", status=status)
    error = await refused(env)
    assert (error.status, error.scope, error.kind) == (status, scope, "answer")
    assert error.correlation_id
    assert error.correlation_id in str(error)


#: Every status that Codat documents: whether the document is doubtful, whether it may be the cause, and the advice.
DOCUMENTED = [
    (400, False, True, "Codat refused the request"),
    (401, False, False, "set a valid one"),
    (402, False, False, "settle it with Codat"),
    (403, False, False, "no access to company"),
    (404, False, False, "does not know connection"),
    (405, False, False, "Codat refused the request"),
    (409, True, False, "Codat refused the request"),
    (429, False, False, "requests a pause"),
    (500, True, False, "an internal error"),
    (503, True, False, "an internal error"),
]


@pytest.mark.parametrize(("status", "doubtful", "about_document", "advice"), DOCUMENTED)
async def test_every_documented_error_has_its_correlation_id(
    codat: Make, status: int, doubtful: bool, about_document: bool, advice: str
) -> None:
    env = codat()
    env.inject("status", status=status)
    error = await refused(env)
    assert (error.status, error.kind, error.about_document) == (status, "answer", about_document)
    assert advice in str(error)
    assert error.correlation_id
    assert f"[correlation id {error.correlation_id}]" in str(error)
    outcome = policy.after_failure(error, policy.FailedAttempt(CODAT.lane, 1, 0.0, 0.0), policy.Backoff())
    assert (outcome.state is State.DOUBTFUL) == doubtful


async def test_an_unknown_company_and_an_unknown_connection_are_told_apart(codat: Make) -> None:
    env = codat()
    env.sim.options.companies = {}
    assert (await refused(env)).scope == f"codat/{COMPANY}"
    env.sim.options.companies = {COMPANY: set()}
    assert (await refused(env)).scope == f"codat/{COMPANY}/{CONNECTION}"


async def test_validation_errors_are_in_the_sentence(codat: Make) -> None:
    error = await refused(codat(), "a.exe")
    assert error.status == 400
    assert "a.exe: The extension is not supported" in str(error)


async def test_a_proxy_s_403_says_nothing_about_the_company(codat: Make) -> None:
    env = codat()
    env.inject("status", status=403, headers={"Content-Type": "text/html"})
    error = await refused(env)
    assert (error.kind, error.scope) == ("not_ours", None)


@pytest.mark.parametrize("form", ["iso", "http"])
async def test_a_spent_quota_waits_for_its_reset(codat: Make, form: str) -> None:
    env = codat()
    env.sim.options.change({"daily_quota": 1, "reset_format": form})
    await env.send("a.pdf")
    health = env.remote.health
    assert (health.limit, health.remaining) == (1, 0)
    error = await refused(env)
    now = datetime.now(UTC)
    until_midnight = 86_400 - (now.hour * 3600 + now.minute * 60 + now.second)
    assert error.scope == "codat"
    assert error.retry_after == pytest.approx(until_midnight, abs=5)
    assert health.reset == pytest.approx(now.timestamp() + until_midnight, abs=5)


async def test_no_more_at_once_than_the_company_allows(codat: Make) -> None:
    env = codat(concurrent_per_company=3)
    env.sim.options.latency = 0.02
    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(env.send, f"{number}.pdf")
    assert env.sim.peak_concurrency[COMPANY] == 3
    assert len(env.names) == 12


async def test_foreign_words_are_shown_escaped_and_short(codat: Make) -> None:
    env = codat()
    env.inject("status", status=400, code="\x1b[31mred\n%s" + "x" * 5000)
    text = str(await refused(env))
    assert "\x1b" not in text
    assert "\n" not in text
    assert len(text) < 800


# lists, downloads, checks


async def test_the_list_and_the_zip_of_a_day(codat: Make, tmp_path: Path) -> None:
    env = codat()
    env.sim.put_company_file(COMPANY, "old.pdf", b"old", uploaded=datetime(2026, 1, 2, tzinfo=UTC))
    await env.send("new.pdf", b"new")
    listed = await env.remote.listing(COMPANY)
    assert [each.file_name for each in listed] == ["old.pdf", "new.pdf"]
    for day, names in (("2026-01-02", ["old.pdf"]), (None, ["old.pdf", "new.pdf"])):
        await env.remote.fetch(COMPANY, day, tmp_path / "day.zip")
        with zipfile.ZipFile(tmp_path / "day.zip") as archive:
            assert [name.rpartition("/")[2] for name in archive.namelist()] == names
    assert (tmp_path / "day.zip").stat().st_mode & 0o077 == 0


async def test_a_download_that_is_cut_or_html_is_an_error(codat: Make, tmp_path: Path) -> None:
    env = codat()
    await env.send("a.pdf", b"x" * 300_000)
    for kind, params in (("truncated_answer", {"at": 1000}), ("html_200", {})):
        env.inject(kind, match="codat.download", **params)
        with pytest.raises(RemoteError):
            await env.remote.fetch(COMPANY, None, tmp_path / "day.zip")


@pytest.mark.parametrize("kind", ["endless_json", "gzip_bomb"])
async def test_what_does_not_begin_like_a_zip_is_taken_no_further(codat: Make, tmp_path: Path, kind: str) -> None:
    """Without end it would fill the disk, and its company's doubts would wait for it."""
    env = codat()
    env.inject(kind, match="codat.download")
    with anyio.fail_after(60), pytest.raises(RemoteError) as failure:
        await env.remote.fetch(COMPANY, None, tmp_path / "day.zip")
    assert failure.value.kind == "not_ours"
    assert (tmp_path / "day.zip").stat().st_size == 0


@pytest.mark.parametrize("kind", ["html_200", "gzip_bomb", "endless_json", "truncated_answer", "redirect", "html_502"])
async def test_a_list_that_is_none_decides_nothing(codat: Make, kind: str) -> None:
    env = codat()
    env.inject(kind, match="codat.list")
    with pytest.raises(RemoteError) as failure:
        await found(env, transfer("a.pdf"))
    assert not failure.value.body_complete


async def test_a_list_of_wrong_rows_decides_nothing(codat: Make) -> None:
    env = codat()
    env.sim.set_faults([Fault("status", "codat.list", params={"status": 200})])  # an object, not a list
    with pytest.raises(RemoteError) as failure:
        await env.remote.listing(COMPANY)
    assert failure.value.kind == "not_ours"


async def test_check_names_a_connection_that_is_not_linked(codat: Make) -> None:
    env = codat()
    env.sim.options.connection_status = {CONNECTION: "Deauthorized"}
    wrong = [each for each in await env.remote.check([CODAT]) if not each.ok]
    assert [(each.subject, each.cure) for each in wrong] == [
        (f"codat connection {CONNECTION}", "link it in Codat's portal")
    ]
    assert (await env.remote.connection(COMPANY, CONNECTION))["status"] == "Deauthorized"


async def test_check_goes_on_where_one_company_is_unknown(codat: Make) -> None:
    env = codat()
    env.sim.options.companies = {COMPANY: {CONNECTION}}
    other = Target("codat", "11111111-1111-1111-1111-111111111111", CONNECTION)
    checked = {each.subject: each.ok for each in await env.remote.check([other, CODAT])}
    assert checked[f"codat company {other.company_id}"] is False
    assert checked[f"codat connection {CONNECTION}"] is True


# doubts


async def test_a_lost_answer_is_found_by_the_zip(codat: Make, tmp_path: Path) -> None:
    env = codat()
    doubt = env.item("a.pdf", b"ours")
    env.inject("lost_answer", first=1)
    with pytest.raises(RemoteError):
        await env.remote.send([doubt], "key")
    assert await found(env, doubt.transfer) == (Found.PRESENT, "zip")
    assert not list((tmp_path / "spool").iterdir()), "the ZIP is not kept"


async def test_a_lost_request_is_found_absent_with_one_request(codat: Make) -> None:
    env = codat()
    doubt = env.item("a.pdf", b"ours")
    env.inject("reset_after", first=1)
    with pytest.raises(RemoteError):
        await env.remote.send([doubt], "key")
    assert await found(env, doubt.transfer) == (Found.ABSENT, "list")
    assert not env.sim.requests["codat.download"]


async def test_a_token_needs_no_zip(codat: Make) -> None:
    env = codat()
    doubt = transfer("")
    doubt = replace(doubt, remote_name=f"invoice~{doubt.token}.pdf")
    assert await found(env, doubt) == (Found.ABSENT, "list")
    await env.remote.send([UploadItem(doubt, Bytes(b"some bytes"))], "key")
    env.sim.put_company_file(COMPANY, "foreign.pdf", b"foreign")
    assert await found(env, doubt) == (Found.PRESENT, "list")
    assert not env.sim.requests["codat.download"]


async def test_someone_else_s_upload_of_that_name_is_not_ours(codat: Make) -> None:
    env = codat()
    env.sim.put_company_file(COMPANY, "a.pdf", b"theirs")
    assert await found(env, transfer("a.pdf", b"ours")) == (Found.ABSENT, "zip")


@pytest.mark.parametrize("rename", ["quote", "nfc", "cut"])
async def test_a_name_that_the_server_changes_is_recognised(codat: Make, rename: str) -> None:
    env = codat()
    env.sim.options.change({"rename": rename})
    doubt = env.item('a "na\u0308ive" ' + "name " * 20 + ".pdf", b"ours")
    await env.remote.send([doubt], "key")
    assert await found(env, doubt.transfer) == (Found.PRESENT, "zip")


async def test_a_list_that_lags_shows_it_later(codat: Make, simulated: Make) -> None:
    clock = TurnableClock()
    sim = simulated(SimulatorOptions(requests_per_minute=0, list_lag=60.0), clock=clock)
    env = codat(sim, clock=clock)
    now = clock.now()
    first = env.item("first.pdf", b"first")
    doubt = UploadItem(transfer("a.pdf", b"ours", first_sent=now, last_sent=now), Bytes(b"ours"))
    await env.remote.send([first], "1")
    await env.remote.send([doubt], "2")
    early = await found(env, doubt.transfer, accounted=counted(first.transfer))
    assert early == (Found.PRESENT, "zip"), "the list lacks what is known to be there, so the ZIPs are asked"
    clock.turn(61)
    assert await found(env, doubt.transfer, accounted=counted(first.transfer)) == (Found.PRESENT, "zip")


async def test_an_empty_list_that_should_not_be_empty_decides_nothing(codat: Make) -> None:
    env = codat()
    known = transfer("known.pdf", b"known")
    assert (await found(env, transfer("a.pdf", b"ours"), accounted=counted(known)))[0] is Found.UNSURE


async def test_the_first_of_a_batch_alone_is_found(codat: Make) -> None:
    env = codat()
    env.sim.options.keeps_only_first_of_batch = True
    batch = [env.item(f"{number}.pdf", b"%d" % number) for number in range(3)]
    await env.remote.send(batch, "key")
    findings = await env.remote.lookup([each.transfer for each in batch], NOTHING)
    assert [findings[each.transfer.id].found for each in batch] == [Found.PRESENT, Found.ABSENT, Found.ABSENT]


async def test_a_broken_zip_decides_nothing(codat: Make) -> None:
    env = codat()
    doubt = env.item("a.pdf", b"x" * 5000)
    await env.remote.send([doubt], "key")
    for at in (1, 100, 3000, 5050):
        env.inject("truncated_answer", match="codat.download", at=at)
        with pytest.raises(RemoteError):
            await found(env, doubt.transfer)


async def test_a_remote_clock_that_is_wrong_hides_nothing(codat: Make) -> None:
    env = codat()
    env.sim.options.date_skew = -7200.0
    doubt = env.item("a.pdf", b"ours")
    await env.remote.send([doubt], "key")
    assert await found(env, doubt.transfer) == (Found.PRESENT, "zip")


async def test_many_doubts_of_one_company_cost_one_list_and_one_zip(codat: Make) -> None:
    env = codat()
    doubts = [item(f"{number}.pdf", b"%d" % number) for number in range(30)]
    for each in doubts[::2]:
        await env.remote.send([each], each.transfer.uid)
    findings = await env.remote.lookup([each.transfer for each in doubts], NOTHING)
    assert [findings[each.transfer.id].found for each in doubts] == [Found.PRESENT, Found.ABSENT] * 15
    assert (env.sim.requests["codat.list"], env.sim.requests["codat.download"]) == (1, 1)
