"""Test that a row which the database refuses concerns its own document: others share its commits and go on."""

from __future__ import annotations

import pytest

from docferry.errors import LeaseLost, StatementRefused
from docferry.model import Outcome, Receipt, State, Target
from docferry.store.claims import Pick
from docferry.store.downloads import DownloadedFile, Downloads
from refusing_trigger import allowing, refusing
from store.conftest import StoreEnv, planned

pytestmark = pytest.mark.anyio

NAMES = [f"{number}.pdf" for number in range(9)]


async def refuse(env: StoreEnv, event: str, condition: str = "1 = 1") -> None:
    for statement in refusing(event, condition, postgresql=await _is_postgresql(env)):
        await env.change(statement)


async def allow(env: StoreEnv, event: str) -> None:
    await env.change(allowing(event, postgresql=await _is_postgresql(env)))


async def _is_postgresql(env: StoreEnv) -> bool:
    return await env.database.read(lambda transaction: transaction.has_recordsets)


async def states(env: StoreEnv) -> dict[str, tuple[str, str | None]]:
    rows = await env.rows("SELECT remote_name, state, reason FROM transfer WHERE state <> 'gone'")
    return {name: (state, reason) for name, state, reason in rows}


async def settle(env: StoreEnv, most: int = 100) -> None:
    """Claim and send everything that is due, each document with its own request."""
    for transfer in await env.claimed(most):
        try:
            await env.transfers.mark_sending([transfer])
            outcome = Outcome(State.SENT, None, None, receipt=Receipt(200))
            await env.transfers.settle(transfer, outcome, was=State.SENDING)
        except LeaseLost:
            continue


@pytest.mark.parametrize(
    ("event", "condition", "reason"),
    [
        ("UPDATE ON transfer", "NEW.remote_name = '4.pdf' AND NEW.state = 'leased'", "metadata"),
        ("UPDATE ON transfer", "NEW.remote_name = '4.pdf' AND NEW.state = 'sending'", "metadata"),
        ("UPDATE ON transfer", "NEW.remote_name = '4.pdf' AND NEW.state = 'sent'", "undecidable"),
        ("INSERT ON attempt", "NEW.transfer_id = 5", "undecidable"),
        ("INSERT ON receipt", "NEW.transfer_id = 5", "undecidable"),
    ],
)
async def test_a_refused_transition_holds_its_document_alone(
    env: StoreEnv, event: str, condition: str, reason: str
) -> None:
    await env.enqueue(*NAMES)
    await refuse(env, event, condition)
    for _ in range(2):
        await settle(env)
    expected = dict.fromkeys(NAMES, ("sent", None))
    assert await states(env) == {**expected, "4.pdf": ("held", reason)}
    assert "no 17" in str(env.database.alarm)
    (detail,) = await env.column("SELECT detail FROM transfer WHERE state = 'held'")
    assert "no 17" in detail
    assert "docferry retry" in detail
    await allow(env, event)
    await env.transfers.retry(everything=True)
    if reason == "metadata":
        await settle(env)
        assert await states(env) == expected
    else:
        assert (await states(env))["4.pdf"][0] == "doubtful"  # the remote is asked before anything is sent


async def test_refused_transitions_of_one_commit_are_found_among_the_others(env: StoreEnv) -> None:
    await env.enqueue(*NAMES)
    claimed = await env.claimed()
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name IN ('2.pdf', '7.pdf') AND NEW.state = 'sending'")
    with pytest.raises(LeaseLost):
        await env.transfers.mark_sending(claimed)
    found = await states(env)
    assert [name for name in NAMES if found[name][0] == "held"] == ["2.pdf", "7.pdf"]
    assert {found[name][0] for name in NAMES} == {"held", "sending"}


@pytest.mark.parametrize("was", [State.LEASED, State.SENDING, State.ASKING])
async def test_a_document_that_cannot_be_held_either_waits_and_returns(env: StoreEnv, was: State) -> None:
    transfer = await env.brought_to(was)
    await env.enqueue("b.pdf")
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name = 'a.pdf'")
    with pytest.raises(LeaseLost):
        await env.transfers.settle(transfer, Outcome(State.HELD, "refused", "x"), was=was)
    assert (await states(env))["a.pdf"][0] == was
    assert [each.remote_name for each in await env.claimed()] == ["b.pdf"]
    await env.transfers.retry_refused()
    env.clock.turn(61.0)
    await env.transfers.retry_refused()
    assert (await states(env))["a.pdf"][0] == was  # still refused
    await allow(env, "UPDATE ON transfer")
    env.clock.turn(61.0)
    await env.transfers.retry_refused()
    assert (await states(env))["a.pdf"][0] == ("waiting" if was is State.LEASED else "doubtful")
    assert [each.remote_name for each in await env.claimed()] == ["a.pdf"]


async def test_a_document_whose_claim_and_hold_are_refused_hinders_no_others(env: StoreEnv) -> None:
    await env.enqueue(*NAMES)
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name = '0.pdf'")
    await settle(env, 3)
    for _ in range(3):
        await settle(env, 3)
    assert await states(env) == {**dict.fromkeys(NAMES, ("sent", None)), "0.pdf": ("waiting", None)}


