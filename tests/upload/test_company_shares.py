"""Test which companies a process takes from a queue of several hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from docferry.clock import TurnableClock
from docferry.store.claims import Lane, company_of
from docferry.upload.company_shares import LEFT_OVER_S, CompanyShares

UPLOADS: Any = {
    "share": SimpleNamespace(shared=True),
    "own@h1": SimpleNamespace(shared=False),
    "unmounted": SimpleNamespace(shared=True),
}


def lane(company: str, mapping: str = "share", *, elsewhere: bool = False, due: float = 1.0) -> Lane:
    return Lane(mapping, f"codat/{company}/bank", due, doubtful=False, elsewhere=elsewhere)


def shares(others: int, clock: TurnableClock | None = None, *, is_local: bool = False) -> CompanyShares:
    owners: Any = SimpleNamespace(is_local=is_local, others=others, unreadable={"unmounted"})
    return CompanyShares(owners, UPLOADS, clock or TurnableClock())


def taken(found: CompanyShares, lanes: list[Lane], *in_hand: str) -> tuple[str, list[str]]:
    choice = found.choose(lanes, [f"codat/{company}/bank" for company in in_hand])
    companies = sorted({company_of(each.lane)[-1] for each in choice.lanes})
    return "".join(companies), sorted(company[-1] for company in choice.ask_for)


def test_a_queue_of_one_machine_is_not_divided() -> None:
    lanes = [lane(company) for company in "abcd"]
    assert taken(shares(0, is_local=True), lanes) == ("abcd", [])
    assert taken(shares(0), lanes) == ("abcd", [])


def test_companies_are_divided_between_the_living_hosts() -> None:
    lanes = [lane(company) for company in "abcd"]
    assert taken(shares(1), lanes) == ("ab", [])
    assert taken(shares(1), lanes, "d") == ("ad", [])
    assert taken(shares(3), lanes) == ("a", [])
    assert taken(shares(7), lanes) == ("a", [])


def test_what_others_have_in_flight_is_left_to_them() -> None:
    lanes = [lane("a", elsewhere=True), lane("b", elsewhere=True), lane("c"), lane("d")]
    assert taken(shares(1), lanes) == ("cd", [])


def test_a_host_without_its_share_asks_for_more() -> None:
    lanes = [lane(company, elsewhere=True) for company in "abcd"]
    assert taken(shares(1), lanes) == ("", ["a", "b", "c", "d"])
    assert taken(shares(1), [*lanes[:3], lane("d")], "d") == ("d", ["a", "b", "c"])


def test_a_host_asks_for_a_company_of_its_own_documents() -> None:
    lanes = [lane("a", "own@h1", elsewhere=True), lane("a", "own@h2", elsewhere=True), lane("b", "own@h1")]
    assert taken(shares(1), lanes) == ("b", ["a"])


def test_documents_that_only_this_host_has_are_not_divided() -> None:
    lanes = [lane(company, "own@h1") for company in "abcd"]
    assert taken(shares(3), lanes) == ("abcd", [])


def test_companies_that_only_another_host_has_are_not_asked_for() -> None:
    """Otherwise the other host would pause for a turn that no host takes."""
    lanes = [lane("a", "own@h1"), lane("b", "own@h2", elsewhere=True)]
    assert taken(shares(1), lanes) == ("a", [])


def test_what_no_other_host_takes_is_taken_after_a_while() -> None:
    clock = TurnableClock()
    found = shares(1, clock)
    lanes = [lane(company) for company in "ab"]
    assert taken(found, lanes) == ("a", [])
    clock.turn(LEFT_OVER_S - 1)
    assert taken(found, lanes, "a") == ("a", [])
    clock.turn(1)
    assert taken(found, lanes, "a") == ("ab", [])


def test_companies_of_a_share_that_is_not_mounted_here_are_left_to_others() -> None:
    lanes = [lane("a", "unmounted"), lane("b", "unmounted"), lane("c"), lane("d")]
    found = shares(1)
    assert taken(found, [each for each in lanes if each.mapping == "share"]) == ("c", [])
    choice = found.choose(lanes, [])
    assert [each.lane for each in choice.lanes if each.mapping == "share"] == ["codat/c/bank"]


def test_documents_that_are_not_due_count_for_nothing() -> None:
    clock = TurnableClock()
    lanes = [lane("a"), lane("b", due=clock.now() + 60)]
    assert taken(shares(1, clock), lanes) == ("ab", [])
