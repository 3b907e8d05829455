"""Run uploader, queue and reconciliation in memory against a service that loses, delays and kills by a seed.

`python tests/property/simulated.py 0:100000` walks that many on all cores; `17:18` repeats one;
`0:1000 postgresql` uses a PostgreSQL server.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import anyio
from anyio.lowlevel import checkpoint

from docferry import settings
from docferry.clock import TurnableClock
from docferry.errors import NotNow, RemoteError
from docferry.files.safe_open import Root
from docferry.model import (
    Finding,
    KnownUploads,
    Receipt,
    SeenFile,
    Stamp,
    State,
    Target,
    Transfer,
    UploadItem,
)
from docferry.policy import Backoff, RetryPolicy
from docferry.remotes.codat import reconcile
from docferry.remotes.protocol import ALWAYS_PERMITTED, NOTHING, Checked, Health, Lookback, Rules, SendPermit
from docferry.store import schema
from docferry.store.claims import Pick
from docferry.store.connection import Transaction
from docferry.store.cursors import Cursors
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.owners import LocalOwners
from docferry.store.plan_table import Planned
from docferry.store.receipt_log import ReceiptLog
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry
from docferry.upload.batch import Batch
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.context import QueueTables, UploadContext
from docferry.upload.gates import GateManager
from docferry.upload.sources import SourceOpener
from docferry.upload.uploader import Uploader
from docferry.wakeups import Wakeups
from postgresql_server import running_server
from property.fake_codat import LAG, FakeCodat
from property.fake_disk import Disk, Killed, Memory, Server, SqliteMemory
from property.fake_sources import MemoryOpener

NAMES = ("a.pdf", "x/a.pdf", "b.pdf")
#: Two connections of one company: the company's list does not name the connection of a file.
ONE, OTHER = (Target("codat", str(uuid.UUID(int=1)), str(uuid.UUID(int=number))) for number in (2, 3))
#: The share of runs in which both connections get identical content under one name.
SAME_BYTES_RATE = 0.2
#: A run with more steps is stuck.
MAX_STEPS = 2_000


class FakeRemote:
    """Implement the Remote protocol for one process. Its faults occur here; some of them kill the process."""

    name = "codat"
    rules = Rules("Codat", max_size=10**7)
    lookup_after = LAG
    absent_after = 2.5 * LAG
    health = Health()

    def __init__(self, service: FakeCodat, kill: Callable[[], NoReturn]) -> None:
        self.service = service
        self.jitter = service.jitter
        self._kill = kill

    async def send(self, items: Sequence[UploadItem], key: str, permit: SendPermit = ALWAYS_PERMITTED) -> Receipt:
        (item,) = items
        await self._let_time_pass(5)
        if not permit.is_granted:
            raise NotNow
        if self.jitter.random() < 0.05:
            self._kill()
        async for _ in item.source.blocks():
            pass
        fault = self.service.fault()
        if fault in ("away", "cut", "busy"):
            kinds = {"away": "unreachable", "cut": "cut", "busy": "answer"}
            raise RemoteError(fault, kind=kinds[fault], status=429 if fault == "busy" else None)
        if fault != "never":
            answer = self.service.take(item.transfer, key, fault)
            fault = answer if fault in ("well", "error") else fault
        await self._let_time_pass(5)
        if fault == "well":
            return Receipt(200)
        if fault == "killed":
            self._kill()
        if fault == "error":
            raise RemoteError("error", status=500, body_complete=True)
        raise RemoteError(fault, kind="cut", body_complete=True)

    async def _let_time_pass(self, longest: float) -> None:
        """Advance the clock, and let other tasks run."""
        self.service.clock.turn(self.jitter.uniform(0, longest))
        for _ in range(self.jitter.randrange(3)):
            await checkpoint()

    def lookback(self, asked: Sequence[Transfer]) -> Lookback:
        return reconcile.lookback(asked)

    async def lookup(
        self, asked: Sequence[Transfer], accounted: KnownUploads, unsettled: KnownUploads = NOTHING
    ) -> Mapping[int, Finding]:
        await self._let_time_pass(2)
        if self.jitter.random() < 0.05:
            self._kill()
        if self.jitter.random() < self.service.fault_rate / 2:
            self.service.faults["no list"] += 1
            raise RemoteError("no list today", status=500)
        case = reconcile.Reconciliation(asked, accounted, unsettled, self.service.rows(), self.service.clock.now())
        found = case.by_list()
        if case.days:
            await self._let_time_pass(2)
            found |= case.by_archive(self.service.archive(case.days))
        return found

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        raise NotImplementedError(targets)

    async def aclose(self) -> None:
        return


# -- docferry's side ----------------------------------------------------------------------------------------------


class Process(Uploader):
    """Run an uploader with its own database connection and documents in memory."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.database = Memory(world.disk, world.jitter, risk=0.005)
        clock = world.clock
        self.queue = Transfers(self.database, clock, name)
        self.documents = Documents(self.database, clock)
        tables = QueueTables(self.database, self.documents, self.queue, Gates(self.database), LocalOwners(Path(), name))
        remotes = {"codat": FakeRemote(world.service, self.database.kill)}
        context = UploadContext(clock, tables, {world.upload.name: world.upload}, remotes, Wakeups(), Telemetry(clock))
        gate_manager = GateManager(tables.gates, clock, RetryPolicy(Backoff(0.5, 1.5, 60.0), give_up_after=1e9))
        gate_manager.random = world.jitter
        opener_in_memory = MemoryOpener(world.upload.root, world.contents, world.jitter)
        super().__init__(
            context,
            gate_manager,
            BatchTrials(Cursors(self.database, clock), self.queue, 1),
            SourceOpener(context, gate_manager, {Root.of(world.upload): opener_in_memory}),
        )
        self._clock, self._random = clock, world.jitter

    async def turn(self) -> None:
        """Claim and process due transfers."""
        jitter = self._random
        due = [lane for lane in await self.queue.lanes() if lane.due <= self._clock.now()]
        if any(lane.doubtful for lane in due) and await self.queue.asking_elsewhere():
            due = [lane for lane in due if not lane.doubtful]
        if not due:
            return
        claimed = await self.queue.claim([Pick(jitter.choice(due), jitter.randint(1, 3))], 3)
        if not claimed:
            return
        places = await self.documents.places([transfer.id for transfer in claimed])
        batches = [claimed] if claimed[0].state is State.ASKING else [[each] for each in claimed]
        for batch in batches:
            await self.process(Batch(batch, places))