async def test_what_refuses_every_document_holds_few(env: StoreEnv) -> None:
    """The cause is not in the documents, and each one that is held needs a person."""
    await env.enqueue(*(f"{number}.pdf" for number in range(40)))
    await refuse(env, "INSERT ON receipt")
    await settle(env)
    assert sum(state == "held" for state, _ in (await states(env)).values()) < 5
    assert await env.claimed() == []
    await allow(env, "INSERT ON receipt")
    env.clock.turn(61.0)
    await env.transfers.retry_refused()
    assert len(await env.claimed()) == 1  # a probe


async def test_a_company_whose_documents_are_all_refused_delays_no_other(env: StoreEnv) -> None:
    """Another company's documents go on at once, however many of hers were refused before."""
    await env.enqueue(*(f"bad-{number}.pdf" for number in range(40)), target=Target("codat", "mallory", "bank"))
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name LIKE 'bad-%' AND NEW.state IN ('sending', 'held')")
    for number in range(6):
        await settle(env, 8)
        await env.enqueue(f"{number}.pdf")
        await settle(env, 8)
        assert (await states(env))[f"{number}.pdf"] == ("sent", None)
        env.clock.turn(61.0)
        await env.transfers.retry_refused()


async def test_while_all_companies_are_refused_each_gets_its_turn_to_probe(env: StoreEnv) -> None:
    companies = [Target("codat", f"company-{number}", "bank") for number in range(8)]
    for number, target in enumerate(companies):
        await env.enqueue(*(f"{number}-{each}.pdf" for each in range(8)), target=target)
    await refuse(env, "UPDATE ON transfer", "NEW.state = 'sending' AND NEW.remote_name NOT LIKE '7-%'")
    for target in companies[:5]:
        picks = [Pick(lane, 1) for lane in await env.transfers.lanes() if lane.lane == target.lane]
        for transfer in await env.transfers.claim(picks, 1):
            with pytest.raises(LeaseLost):
                await env.transfers.mark_sending([transfer])
    assert await env.claimed() == []
    for _ in range(3):  # the three companies that were not refused yet probe first
        assert ("sent", None) not in (await states(env)).values()
        env.clock.turn(61.0)
        await env.transfers.retry_refused()
        await settle(env, 8)
    assert ("sent", None) in (await states(env)).values()


async def test_leases_of_a_dead_process_are_reclaimed_around_a_refused_one(env: StoreEnv) -> None:
    await env.enqueue(*NAMES)
    await env.claimed(transfers=env.other("dead"))
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name = '4.pdf' AND NEW.state = 'waiting'")
    assert await env.transfers.reclaim({"dead"}) == len(NAMES) - 1
    assert await states(env) == {**dict.fromkeys(NAMES, ("waiting", None)), "4.pdf": ("held", "metadata")}


@pytest.mark.parametrize("condition", ["NEW.state = 'waiting'", "true"])
async def test_a_refused_path_is_held_or_named_and_the_others_are_queued(env: StoreEnv, condition: str) -> None:
    await refuse(env, "INSERT ON transfer", f"NEW.remote_name = '4.pdf' AND {condition}")
    applied = await env.documents.apply("m", [planned(name) for name in NAMES])
    expected: dict[str, tuple[str, str | None]] = {name: ("waiting", None) for name in NAMES if name != "4.pdf"}
    if condition == "true":
        assert [(seen_file.path, "no 17" in why) for seen_file, why in applied.refused] == [(b"4.pdf", True)]
    else:
        expected["4.pdf"] = ("held", "metadata")
        assert applied.held == 1
    assert applied.queued == len(NAMES) - 1
    assert await states(env) == expected


async def test_a_path_that_cannot_be_forgotten_hinders_no_others(env: StoreEnv) -> None:
    await env.enqueue(*NAMES)
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name = '4.pdf'")
    assert await env.documents.mark_gone("m", [name.encode() for name in NAMES]) == len(NAMES) - 1
    assert await states(env) == {"4.pdf": ("waiting", None)}


async def test_a_damaged_document_row_is_told_apart(env: StoreEnv) -> None:
    await env.enqueue("a.pdf", "b.pdf")
    if await _is_postgresql(env):
        return  # its types admit no such row
    await env.change("UPDATE document SET folder = CAST('x' AS TEXT) WHERE name = CAST('a.pdf' AS BLOB)")
    claimed = await env.claimed()
    found, refused = await env.documents.places_or_errors([each.id for each in claimed])
    assert [place.path for places in found.values() for place in places] == [b"b.pdf"]
    assert [transfer_id for transfer_id, _ in refused] == [1]


async def test_a_refused_download_is_an_error_of_that_file(env: StoreEnv) -> None:
    downloads = Downloads(env.database, env.clock)
    await downloads.record([])
    await refuse(env, "INSERT ON download", "NEW.origin = 'bad'")
    for origin in ("good", "bad"):
        file = DownloadedFile("d", origin, "00", b"/x", published=True, size=1)
        if origin == "bad":
            with pytest.raises(StatementRefused, match="no 17"):
                await downloads.record([file])
        else:
            await downloads.record([file])
    assert await env.column("SELECT origin FROM download") == ["good"]


async def test_the_pick_of_another_lane_is_claimed_beside_a_refused_one(env: StoreEnv) -> None:
    await env.enqueue("a.pdf", mapping="m")
    await env.enqueue("b.pdf", mapping="n")
    await refuse(env, "UPDATE ON transfer", "NEW.remote_name = 'a.pdf' AND NEW.state = 'leased'")
    picks = [Pick(lane, 8) for lane in await env.transfers.lanes()]
    assert [each.remote_name for each in await env.transfers.claim(picks, 8)] == ["b.pdf"]
