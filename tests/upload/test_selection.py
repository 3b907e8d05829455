"""Test the selection of lanes: shares, gates, probes, one lookup at a time."""

from __future__ import annotations

from typing import Any

import pytest

from docferry.model import Gate
from docferry.store.claims import Lane, company_of
from docferry.upload.selection import DOUBTS_PER_LOOKUP, SelectionInput, last_gate, next_due, select

NOW = 1000.0


def lane(name: str, *, due: float = 0.0, doubtful: bool = False, mapping: str = "m") -> Lane:
    return Lane(mapping, name, due, doubtful)


def gate(key: str, until: float, **more: Any) -> Gate:
    return Gate(key, "rate", "wait", until, 1, 0.0, **more)


def picked(lanes: list[Lane], *gates: Gate, **more: Any) -> dict[str, int]:
    defaults: dict[str, Any] = {
        "now": NOW,
        "room": 32,
        "mappings": {"m"},
        "gates": {gate.key: gate for gate in gates},
        "in_hand": {},
        "company_limit": 16,
        "in_lookup": (),
        "batch_size": lambda _: 1,
    }
    picks = select(lanes, SelectionInput(**{**defaults, **more}))
    assert len({(pick.lane.lane, pick.lane.doubtful) for pick in picks}) == len(picks)
    return {pick.lane.lane + ("?" if pick.lane.doubtful else ""): pick.most for pick in picks}


def test_room_is_shared_evenly_and_one_company_never_has_it_all() -> None:
    lanes = [lane(f"codat/c{number}/x") for number in range(4)]
    assert picked(lanes) == {each.lane: 8 for each in lanes}
    assert picked(lanes[:1]) == {"codat/c0/x": 16}
    assert picked(lanes, room=3) == {f"codat/c{number}/x": 1 for number in range(3)}
    assert picked([], room=3) == {}


def test_the_emptiest_companies_come_first() -> None:
    lanes = [lane("codat/busy/x"), lane("codat/idle/x", due=5)]
    assert picked(lanes, room=1, in_hand={"codat/busy/y": 3}) == {"codat/idle/x": 1}


def test_connections_of_one_company_share_its_limit() -> None:
    lanes = [lane("codat/a/x"), lane("codat/a/y")]
    assert sum(picked(lanes, in_hand={"codat/a/z": 10}).values()) == 6
    assert picked(lanes, in_hand={"codat/a/z": 16}) == {}


def test_only_what_is_due_and_ours_is_chosen() -> None:
    lanes = [lane("codat/a/x", due=NOW + 1), lane("codat/b/x", mapping="theirs"), lane("codat/c/x", due=NOW)]
    assert picked(lanes).keys() == {"codat/c/x"}


def test_a_load_is_a_batch() -> None:
    assert picked([lane("codat/a/x")], batch_size=lambda _: 20, room=2) == {"codat/a/x": 40}


def test_a_lane_that_fails_gets_one_at_a_time() -> None:
    assert picked([lane("codat/a/x")], failing={"codat/a/x"}) == {"codat/a/x": 1}
    assert picked([lane("codat/a/x")], failing={"codat/a/x"}, in_hand={"codat/a/x": 1}) == {}


def test_doubts_come_first_and_one_question_a_company() -> None:
    lanes = [lane("codat/a/x"), lane("codat/a/x", doubtful=True), lane("codat/a/y", doubtful=True)]
    assert picked(lanes, room=1) == {"codat/a/x?": DOUBTS_PER_LOOKUP}
    assert picked(lanes).keys() == {"codat/a/x?", "codat/a/x"}
    assert picked(lanes, in_lookup={"codat/a"}).keys() == {"codat/a/x"}


@pytest.mark.parametrize("key", ["codat", "codat/a", "codat/a/x"])
def test_a_closed_gate_stops_its_part_alone(key: str) -> None:
    lanes = [lane("codat/a/x"), lane("codat/ab/x"), lane("wootiv")]
    found = picked(lanes, gate(key, NOW + 1)).keys()
    assert "codat/a/x" not in found
    assert "wootiv" in found
    assert ("codat/ab/x" in found) == (key != "codat")


def test_a_gate_whose_time_has_come_lets_one_document_probe() -> None:
    lanes = [lane("codat/a/x"), lane("codat/b/x"), lane("wootiv")]
    found = picked(lanes, gate("codat", NOW), batch_size=lambda _: 20)
    assert sorted(found) in (["codat/a/x", "wootiv"], ["codat/b/x", "wootiv"])
    assert found.get("codat/a/x", found.get("codat/b/x")) == 1
    assert picked(lanes, gate("codat", NOW), in_hand={"codat/a/x": 1}).keys() == {"wootiv"}


def test_a_gate_within_a_gate_is_probed_by_one_for_both() -> None:
    gates = [gate("codat", NOW - 5), gate("codat/a", NOW - 1)]
    assert len(picked([lane("codat/a/x"), lane("codat/b/x"), lane("codat/c/x")], *gates)) == 1


def test_a_spent_quota_lets_doubts_pass_but_not_through_another_gate() -> None:
    lanes = [lane("codat/a/x"), lane("codat/a/x", doubtful=True), lane("codat/b/x", doubtful=True)]
    quota = gate("codat", NOW + 100, lets_doubts_pass=True)
    assert picked(lanes, quota).keys() == {"codat/a/x?", "codat/b/x?"}
    assert picked(lanes, quota, gate("codat/a", NOW + 10)).keys() == {"codat/b/x?"}


def test_when_something_is_next_due() -> None:
    lanes = [lane("codat/a/x", due=50), lane("codat/b/x", due=70), lane("codat/a/x", due=60, doubtful=True)]
    assert next_due(lanes, {"m"}, {}) == 50
    assert next_due(lanes, {"m"}, {"codat/a": gate("codat/a", 90)}) == 70
    assert next_due(lanes, {"m"}, {"codat": gate("codat", 90, lets_doubts_pass=True)}) == 60
    assert next_due(lanes, {"other"}, {}) is None


def test_words() -> None:
    gates = {key: gate(key, until) for key, until in (("codat", 1.0), ("codat/a", 9.0), ("codat/a/x", 5.0))}
    found = last_gate(lane("codat/a/x"), gates)
    assert found is not None
    assert found.key == "codat/a"
    assert last_gate(lane("codatx"), gates) is None
    assert (company_of("codat/a/x"), company_of("wootiv")) == ("codat/a", "wootiv")