# -- a run ---------------------------------------------------------------------------------------------------------


@dataclass
class RunReport:
    """Hold the results of runs."""

    runs: int = 0
    kills: int = 0
    documents: int = 0
    held: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, other: RunReport) -> None:
        self.runs += other.runs
        self.kills += other.kills
        self.documents += other.documents
        self.held += other.held
        self.faults += other.faults


class World:
    """Simulate one run: two processes, one disk, one service, three documents and a clock.

    The seed decides everything.
    """

    def __init__(self, seed: int, disk: Disk, upload: settings.Upload) -> None:
        self.seed = seed
        self.disk = disk
        self.upload = upload
        self.jitter = random.Random(seed)  # noqa: S311 - a run must be repeatable by its seed
        self.clock = TurnableClock(wall=1_790_000_000.0 + self.jitter.uniform(0, 86_400))
        self.service = FakeCodat(self.jitter, self.clock)
        self.contents = {sha256(name.encode()).hexdigest(): name.encode() for name in NAMES}
        self.documents = [(ONE, digest) for digest in self.contents]
        if self.jitter.random() < SAME_BYTES_RATE:
            self.documents.append((OTHER, self.documents[0][1]))
        self.observer = Memory(disk, self.jitter)
        self.started = 0

    async def run(self) -> RunReport:
        """Raise AssertionError if a document is lost, doubled, or never final."""
        self.disk.clear()
        await self._plan()
        processes = [self._start(), self._start()]
        for _ in range(MAX_STEPS):
            if not await self._advance():
                return await self._verify()
            if self.jitter.random() < 0.03:
                self.service.put("a.pdf", f"stranger {self.jitter.random()}")
            async with anyio.create_task_group() as group:
                for process in processes:
                    group.start_soon(self._turn, process)
            processes = [await self._restart(each) if each.database.dead else each for each in processes]
        raise AssertionError(f"seed {self.seed}: it does not end")

    async def _plan(self) -> None:
        with_token = self.jitter.random() < 0.3
        plans = []
        for target, digest in self.documents:
            content = self.contents[digest]
            path = Path(str(target.company_id), str(target.connection_id), content.decode())
            seen_file = SeenFile(bytes(path.parent), path.name.encode(), Stamp(len(content), 1, 1))
            uid = uuid.UUID(int=self.jitter.getrandbits(128)).hex
            name = f"{path.stem}~{uid[:8]}{path.suffix}" if with_token else path.name
            plans.append(Planned(seen_file, target, uid, name, digest, digest))
        await Documents(self.observer, self.clock).apply(self.upload.name, plans)

    async def _advance(self) -> bool:
        """Advance the clock until a transfer is due. Return False if none will be."""
        lanes = await Transfers(self.observer, self.clock, "watchman").lanes()
        if lanes:
            self.clock.turn(max(0.0, min(lane.due for lane in lanes) - self.clock.now()) + 0.001)
        return bool(lanes)

    async def _turn(self, process: Process) -> None:
        """Run a process once. A killed process leaves its lease behind."""
        try:
            await process.turn()
        except Killed:
            return
        except BaseExceptionGroup as group:
            if group.split(Killed)[1] is not None:
                raise

    def _start(self) -> Process:
        self.started += 1
        return Process(self, f"process {self.started}")

    async def _restart(self, dead: Process) -> Process:
        await Transfers(self.observer, self.clock, "watchman").reclaim({dead.name})
        return self._start()

    async def _verify(self) -> RunReport:
        self.clock.turn(LAG)  # delayed files are stored now
        rows = await self.observer.read(_states)
        stored = Counter((each.lane, each.sha256) for each in self.service.stored if each.lane is not None)
        held = Counter(str(reason) for _, _, state, reason in rows if state == State.HELD)
        context = f"seed {self.seed}: {rows} {stored}"
        assert {(target.lane, digest) for target, digest in self.documents} == {row[:2] for row in rows}, context
        assert {row[2] for row in rows} <= {State.SENT, State.HELD, State.GONE}, context
        assert held.keys() <= {"undecidable"}, context
        assert all(count == 1 for count in stored.values()), f"twice: {context}"
        assert all(stored[row[:2]] for row in rows if row[2] == State.SENT), f"lost: {context}"
        assert not any(stored[row[:2]] for row in rows if row[2] == State.GONE), f"gone, and there: {context}"
        report = await ReceiptLog(self.observer, self.clock).audit()
        assert not report.problems, f"{report.problems}: {context}"
        return RunReport(1, self.started - 2, len(rows), held, self.service.faults)


