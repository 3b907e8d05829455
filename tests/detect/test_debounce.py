"""Test that a file is processed after `settle` without change, and never forgotten or delayed without end."""

from __future__ import annotations

from docferry.clock import TurnableClock
from docferry.detect.debounce import Debouncer
from docferry.model import SeenFile, Stamp


def seen(
    clock: TurnableClock, age: float, *, name: bytes = b"a.pdf", size: int = 1, mtime_age: float | None = None
) -> SeenFile:
    def at(seconds: float) -> int:
        return int((clock.now() - seconds) * 1e9)

    return SeenFile(b"in", name, Stamp(size, at(age if mtime_age is None else mtime_age), at(age)))


def test_an_old_file_is_quiet_at_once() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    assert debouncer.offer("m", seen(clock, 6), 5)
    assert len(debouncer) == 0
    assert debouncer.next_due() is None


def test_a_fresh_file_ripens_when_its_stamp_is_old_enough() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 2)
    assert not debouncer.offer("m", seen_file, 5)
    assert debouncer.next_due() == clock.steady() + 3
    clock.turn(2.9)
    assert debouncer.due() == []
    clock.turn(0.1)
    assert debouncer.due() == [("m", b"in/a.pdf")]
    assert debouncer.due() == []
    assert debouncer.offer("m", seen_file, 5)
    assert len(debouncer) == 0


def test_a_file_that_changes_starts_over() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    assert not debouncer.offer("m", seen(clock, 0), 5)
    for size in range(2, 6):
        clock.turn(5)
        assert debouncer.due()
        last = seen(clock, 1, size=size)
        assert not debouncer.offer("m", last, 5)
        assert debouncer.next_due() == clock.steady() + 4
        clock.turn(-1)  # it changed a second before it was looked at: ripe again after four
    clock.turn(5)
    assert debouncer.due()
    assert debouncer.offer("m", last, 5)


def test_a_file_that_went_away_is_forgotten() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    debouncer.offer("m", seen(clock, 0), 5)
    clock.turn(5)
    [key] = debouncer.due()
    debouncer.forget(*key)
    assert len(debouncer) == 0
    assert debouncer.next_due() is None


def test_an_old_mtime_does_not_make_it_early() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    assert not debouncer.offer("m", seen(clock, 0, mtime_age=1e6), 5)


def test_a_stamp_from_the_future_neither_early_nor_stuck() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    future = seen(clock, 0, mtime_age=-1e6)
    assert not debouncer.offer("m", future, 5)
    clock.turn(4)
    assert not debouncer.offer("m", future, 5)
    assert debouncer.due() == []
    clock.turn(1)
    assert debouncer.due()
    assert debouncer.offer("m", future, 5)


def test_a_change_seen_by_another_offer_starts_the_timer_again() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    future = seen(clock, 0, mtime_age=-1e6)
    debouncer.offer("m", future, 5)
    clock.turn(4)
    other = seen(clock, 0, mtime_age=-1e6, size=2)
    assert not debouncer.offer("m", other, 5)
    clock.turn(1)
    assert debouncer.due() == []
    clock.turn(4)
    assert debouncer.due()
    assert debouncer.offer("m", other, 5)


def test_when_the_wall_clock_jumps_forward_old_stamps_prove_nothing() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 0)
    clock.wall += 86_400
    assert not debouncer.offer("m", seen_file, 5)
    clock.turn(5)
    assert debouncer.offer("m", seen_file, 5)
    assert debouncer.offer("m", seen(clock, 6, name=b"b.pdf"), 5)


def test_when_the_wall_clock_jumps_back_nothing_is_stuck() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 0)
    clock.wall -= 86_400
    assert not debouncer.offer("m", seen_file, 5)
    clock.turn(5)
    assert debouncer.offer("m", seen_file, 5)


def test_shares_with_a_clock_of_their_own_are_only_watched() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 3600)
    assert not debouncer.offer("m", seen_file, 5, by_watching=True)
    clock.turn(5)
    assert debouncer.offer("m", seen_file, 5, by_watching=True)


