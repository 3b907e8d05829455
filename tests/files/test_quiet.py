"""Nothing is read before it has held still for `settle`, and nothing is forgotten or kept waiting for ever."""

from __future__ import annotations

from docferry.clock import TurnableClock
from docferry.files.quiet import Quiet
from docferry.model import Sighting, Stamp


def seen(
    clock: TurnableClock, age: float, *, name: bytes = b"a.pdf", size: int = 1, mtime_age: float | None = None
) -> Sighting:
    def at(seconds: float) -> int:
        return int((clock.now() - seconds) * 1e9)

    return Sighting(b"in", name, Stamp(size, at(age if mtime_age is None else mtime_age), at(age)))


def test_an_old_file_is_quiet_at_once() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    assert quiet.offer("m", seen(clock, 6), 5)
    assert len(quiet) == 0
    assert quiet.next_due() is None


def test_a_fresh_file_ripens_when_its_stamp_is_old_enough() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    sighting = seen(clock, 2)
    assert not quiet.offer("m", sighting, 5)
    assert quiet.next_due() == clock.steady() + 3
    clock.turn(2.9)
    assert quiet.ripe() == []
    clock.turn(0.1)
    [watched] = quiet.ripe()
    assert (watched.mapping, watched.path) == ("m", b"in/a.pdf")
    assert quiet.ripe() == []
    assert quiet.again(watched, sighting.stamp)
    assert len(quiet) == 0


def test_a_file_that_changes_starts_over() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    assert not quiet.offer("m", seen(clock, 0), 5)
    for size in range(2, 6):
        clock.turn(5)
        [watched] = quiet.ripe()
        assert not quiet.again(watched, seen(clock, 1, size=size).stamp)
        assert quiet.next_due() == clock.steady() + 4
        clock.turn(-1)  # it changed a second before it was looked at: ripe again after four
    clock.turn(5)
    [watched] = quiet.ripe()
    assert quiet.again(watched, watched.stamp)


def test_a_file_that_went_away_is_forgotten() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    quiet.offer("m", seen(clock, 0), 5)
    clock.turn(5)
    [watched] = quiet.ripe()
    assert not quiet.again(watched, None)
    assert len(quiet) == 0
    assert not quiet.again(watched, watched.stamp)


def test_an_old_mtime_does_not_make_it_early() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    assert not quiet.offer("m", seen(clock, 0, mtime_age=1e6), 5)


def test_a_stamp_from_the_future_neither_early_nor_stuck() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    future = seen(clock, 0, mtime_age=-1e6)
    assert not quiet.offer("m", future, 5)
    clock.turn(4)
    assert not quiet.offer("m", future, 5)
    assert quiet.ripe() == []
    clock.turn(1)
    [watched] = quiet.ripe()
    assert quiet.again(watched, future.stamp)


def test_a_change_seen_by_another_offer_starts_the_timer_again() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    future = seen(clock, 0, mtime_age=-1e6)
    quiet.offer("m", future, 5)
    clock.turn(4)
    other = seen(clock, 0, mtime_age=-1e6, size=2)
    assert not quiet.offer("m", other, 5)
    clock.turn(1)
    assert quiet.ripe() == []
    clock.turn(4)
    [watched] = quiet.ripe()
    assert quiet.again(watched, other.stamp)


def test_when_the_wall_clock_jumps_forward_old_stamps_prove_nothing() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    sighting = seen(clock, 0)
    clock.wall += 86_400
    assert not quiet.offer("m", sighting, 5)
    clock.turn(5)
    assert quiet.again(quiet.ripe()[0], sighting.stamp)
    assert quiet.offer("m", seen(clock, 6, name=b"b.pdf"), 5)


def test_when_the_wall_clock_jumps_back_nothing_is_stuck() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    sighting = seen(clock, 0)
    clock.wall -= 86_400
    assert not quiet.offer("m", sighting, 5)
    clock.turn(5)
    assert quiet.again(quiet.ripe()[0], sighting.stamp)


def test_shares_with_a_clock_of_their_own_are_only_watched() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    sighting = seen(clock, 3600)
    assert not quiet.offer("m", sighting, 5, by_watching=True)
    clock.turn(5)
    assert quiet.offer("m", sighting, 5, by_watching=True)


def test_a_file_that_someone_writes_to_stays_in_sight() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    sighting = seen(clock, 0)
    began = clock.now()
    quiet.offer("m", sighting, 5)
    gaps = []
    for _ in range(40):
        due = quiet.next_due()
        assert due is not None
        gaps.append(due - clock.steady())
        clock.turn(gaps[-1])
        [watched] = quiet.ripe()
        assert quiet.again(watched, sighting.stamp)
        quiet.busy("m", sighting, 5)
    assert quiet.unsettled("m") == [(b"in/a.pdf", began)]
    assert gaps[1] == 5
    assert gaps[-1] == 60


def test_too_many_are_dropped_and_told() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock, limit=2)
    for name in (b"a", b"b", b"c"):
        assert not quiet.offer("m", seen(clock, 0, name=name), 5)
    assert len(quiet) == 2
    assert not quiet.take_overflow("other")
    assert quiet.take_overflow("m")
    assert not quiet.take_overflow("m")


def test_forgetting_a_mapping_leaves_the_others() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    quiet.offer("m", seen(clock, 0), 5)
    quiet.offer("n", seen(clock, 0), 5)
    quiet.forget("m")
    clock.turn(5)
    assert [watched.mapping for watched in quiet.ripe()] == ["n"]
    quiet.forget("n", b"in/a.pdf")
    assert len(quiet) == 0
    assert quiet.next_due() is None


def test_unsettled_knows_since_when() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock)
    quiet.offer("m", seen(clock, 0, name=b"old"), 5)
    clock.turn(60)
    quiet.offer("m", seen(clock, 0, name=b"new"), 5)
    assert [path for path, _since in quiet.unsettled("m")] == [b"in/old", b"in/new"]
    assert [path for path, _since in quiet.unsettled("m", at_least=60)] == [b"in/old"]
    assert quiet.unsettled("n") == []


def test_writes_without_end_do_not_fill_the_memory() -> None:
    clock = TurnableClock()
    quiet = Quiet(clock, limit=100)
    for size in range(1000):
        for number in range(100):
            quiet.offer("m", seen(clock, 0, name=b"%d" % number, size=size), 5)
        clock.turn(1)
        for watched in quiet.ripe():
            quiet.again(watched, watched.stamp)
    assert len(quiet) == 100
    assert len(quiet._heap) <= 100
