"""Provide a queue with receipts in a real database, and functions that tamper with it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from docferry.clock import TurnableClock
from docferry.model import Outcome, Receipt, SeenFile, Stamp, State, Target
from docferry.receipts.heads import SignedHead
from docferry.receipts.merkle import Frontier, leaf_hash
from docferry.store.claims import Pick
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.receipt_log import AuditReport, ReceiptLog
from docferry.store.transfers import Transfers

TARGET = Target("codat", "8a210b68-6988-11ed-a1eb-0242ac120002", "2e9d2c44-f675-40ba-8049-353bfcb5e171")


@dataclass
class Queue:
    """Access an open database."""

    clock: TurnableClock
    documents: Documents
    transfers: Transfers
    log: ReceiptLog

    async def enqueue(self, *names: str) -> None:
        await self.documents.apply("m", [planned(name) for name in names])

    async def send(self, *names: str) -> None:
        """Enqueue and send them, one transition after the other."""
        await self.enqueue(*names)
        for lane in await self.transfers.lanes():
            claimed = await self.transfers.claim([Pick(lane, 1000)], 1000)
            await self.transfers.mark_sending(claimed)
            for transfer in claimed:
                self.clock.turn(1)
                answer = Receipt(200, correlation_id=f"c-{transfer.id}", etag="e")
                await self.transfers.settle(transfer, Outcome(State.SENT, receipt=answer), was=State.SENDING)


@dataclass
class Store:
    """Open a database file for each step, so that the file can be changed and copied in between."""

    path: Path
    clock: TurnableClock

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Queue]:
        async with open_database(self.path, host="sftp-1") as database:
            documents, transfers = Documents(database, self.clock), Transfers(database, self.clock, "me")
            yield Queue(self.clock, documents, transfers, ReceiptLog(database, self.clock))

    async def send(self, *names: str) -> None:
        async with self.open() as queue:
            await queue.send(*names)

    async def head(self) -> SignedHead:
        async with self.open() as queue:
            return (await queue.log.take_head()).signed

    async def audit(self, *anchored: Any) -> AuditReport:
        async with self.open() as queue:
            return await queue.log.audit(anchored)

    async def problems(self, *anchored: Any) -> list[str]:
        return list((await self.audit(*anchored)).problems)

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Change the database as a user of the SQLite shell does."""
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute(statement, values).fetchall()
            connection.commit()
        return rows

    def rewrite(self) -> None:
        """Recompute leaves and frontier, as an expert attacker does."""
        frontier = Frontier()
        rows = self.sql("SELECT idx, body, leaf FROM receipt ORDER BY idx")
        for index, body, leaf in rows:
            found = leaf if body is None else leaf_hash(body.encode())
            self.sql("UPDATE receipt SET leaf = ? WHERE idx = ?", found, index)
            frontier.append(found)
        self.sql("UPDATE receipt_log SET size = ?, frontier = ?", len(rows), frontier.encode())

    def copy(self, to: str) -> Path:
        """Return a backup of the file."""
        copy = self.path.with_name(to)
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return copy

    def restore(self, copy: Path) -> None:
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        shutil.copy(copy, self.path)


def planned(path: str, mtime: int = 1) -> Planned:
    digest = sha256(path.encode()).hexdigest()
    folder, _, name = path.rpartition("/")
    seen_file = SeenFile(folder.encode(), name.encode(), Stamp(len(path), mtime, mtime))
    return Planned(seen_file, TARGET, sha256(f"uid {path} {mtime}".encode()).hexdigest()[:32], name, digest, digest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "docferry.db", TurnableClock())
