"""Measure the queue alone: `python -m benchmarks.queue_cycles FOLDER DOCUMENTS [URL]`.

Enqueue, claim, mark and settle with 16 tasks and synchronous FULL, and print cycles a second and raw sqlite3's commits.
With the URL of an empty PostgreSQL database, measure it after SQLite.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import sys
import time
from collections import deque
from pathlib import Path

import anyio

from benchmarks.docferry_run import COMPANY, CONNECTION
from docferry.clock import SystemClock
from docferry.model import Outcome, Receipt, SeenFile, Stamp, State, Target, Transfer
from docferry.store.claims import Pick
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.transfers import Transfers

TASKS = 16
PLANNED = 1024
TARGET = Target("codat", COMPANY, CONNECTION)


def planned(start: int, count: int, *, state: State = State.WAITING) -> list[Planned]:
    """Plans for documents that lie nowhere."""
    plans = []
    for number in range(start, start + count):
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        seen = SeenFile(b"d%04d" % (number % 1000), b"f%07d.pdf" % number, Stamp(40_000, number, number))
        name = f"f{number:07}.pdf"
        plans.append(Planned(seen, TARGET, secrets.token_hex(16), name, digest, digest, state))
    return plans


class _Desk:
    """Claims for all tasks together, as the runner does."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        self.ready: deque[Transfer] = deque()
        self._line = anyio.Lock()

    async def next(self) -> Transfer | None:
        if not self.ready:
            async with self._line:
                if not self.ready:
                    room = 4 * TASKS
                    lanes = await self.transfers.lanes()
                    if lanes:
                        self.ready += await self.transfers.claim([Pick(lane, room) for lane in lanes], room)
        return self.ready.popleft() if self.ready else None


async def _cycles(location: Path | str, documents: int) -> float:
    clock = SystemClock()
    async with open_database(location) as database:
        store, desk = Documents(database, clock), _Desk(Transfers(database, clock, "benchmark"))
        sent = Outcome(State.SENT, receipt=Receipt(200))

        async def run_cycles() -> None:
            while (transfer := await desk.next()) is not None:
                await desk.transfers.mark_sending([transfer])
                await desk.transfers.settle(transfer, sent, was=State.SENDING)

        plans = [planned(start, min(PLANNED, documents - start)) for start in range(0, documents, PLANNED)]
        began = time.perf_counter()
        for plan in plans:
            await store.apply("bench", plan)
        async with anyio.create_task_group() as group:
            for _ in range(TASKS):
                group.start_soon(run_cycles)
        return documents / (time.perf_counter() - began)


def _raw(folder: Path, commits: int) -> float:
    """Measure commits of one row each, as the limit of disk and SQLite."""
    database = sqlite3.connect(folder / "raw.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT)")
    began = time.perf_counter()
    for number in range(commits):
        database.execute("INSERT INTO row VALUES (?, ?)", (number, "x" * 100))
    seconds = time.perf_counter() - began
    database.close()
    return commits / seconds


def main() -> None:
    folder, documents = Path(sys.argv[1]), int(sys.argv[2])
    raw = _raw(folder, documents // 4)
    found = {"cycles": anyio.run(_cycles, folder / "queue.db", documents), "raw": raw}
    for url in sys.argv[3:]:
        found["postgresql"] = anyio.run(_cycles, url, documents)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
