"""Claims: each due transfer is leased once, by one process."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from docferry.model import Outcome, State, Target
from docferry.store.claims import Pick
from store.conftest import StoreEnv, planned

pytestmark = pytest.mark.anyio


async def test_a_claim_leases_due_transfers(env: StoreEnv) -> None:
    await env.enqueue("a.pdf", "b.pdf")
    claimed = await env.claimed()
    assert [(t.state, t.lease, t.remote_name) for t in claimed] == [
        (State.LEASED, 1, "a.pdf"),
        (State.LEASED, 1, "b.pdf"),
    ]
    assert await env.rows("SELECT state, lease_owner, lease FROM transfer") == [("leased", "me", 1)] * 2
    assert await env.claimed() == []


async def test_a_claim_returns_the_known_digests(env: StoreEnv) -> None:
    """The first plan of the content stores its digests; later plans change nothing."""
    taken = planned("a.pdf", "same", fingerprint="f" * 32, md5="5" * 32)
    await env.documents.apply("m", [taken, planned("b.pdf", "other")])
    await env.documents.apply("m", [planned("c.pdf", "same", fingerprint="0" * 32), planned("d.pdf", "other", md5="1")])
    known = {t.remote_name: (t.sha256, t.fingerprint, t.md5) for t in await env.claimed()}
    assert known == {
        "a.pdf": (sha256(b"same").hexdigest(), "f" * 32, "5" * 32),
        "b.pdf": (sha256(b"other").hexdigest(), None, None),
    }


async def test_a_claim_respects_lanes_and_room(env: StoreEnv) -> None:
    other = Target("codat", "other", "bank")
    await env.enqueue(*(f"a{n}.pdf" for n in range(9)))
    await env.enqueue(*(f"b{n}.pdf" for n in range(9)), mapping="n", target=other)
    lanes = {lane.mapping: lane for lane in await env.transfers.lanes()}
    claimed = await env.transfers.claim([Pick(lanes["m"], 2), Pick(lanes["n"], 5)], 6)
    assert Counter(t.mapping for t in claimed) in ({"m": 2, "n": 4}, {"m": 1, "n": 5})
    assert await env.column("SELECT count(*) FROM transfer WHERE state = 'leased'") == [6]


async def test_a_transfer_is_not_claimed_before_it_is_due(env: StoreEnv) -> None:
    transfer = await env.brought_to(State.LEASED)
    await env.transfers.settle(transfer, Outcome(State.WAITING, delay=10), was=State.LEASED)
    assert await env.claimed() == []
    env.clock.turn(9.9)
    assert await env.claimed() == []
    env.clock.turn(0.2)
    assert [t.lease for t in await env.claimed()] == [2]


async def test_doubts_are_claimed_before_anything_new(env: StoreEnv) -> None:
    await env.doubtful("doubt.pdf")
    await env.enqueue("new.pdf")
    picks = [Pick(lane, 5) for lane in await env.transfers.lanes()]
    (first,) = await env.transfers.claim(picks, 1)
    assert (first.remote_name, first.state) == ("doubt.pdf", State.ASKING)


async def test_each_lane_is_returned_once_with_its_earliest_transfer(env: StoreEnv) -> None:
    for company in ("x", "y"):
        for mapping in ("m", "n"):
            names = [f"{company}{mapping}{n}.pdf" for n in range(4)]
            await env.enqueue(*names, mapping=mapping, target=Target("codat", company, "bank"))
    await env.change("UPDATE transfer SET next_attempt = id")
    lanes = await env.transfers.lanes()
    assert sorted((lane.mapping, lane.lane) for lane in lanes) == [
        ("m", "codat/x/bank"),
        ("m", "codat/y/bank"),
        ("n", "codat/x/bank"),
        ("n", "codat/y/bank"),
    ]
    earliest = dict(await env.rows("SELECT mapping || lane, min(next_attempt) FROM transfer GROUP BY 1"))
    assert {lane.mapping + lane.lane: lane.due for lane in lanes} == earliest


CLAIMANT = """
import sys, anyio
from pathlib import Path
from docferry.clock import TurnableClock
from docferry.store.opening import open_database
from docferry.store.claims import Pick
from docferry.store.transfers import Transfers

async def main():
    location = sys.argv[1]
    async with open_database(location if "://" in location else Path(location)) as database:
        transfers, found = Transfers(database, TurnableClock(), sys.argv[2]), []
        print("ready", flush=True)
        sys.stdin.readline()
        async def claims():
            while lanes := await transfers.lanes():
                found.extend(t.id for t in await transfers.claim([Pick(lane, 3) for lane in lanes], 3))
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(claims)
        print(*found)

anyio.run(main)
"""


async def test_concurrent_claims_lease_each_transfer_once(env: StoreEnv, location: Path | str) -> None:
    """Eight claimants in two processes over 500 rows."""
    await env.enqueue(*(f"{number}.pdf" for number in range(500)))

    def race() -> list[int]:
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMANT, str(location), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        ]
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        return [int(number) for program in programs for number in program.communicate(timeout=60)[0].split()]

    found = await anyio.to_thread.run_sync(race)
    assert len(found) == 500
    assert len(set(found)) == 500
    assert await env.column("SELECT DISTINCT lease FROM transfer") == [1]