def _states(transaction: Transaction) -> list[tuple[str, str, str, str | None]]:
    rows = transaction.fetch_all(Sql("SELECT lane, sha256, state, reason FROM transfer"))
    return [(lane, digest, state, reason) for lane, digest, state, reason in rows]


def walk(first: int, last: int, url: str | None = None) -> RunReport:
    """Run these seeds on SQLite, or on the PostgreSQL database at `url`; raise at the first failure."""
    report = RunReport()

    async def all_of_them() -> None:
        for seed in range(first, last):
            report.add(await World(seed, disk, upload).run())

    with tempfile.TemporaryDirectory(prefix="docferry-simulated-") as folder:
        disk, upload = _disk(Path(folder)) if url is None else Server(url), _upload(Path(folder))
    logging.disable()  # millions of failures would be logged
    try:
        anyio.run(all_of_them)
    finally:
        logging.disable(logging.NOTSET)
    return report


def _disk(folder: Path) -> SqliteMemory:
    schema.prepare(folder / "docferry.db")
    return SqliteMemory(folder / "docferry.db")


def _upload(folder: Path) -> settings.Upload:
    config = folder / "docferry.toml"
    root = f"{folder}/{{company_id}}/{{connection_id}}"
    config.write_text(f'[[upload]]\nname = "m"\nfolder = "{root}"\nto = "codat"\n', encoding="utf-8")
    (upload,) = settings.load(config, {}).uploads
    return upload


def main() -> int:
    """Run the seeds of the command line, on all cores."""
    first, last = map(int, (sys.argv[1:] or ["0:10000"])[0].split(":"))
    share, began, report = 500, time.monotonic(), RunReport()
    with ExitStack() as stack:
        server = stack.enter_context(running_server()) if "postgresql" in sys.argv else None
        pool = stack.enter_context(ProcessPoolExecutor())
        walks = [
            pool.submit(walk, start, min(start + share, last), None if server is None else server.new_database())
            for start in range(first, last, share)
        ]
        for done in as_completed(walks):
            report.add(done.result())
            pace = report.runs / (time.monotonic() - began)
            print(f"{time.monotonic() - began:7.0f} s  {pace:.0f} runs a second; {report}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
