"""Test the set of transitions, and names that are safe to show."""

from __future__ import annotations

import pytest

from docferry.model import DUE, FINAL, IN_FLIGHT, TRANSITIONS, State, Target, escaped


def test_every_state_can_be_reached_and_only_final_ones_cannot_be_left() -> None:
    assert {after for _, after in TRANSITIONS} == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - FINAL
    assert IN_FLIGHT | DUE | FINAL | {State.HELD} == set(State)


def test_nothing_is_sent_that_was_not_leased_and_no_doubt_is_forgotten() -> None:
    assert {before for before, after in TRANSITIONS if after is State.SENDING} == {State.LEASED, State.ASKING}
    assert {before for before, after in TRANSITIONS if after is State.WAITING} == {
        State.LEASED,
        State.SENDING,
        State.HELD,
    }
    assert {after for before, after in TRANSITIONS if before is State.DOUBTFUL} == {State.ASKING}
    assert (State.WAITING, State.SENT) not in TRANSITIONS


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain name.pdf", "plain name.pdf"),
        ("Rechnung März €.pdf".encode(), "Rechnung März €.pdf"),
        (b"\xff\x80.pdf", r"\xff\x80.pdf"),
        ("\udcff.pdf", r"\xff.pdf"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u200f\u2066", r"\u200f\u2066"),
        ("\x9b31m", r"\x9b31m"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
        ("%s{0}", "%s{0}"),
    ],
)
def test_a_name_is_shown_without_its_tricks(raw: bytes | str, shown: str) -> None:
    assert escaped(raw) == shown
    assert escaped(raw).isprintable()


def test_lanes() -> None:
    assert Target("codat", "a", "b").lane == "codat/a/b"
    assert Target("wootiv").lane == "wootiv"