def test_a_file_that_someone_writes_to_stays_in_sight() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 0)
    began = clock.now()
    debouncer.offer("m", seen_file, 5)
    gaps = []
    for _ in range(40):
        due = debouncer.next_due()
        assert due is not None
        gaps.append(due - clock.steady())
        clock.turn(gaps[-1])
        assert debouncer.due()
        assert debouncer.offer("m", seen_file, 5)
        debouncer.postpone("m", seen_file, 5)
    assert debouncer.unsettled("m") == [(b"in/a.pdf", began)]
    assert gaps[1] == 5
    assert gaps[-1] == 60


def test_too_many_are_dropped_and_told() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock, limit=2)
    for name in (b"a", b"b", b"c"):
        assert not debouncer.offer("m", seen(clock, 0, name=name), 5)
    assert len(debouncer) == 2
    assert not debouncer.take_overflow("other")
    assert debouncer.take_overflow("m")
    assert not debouncer.take_overflow("m")


def test_a_forgotten_file_is_not_due() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    debouncer.offer("m", seen(clock, 0), 5)
    debouncer.offer("n", seen(clock, 0), 5)
    debouncer.forget("m", b"in/a.pdf")
    clock.turn(5)
    assert debouncer.due() == [("n", b"in/a.pdf")]
    debouncer.forget("n", b"in/a.pdf")
    assert len(debouncer) == 0
    assert debouncer.next_due() is None


def test_unsettled_knows_since_when() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    debouncer.offer("m", seen(clock, 0, name=b"old"), 5)
    clock.turn(60)
    debouncer.offer("m", seen(clock, 0, name=b"new"), 5)
    assert [path for path, _since in debouncer.unsettled("m")] == [b"in/old", b"in/new"]
    assert [path for path, _since in debouncer.unsettled("m", at_least=60)] == [b"in/old"]
    assert debouncer.unsettled("n") == []


def test_writes_without_end_do_not_fill_the_memory() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock, limit=100)
    for size in range(1000):
        for number in range(100):
            debouncer.offer("m", seen(clock, 0, name=b"%d" % number, size=size), 5)
        clock.turn(1)
        for _, path in debouncer.due():
            debouncer.offer("m", seen(clock, 0, name=path.rpartition(b"/")[2], size=size), 5)
    assert len(debouncer) == 100
    assert len(debouncer._heap) <= 100  # only its memory is of interest, which nothing shows outside


def test_a_noisy_customer_leaves_room_for_the_others() -> None:
    """12,000 files that change all the time in one top-level folder, and a few in others."""
    clock = TurnableClock()
    debouncer = Debouncer(clock, limit=1000)

    def offer(folder: bytes, number: int) -> bool:
        stamp = Stamp(1, int(clock.now() * 1e9), int(clock.now() * 1e9))
        return debouncer.offer("m", SeenFile(folder, b"%d.pdf" % number, stamp), 5)

    for number in range(12_000):
        assert not offer(b"noisy/deep", number)
    for number in range(30):
        assert not offer(b"quiet", number)
    assert len(debouncer) == 1000
    assert debouncer.take_overflow("m") == {b"noisy"}
    assert {path for path, _ in debouncer.unsettled("m")} >= {b"quiet/%d.pdf" % number for number in range(30)}
    clock.turn(5)
    due = debouncer.due()
    assert sum(path.startswith(b"quiet/") for _, path in due) == 30
    assert len(due) == len(set(due)) == 1000


def test_hints_about_a_file_that_is_looked_at_soon_are_of_no_use() -> None:
    clock = TurnableClock()
    debouncer = Debouncer(clock)
    seen_file = seen(clock, 0)
    assert not debouncer.will_look_at("m", seen_file.path), "it is not known"
    debouncer.offer("m", seen_file, 5)
    assert debouncer.will_look_at("m", seen_file.path)
    clock.turn(5)
    assert debouncer.due() == [("m", seen_file.path)]
    assert not debouncer.will_look_at("m", seen_file.path), "it is being looked at: a change meanwhile counts"
    assert debouncer.offer("m", seen_file, 5)
    clock.turn(600)
    debouncer.postpone("m", seen_file, 5)
    assert not debouncer.will_look_at("m", seen_file.path), "a program closes it long before it is looked at"
