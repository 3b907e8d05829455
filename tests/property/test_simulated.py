"""Carrier, queue and judgement against a far shore in memory that loses, delays and dies by dice: a seed is a run."""

from __future__ import annotations

import os
import random
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from docferry import settings
from docferry.clock import TurnableClock, iso
from docferry.errors import RemoteError
from docferry.files.source import digest
from docferry.model import Accounted, Finding, Parcel, Receipt, Sighting, State, Target, Transfer
from docferry.policy import Backoff
from docferry.remotes import doubts
from docferry.remotes.base import NOTHING, Checked, Health, Rules, Since
from docferry.store.database import open_database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.plans import Planned
from docferry.store.transfers import Lane, Pick, Transfers
from docferry.work.carry import Carrier, Load

#: Seeds of one run: `DOCFERRY_SEEDS=1000:5000` walks others, one alone is repeated by `DOCFERRY_SEEDS=17:18`.
FIRST, LAST = map(int, os.environ.get("DOCFERRY_SEEDS", "0:120").split(":"))
LAG = 30.0
NAMES = ("a.pdf", "x/a.pdf", "b.pdf")


class Killed(BaseException):
    """SIGKILL: nothing of ours runs any more."""


@dataclass
class Upload:
    """A file at the far shore."""

    name: str
    sha256: str
    at: float
    listed: float
    ours: bool = True


class Shore:
    """The Remote protocol in memory. Answers get lost, files are stored late, the list lags, and we are killed."""

    name = "codat"
    rules = Rules("Codat", max_size=10**7)
    find_after = LAG
    confirm_after = 2.5 * LAG
    needs_md5 = False
    health = Health()

    def __init__(self, dice: random.Random, clock: TurnableClock) -> None:
        self.dice = dice
        self.clock = clock
        self.stored: list[Upload] = []
        self.keys: set[str] | None = set() if dice.random() < 0.5 else None
        self.trouble = dice.choice([0.2, 0.5, 0.8])

    def put(self, name: str, sha256: str, late: float = 0.0, *, ours: bool = True) -> None:
        at = self.clock.now() + late
        self.stored.append(Upload(name, sha256, at, at + self.dice.uniform(0, LAG), ours))

    async def send(self, parcels: Sequence[Parcel], key: str) -> Receipt:
        (parcel,) = parcels
        if self.dice.random() < 0.1:
            raise Killed
        self.clock.turn(self.dice.uniform(0, 5))
        async for _ in parcel.source.blocks():
            pass
        fate = self.dice.choice(["lost", "late", "never", "away", "500", "killed", "cut"])
        if self.dice.random() > self.trouble:
            fate = "well"
        if fate in ("well", "lost", "late", "500", "killed") and not (self.keys is not None and key in self.keys):
            late = self.dice.uniform(0, LAG) if fate == "late" else 0.0
            self.put(parcel.transfer.remote_name, parcel.transfer.sha256, late)
            if self.keys is not None:
                self.keys.add(key)
        if fate == "well":
            return Receipt(200)
        if fate == "killed":
            raise Killed
        if fate == "away":
            raise RemoteError("away", kind="unreachable")
        if fate == "cut":
            raise RemoteError("cut inside", kind="cut")
        raise RemoteError(fate, kind="answer" if fate == "500" else "cut", status=500 if fate == "500" else None,
                          handed_over=True)  # fmt: skip

    def since(self, asked: Sequence[Transfer]) -> Since:
        return doubts.since(asked)

    async def find(
        self, asked: Sequence[Transfer], accounted: Accounted, unsettled: Accounted = NOTHING
    ) -> Mapping[int, Finding]:
        if self.dice.random() < 0.1:
            raise Killed
        if self.dice.random() < 0.2:
            raise RemoteError("no list today", status=500)
        now = self.clock.now()
        rows = [doubts.Row.read(each.name, iso(each.at) or "", 0.0) for each in self.stored if each.listed <= now]
        case = doubts.Case(asked, accounted, unsettled, rows, now)
        found = case.by_list()
        if case.days:
            members = doubts.Members()
            for each in self.stored:
                if each.at <= now and datetime.fromtimestamp(each.at, UTC).date() in case.days:
                    members.add(f"files/{each.name}", each.sha256)
            found |= case.by_archive(members)
        return found

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        raise NotImplementedError(targets)

    async def aclose(self) -> None:
        return


async def ignored(*_: object) -> None:
    return


