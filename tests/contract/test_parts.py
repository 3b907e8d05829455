"""Test the parts of the remotes that need no server: limits, multipart bodies, dates, ZIP members."""

from __future__ import annotations

import email
import re
import zipfile
from collections.abc import Callable
from email.policy import HTTP
from pathlib import Path

import anyio
import pytest

from contract.upload_items import Bytes, item
from docferry.clock import TurnableClock
from docferry.errors import NotNow, RemoteError
from docferry.model import UploadItem
from docferry.remotes.codat import zip_digests
from docferry.remotes.codat.reconcile import Members
from docferry.remotes.http import Form, Response, content_type, parse_time, retry_after, safe_text
from docferry.remotes.protocol import SendPermit
from docferry.remotes.rate_limits import CompanyLimiter, MinuteLimiter


async def blocks_of(form: Form) -> list[bytes]:
    return [block async for block in form.blocks()]


# limits


class Permit(SendPermit):
    """Grant a permit by a condition."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    @property
    def is_granted(self) -> bool:
        return self._condition()


@pytest.mark.anyio
async def test_a_minute_lets_so_many_through_in_order() -> None:
    clock, passed = TurnableClock(), []
    minute = MinuteLimiter(5, clock)
    start = clock.steady()

    async def one(number: int) -> None:
        await minute.acquire()
        passed.append((number, clock.steady() - start))

    async with anyio.create_task_group() as group:
        for number in range(13):
            group.start_soon(one, number)
    assert [number for number, _ in passed] == list(range(13))
    times = [at for _, at in passed]
    assert times[:5] == [0.0] * 5
    assert all(later - earlier >= 60.0 for earlier, later in zip(times, times[5:], strict=False))


@pytest.mark.anyio
async def test_who_gives_up_waiting_takes_no_turn() -> None:
    class Standing(TurnableClock):
        async def sleep(self, _seconds: float) -> None:
            await anyio.sleep_forever()

    clock = Standing()
    minute = MinuteLimiter(1, clock)
    await minute.acquire()
    with anyio.move_on_after(0.01):
        await minute.acquire()
    clock.turn(61.5)
    with anyio.fail_after(60):
        await minute.acquire()


@pytest.mark.anyio
async def test_who_must_not_go_any_more_waits_no_longer() -> None:
    open_ways, left = {0, 1, 2}, list[int]()

    class Closing(TurnableClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            if self.steady() - start > 10:
                open_ways.discard(1)

    clock = Closing()
    minute = MinuteLimiter(1, clock)
    start = clock.steady()

    async def one(number: int) -> None:
        try:
            await minute.acquire(Permit(lambda: number in open_ways))
        except NotNow:
            left.append(number)
            assert clock.steady() - start < 15

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(one, number)
    assert left == [1]
    assert clock.steady() - start < 70  # the next one gets the place of the one that left


@pytest.mark.anyio
async def test_so_many_at_once_for_each_company_alone() -> None:
    doors, inside, most = CompanyLimiter(2), {"a": 0, "b": 0}, {"a": 0, "b": 0}

    async def one(company: str) -> None:
        async with doors.slot(company):
            inside[company] += 1
            most[company] = max(most[company], inside[company])
            await anyio.lowlevel.checkpoint()
            inside[company] -= 1

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one, "a")
            group.start_soon(one, "b")
    assert most == {"a": 2, "b": 2}


@pytest.mark.anyio
@pytest.mark.parametrize("stopped", [False, True])
async def test_who_waits_goes_before_who_leaves(stopped: bool) -> None:
    """The next request starts before this response is processed; a stop in between does not lose the response."""
    doors, order = CompanyLimiter(1), []

    async def one(name: str) -> None:
        async with doors.slot("a"):
            order.append(f"{name} in")
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            if stopped:
                group.cancel_scope.cancel()
        order.append(f"{name} out")

    async with anyio.create_task_group() as group:
        group.start_soon(one, "first")
        group.start_soon(one, "second")
    assert order == (["first in", "first out"] if stopped else ["first in", "second in", "first out", "second out"])


@pytest.mark.anyio
async def test_a_cancelled_visitor_leaves_its_place() -> None:
    doors = CompanyLimiter(1)
    for _ in range(3):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(_stay, doors)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    with anyio.fail_after(60):
        async with doors.slot("a"):
            pass


async def _stay(doors: CompanyLimiter) -> None:
    async with doors.slot("a"):
        await anyio.sleep_forever()


# multipart


@pytest.mark.anyio
@pytest.mark.parametrize("block", [1000, 1 << 20])
async def test_a_form_is_what_another_parser_reads(block: int) -> None:
    sent = [item('a "b".pdf', b"\r\n--x\r\n" * 500, block=block), item("c.csv", b"", block=block)]
    form = Form(sent, fields=[("key", "a/b"), ("Policy", "xyz==")])
    blocks = await blocks_of(form)
    raw = b"".join(blocks)
    assert len(raw) == form.length
    message = email.message_from_bytes(f"Content-Type: {form.content_type}\r\n\r\n".encode() + raw, policy=HTTP)
    parts = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True)) for part in message.walk()
    ]
    assert parts[1:] == [
        ("key", b"a/b"),
        ("Policy", b"xyz=="),
        ("file", b"\r\n--x\r\n" * 500),
        ("file", b""),
    ]


@pytest.mark.anyio
async def test_the_terminator_is_a_block_of_its_own_unless_all_is_one() -> None:
    *rest, end = await blocks_of(Form([item("a.pdf", b"x" * 300_000)]))
    assert re.fullmatch(rb"--docferry-[0-9a-f]{40}--\r\n", end)
    assert b"".join(rest).endswith(b"x\r\n")
    for size in (0, 1, 40_000):
        (whole,) = await blocks_of(Form([item("a.pdf", b"x" * size), item("b.pdf", b"")]))
        assert re.search(rb"\r\n--docferry-[0-9a-f]{40}--\r\n$", whole)


@pytest.mark.anyio
async def test_the_same_transfers_make_the_same_body() -> None:
    first, second = item("a.pdf", b"x" * 100_000), item("b.pdf", b"y")
    again = [
        UploadItem(each.transfer, Bytes(content, 999)) for each, content in ((first, b"x" * 100_000), (second, b"y"))
    ]
    forms = Form([first, second]), Form(again)
    assert b"".join(await blocks_of(forms[0])) == b"".join(await blocks_of(forms[1]))
    assert forms[0].content_type != Form([first]).content_type


@pytest.mark.parametrize(
    ("name", "kind"), [("a.PDF", "application/pdf"), ("a.csv", "text/csv"), ("a", None), ("a.x", None)]
)
def test_types_come_from_a_table_of_our_own(name: str, kind: str | None) -> None:
    assert content_type(name) == (kind or "application/octet-stream")


# the texts of the responses


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sat, 21 Nov 2026 12:00:00 GMT", 1795262400.0),
        ("2026-11-21T12:00:00Z", 1795262400.0),
        ("2026-11-21T12:00:00", 1795262400.0),
        ("2026-11-21T14:00:00.000+02:00", 1795262400.0),
        ("tomorrow", None),
        ("", None),
        ("9999-99-99", None),
    ],
)
def test_moments(text: str, seconds: float | None) -> None:
    assert parse_time(text) == seconds


def test_a_date_to_wait_for_is_by_the_remote_s_clock() -> None:
    headers = {"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT", "date": "Sat, 21 Nov 2026 12:00:00 GMT"}
    assert retry_after(Response(429, headers, b""), now=0.0) == 30.0


def test_foreign_text_is_one_safe_line() -> None:
    assert safe_text("a\n\x1b[31m b\u202e") == "a \\x1b[31m b\\u202e"


# members


def test_every_member_is_counted_by_digest_and_name(tmp_path: Path) -> None:
    archive = tmp_path / "day.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("one/a.pdf", b"same")
        made.writestr("two/b.pdf", b"same")
        made.writestr("two/", b"")
    found = Members()
    zip_digests.count(archive, found)
    assert list(found.digests.values()) == [2]
    assert found.names == {"a.pdf": 1, "b.pdf": 1}


def test_an_empty_answer_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "day.zip").touch()
    found = Members()
    zip_digests.count(tmp_path / "day.zip", found)
    assert not found.digests


def test_a_zip_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as made:
        made.writestr("a.pdf", b"x" * 5000)
    raw = whole.read_bytes()
    for end in range(1, len(raw), 997):
        whole.write_bytes(raw[:end])
        with pytest.raises(RemoteError):
            zip_digests.count(whole, Members())
    whole.write_bytes(raw.replace(b"x" * 100, b"y" * 100, 1))
    with pytest.raises(RemoteError):
        zip_digests.count(whole, Members())


def test_a_bomb_is_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made, made.open("big.pdf", "w") as member:
        for _ in range(70):
            member.write(bytes(1024 * 1024))
    found = Members()
    zip_digests.count(archive, found)
    assert list(found.digests) == ["too large"]
