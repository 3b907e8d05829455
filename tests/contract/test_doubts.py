"""Test the decision about doubts from list and ZIP. Times are seconds around the first attempt."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from msgspec.structs import replace

from contract.upload_items import transfer
from docferry.clock import iso
from docferry.model import Found, KnownUploads, Transfer
from docferry.remotes.codat.reconcile import ListedUpload, Members, Reconciliation, lookback, same
from docferry.remotes.protocol import NOTHING

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def doubt(name: str, content: bytes = b"ours", at: float = 0.0) -> Transfer:
    begun = NOON + at
    return transfer(name, content, created=NOON - 60, first_sent=begun, last_sent=begun + 1)


def row(name: str, at: float = 1.0, uploaded: str | None = None) -> ListedUpload:
    return ListedUpload.read(name, uploaded if uploaded is not None else iso(NOON + at) or "", 0.0)


def others(*documents: tuple[str, bytes]) -> KnownUploads:
    names = Counter(name for name, _ in documents)
    return KnownUploads(dict(names), dict(Counter(sha256(content).hexdigest() for _, content in documents)))


def zipped(*documents: tuple[str, bytes]) -> Members:
    members = Members()
    for name, content in documents:
        members.add(f"Business file upload/{name}", sha256(content).hexdigest())
    return members


def judged(
    doubts: list[Transfer],
    rows: list[ListedUpload],
    members: Members | None = None,
    accounted: KnownUploads = NOTHING,
    unsettled: KnownUploads = NOTHING,
) -> list[tuple[Found, str]]:
    """Return the finding of each doubt; without `members` from the list alone."""
    case = Reconciliation(doubts, accounted, unsettled, rows, NOON + 60)
    found = case.by_list()
    if members is not None:
        assert case.days, "the list decided alone"
        found |= case.by_archive(members)
    return [(found[each.id].found, found[each.id].proof) for each in doubts]


def test_a_token_decides_by_the_list_alone() -> None:
    ours = doubt("")
    ours = replace(ours, remote_name=f"invoice~{ours.token}.pdf")
    assert judged([ours], [row(ours.remote_name), row("other.pdf")]) == [(Found.PRESENT, "list")]
    assert judged([ours], [row("other.pdf"), row("invoice.pdf")]) == [(Found.ABSENT, "list")]


def test_a_token_that_may_have_been_cut_off_needs_the_zip() -> None:
    ours = doubt("")
    ours = replace(ours, remote_name=f"{'a' * 70}~{ours.token}.pdf")
    cut = "a" * 60 + ".pdf"
    assert judged([ours], [row(cut)], zipped((cut, b"ours"))) == [(Found.PRESENT, "zip")]


def test_a_list_with_nothing_unexplained_means_absent() -> None:
    assert judged([doubt("a.pdf")], []) == [(Found.ABSENT, "list")]
    assert judged([doubt("a.pdf")], [row("a.pdf", -900)]) == [(Found.ABSENT, "list")]
    known = others(("b.pdf", b"b"))
    assert judged([doubt("a.pdf")], [row("b.pdf")], accounted=known) == [(Found.ABSENT, "list")]


@pytest.mark.parametrize("name", ["a.pdf", "something else.pdf"])
def test_whatever_is_unexplained_is_looked_at_by_digest(name: str) -> None:
    assert judged([doubt("a.pdf")], [row(name)], zipped((name, b"ours"))) == [(Found.PRESENT, "zip")]
    assert judged([doubt("a.pdf")], [row(name)], zipped((name, b"foreign"))) == [(Found.ABSENT, "zip")]


def test_a_zip_that_lags_decides_nothing() -> None:
    rows = [row("a.pdf"), row("b.pdf")]
    assert judged([doubt("a.pdf")], rows, zipped(("b.pdf", b"b"))) == [(Found.UNSURE, "zip")]
    assert judged([doubt("a.pdf")], rows, zipped()) == [(Found.UNSURE, "zip")]


@pytest.mark.parametrize("rows", [[], [row("much earlier.pdf", -500_000)]], ids=["empty", "stale"])
def test_a_list_that_lacks_what_is_known_to_be_there_decides_nothing(rows: list[ListedUpload]) -> None:
    known = others(("b.pdf", b"b"))
    assert judged([doubt("a.pdf")], rows, zipped(), accounted=known)[0][0] is Found.UNSURE


def test_a_stale_list_is_no_matter_when_the_zips_show_all() -> None:
    known = others(("b.pdf", b"b"))
    both = zipped(("b.pdf", b"b"), ("a.pdf", b"ours"))
    assert judged([doubt("a.pdf")], [], both, accounted=known) == [(Found.PRESENT, "zip")]
    assert judged([doubt("a.pdf")], [], zipped(("b.pdf", b"b")), accounted=known) == [(Found.ABSENT, "zip")]


def test_files_of_one_name_are_counted_by_digest() -> None:
    known = others(("a.pdf", b"theirs"))
    rows = [row("a.pdf", -60), row("a.pdf", 1)]
    both = zipped(("a.pdf", b"theirs"), ("a.pdf", b"ours"))
    assert judged([doubt("a.pdf")], rows, both, accounted=known) == [(Found.PRESENT, "zip")]
    one = zipped(("a.pdf", b"theirs"))
    assert judged([doubt("a.pdf")], rows[:1], one, accounted=known) == [(Found.ABSENT, "zip")]


def test_files_of_one_digest_are_counted() -> None:
    known = others(("a.pdf", b"ours"))
    rows = [row("a.pdf", -60), row("b.pdf", 1)]
    both = zipped(("a.pdf", b"ours"), ("b.pdf", b"ours"))
    assert judged([doubt("b.pdf")], rows, both, accounted=known) == [(Found.PRESENT, "zip")]
    assert judged([doubt("b.pdf")], [*rows[:1], row("c.pdf")], zipped(("a.pdf", b"ours"), ("c.pdf", b"c")), known) == [
        (Found.ABSENT, "zip")
    ]


def test_one_copy_settles_one_doubt_only() -> None:
    doubts = [doubt("b.pdf"), doubt("a.pdf")]
    found = judged(doubts, [row("a.pdf")], zipped(("a.pdf", b"ours")))
    assert found == [(Found.ABSENT, "zip"), (Found.PRESENT, "zip")], "the name tells which"


def test_what_others_may_have_stored_is_not_taken_for_ours() -> None:
    maybe = others(("a.pdf", b"ours"))
    members = zipped(("a.pdf", b"ours"))
    assert judged([doubt("a.pdf")], [row("a.pdf")], members, unsettled=maybe)[0][0] is Found.UNSURE
    two = zipped(("a.pdf", b"ours"), ("a.pdf", b"ours"))
    assert judged([doubt("a.pdf")], [row("a.pdf")] * 2, two, unsettled=maybe) == [(Found.PRESENT, "zip")]


def test_copies_that_are_fewer_than_who_may_have_brought_them_are_said_to_be_nobody_s() -> None:
    case = Reconciliation(
        [doubt("a.pdf")], others(("a.pdf", b"ours")), others(("a.pdf", b"ours")), [row("a.pdf")] * 2, NOON + 60
    )
    assert not case.by_list()
    (found,) = case.by_archive(zipped(("a.pdf", b"ours"), ("a.pdf", b"ours"))).values()
    assert found.found is Found.UNSURE
    assert "one copy" in found.detail
    assert "2 documents of this company may have brought them" in found.detail


def test_others_in_flight_with_other_names_need_no_zip() -> None:
    maybe = others(("b.pdf", b"b"), ("c.pdf", b"c"))
    assert judged([doubt("a.pdf")], [row("b.pdf")], unsettled=maybe) == [(Found.ABSENT, "list")]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('a "b".pdf', "a %22b%22.pdf"),
        ("na\u0308ive.pdf", "n\u00e4ive.pdf"),
        ("long " * 20 + ".pdf", ("long " * 20)[:60] + ".pdf"),
        ("long " * 20 + ".pdf", ("long " * 20)[:64]),
    ],
)
def test_a_name_that_the_server_changed_is_explained(sent: str, kept: str) -> None:
    known = others((sent, b"b"))
    assert judged([doubt("a.pdf")], [row(kept)], accounted=known) == [(Found.ABSENT, "list")]


def test_a_cut_name_that_may_be_ours_is_not_explained_away() -> None:
    known = others(("a" * 70 + "1.pdf", b"theirs"))
    ours = doubt("a" * 70 + "2.pdf")
    rows = [row("a" * 60 + ".pdf")]
    assert judged([ours], rows, zipped(("a" * 60 + ".pdf", b"ours")), accounted=known) == [(Found.PRESENT, "zip")]


@pytest.mark.parametrize(
    ("uploaded", "days"),
    [
        ("2026-11-21T12:00:00Z", {21}),
        ("2026-11-21T12:00:00.1234567Z", {21}),
        ("2026-11-22T01:00:00+13:00", {21, 22}),
        ("2026-11-21T12:00:00", {20, 21, 22}),
        ("yesterday", set()),
        ("", set()),
    ],
)
def test_dates_in_every_form(uploaded: str, days: set[int]) -> None:
    made = ListedUpload.read("a.pdf", uploaded, 0.0)
    assert {day.day for day in made.days} == days
    assert made.vague == (len(days) != 1 and "+" not in uploaded)


def test_a_row_without_a_readable_time_is_a_candidate() -> None:
    ours = doubt("a.pdf")
    assert judged([ours], [row("x.pdf", uploaded="garbage")], zipped(("x.pdf", b"ours"))) == [(Found.PRESENT, "zip")]


def test_a_remote_clock_that_is_ahead_hides_nothing() -> None:
    early = ListedUpload.read("a.pdf", iso(NOON - 3600) or "", offset=-3600.0)  # their clock is an hour late
    assert early.at == pytest.approx(NOON)


def test_since_reaches_back_to_the_first_attempt() -> None:
    early, late = doubt("a.pdf", at=-7200), doubt("b.pdf")
    asked = lookback([late, early])
    assert asked.names == NOON - 7200 - 300
    assert datetime.fromtimestamp(asked.digests, UTC) == datetime(2026, 11, 19, tzinfo=UTC)


def test_the_dates_cover_all_that_is_counted_when_contents_are_identical() -> None:
    case = Reconciliation(
        [doubt("a.pdf")], others(("b.pdf", b"ours")), NOTHING, [row("a.pdf"), row("b.pdf")], NOON + 60
    )
    case.by_list()
    assert sorted(day.day for day in case.days) == [19, 20, 21, 22]


def test_names_are_compared_as_servers_keep_them() -> None:
    assert same("a%22b") == same('a"b')
    assert same("na\u0308ive") == same("n\u00e4ive")
    assert same("a.pdf") != same("A.pdf")