@dataclass
class World:
    """The database that all runs share; each has a company of its own."""

    upload: settings.Upload
    root: Path
    clock: TurnableClock
    documents: Documents
    queue: Transfers
    gates: Gates

    async def run(self, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - a run must be repeatable by its seed
        target = Target("codat", str(uuid.UUID(int=seed)), str(uuid.UUID(int=seed + 1)))
        shore = Shore(dice, self.clock)
        await self.plan(target, seed)
        life = 0
        for _ in range(2000):
            life_name = f"{seed}.{life}"
            transfers = Transfers(self.documents._database, self.clock, life_name)
            carrier = self.carrier(transfers, shore, dice)
            if dice.random() < 0.05:
                shore.put("a.pdf", f"stranger {dice.random()}", ours=False)
            lanes = [lane for lane in await transfers.lanes() if lane.lane == target.lane]
            if not lanes:
                break
            now = self.clock.now()
            due = [lane for lane in lanes if lane.due <= now]
            if not due:
                self.clock.turn(min(lane.due for lane in lanes) - now + 0.001)
                continue
            if not await self.carry(dice.choice(due), carrier, transfers, dice):
                life += 1
                await self.queue.sweep({life_name})
        await self.judge(target, shore, seed)

    async def carry(self, lane: Lane, carrier: Carrier, transfers: Transfers, dice: random.Random) -> bool:
        """Carry what a claim brings; False when we were killed on the way."""
        claimed = await transfers.claim([Pick(lane, dice.randint(1, 3))], 3)
        if dice.random() < 0.05:
            return False
        places = await self.documents.places([transfer.id for transfer in claimed])
        loads = [claimed] if claimed[0].state is State.ASKING else [[each] for each in claimed]
        for transfers_of in loads:
            try:
                await carrier.carry(Load(transfers_of, places))
            except Killed:
                return False
            except BaseExceptionGroup as group:
                if group.split(Killed)[1] is not None:
                    raise
                return False
        return True

    def carrier(self, transfers: Transfers, shore: Shore, dice: random.Random) -> Carrier:
        carrier = Carrier(
            uploads={self.upload.name: self.upload},
            remotes={"codat": shore},
            transfers=transfers,
            gates=self.gates,
            clock=self.clock,
            backoff=Backoff(0.5, 1.5, 60.0),
            give_up_after=1e9,
            look_again=lambda *_: None,
            delivered=ignored,
            batch_seen=ignored,
            trusts_batches=lambda _: True,
            key_refused=lambda: None,
        )
        carrier._dice = dice
        return carrier

    async def plan(self, target: Target, seed: int) -> None:
        plans = []
        for name in NAMES:
            path = Path(str(target.company_id)) / str(target.connection_id) / name
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(f"{name}")
            found = digest(self.root, bytes(path))
            sighting = Sighting(bytes(path.parent), path.name.encode(), found.stamp)
            uid = uuid.uuid5(uuid.UUID(int=seed), name).hex
            plans.append(Planned(sighting, target, uid, path.name, found.sha256, found.sha256))
        await self.documents.apply(self.upload.name, plans)

    async def judge(self, target: Target, shore: Shore, seed: int) -> None:
        self.clock.turn(LAG)
        rows = await self.states(target)
        stored = Counter(each.sha256 for each in shore.stored if each.ours)
        held = {sha256 for sha256, state in rows if state == State.HELD}
        assert all(state in (State.SENT, State.HELD) for _, state in rows), (seed, rows)
        assert all(count == 1 for count in stored.values()), (seed, "twice", stored)
        assert all(stored[sha256] == 1 for sha256, _ in rows if sha256 not in held), (seed, "lost", stored)

    async def states(self, target: Target) -> list[tuple[str, str]]:
        def work(connection: Connection) -> list[tuple[str, str]]:
            rows = connection.execute(
                text("SELECT sha256, state FROM transfer WHERE lane = :lane"), {"lane": target.lane}
            )
            return [(row[0], row[1]) for row in rows.all()]

        return await self.documents._database.read(work)


@pytest.mark.anyio
async def test_whatever_the_dice_say_each_document_arrives_once(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    config = tmp_path / "docferry.toml"
    config.write_text(
        f'[[upload]]\nname = "m"\nfolder = "{root}/{{company_id}}/{{connection_id}}"\nto = "codat"\n', encoding="utf-8"
    )
    (upload,) = settings.load(config, {}).uploads
    clock = TurnableClock()
    async with open_database(tmp_path / "docferry.db") as database:
        documents, queue = Documents(database, clock), Transfers(database, clock, "watchman")
        world = World(upload, root, clock, documents, queue, Gates(database))
        for seed in range(FIRST, LAST):
            await world.run(seed)
