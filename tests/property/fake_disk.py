"""Simulate the database that the processes of a run share."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from docferry.store import postgresql
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.pipeline import PipelinedTransaction
from docferry.store.receipts import ReceiptWriter
from docferry.store.tables import TABLES

T = TypeVar("T")
HOST = "simulated"


class Killed(BaseException):
    """SIGKILL: no code of this process runs any more."""


class Disk(Protocol):
    """Hold the database that the processes of one run share."""

    def clear(self) -> None:
        """Make it as it was before the first run."""

    def work(self, work: Callable[[Transaction], T]) -> T:
        """Run a unit of work and commit it."""


class Server:
    """Access a PostgreSQL database. Each unit of work is a transaction."""

    def __init__(self, url: str) -> None:
        self._driver = postgresql.prepare(url, HOST).connect()
        self._driver.execute("SET enable_seqscan = off; SET jit = off")
        self._transaction = PipelinedTransaction(self._driver)
        tables = [name for name in TABLES if name not in ("alembic_version", "receipt_log")]
        self._clear = f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"

    def clear(self) -> None:
        self._driver.execute(self._clear)
        self._driver.execute("UPDATE receipt_log SET size = 0, frontier = ''")

    def work(self, work: Callable[[Transaction], T]) -> T:
        with self._transaction.pipeline():
            self._driver.cursor().execute("BEGIN")
            found = work(self._transaction)
            self._driver.cursor().execute("COMMIT")
        return found


class SqliteMemory:
    """SQLite in memory, with the schema of `schema`."""

    def __init__(self, template: Path) -> None:
        self._template = sqlite3.connect(":memory:")
        with sqlite3.connect(template) as made:
            made.backup(self._template)
        self._raw = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
        self._transaction = Transaction(self._raw)  # SQLite commits each statement by itself

    def clear(self) -> None:
        self._template.backup(self._raw)

    def work(self, work: Callable[[Transaction], T]) -> T:
        return work(self._transaction)


class Memory(Database):
    """Access the database from one process, without thread and group commit; a killed process has no access."""

    def __init__(self, disk: Disk, jitter: random.Random, risk: float = 0.0) -> None:
        self.receipts = ReceiptWriter(HOST)
        self._disk = disk
        self._random = jitter
        self._risk = risk  # probability of a kill before a commit, and after it
        self.dead = False

    @property
    def unknown_commits(self) -> int:
        return 0

    @property
    def adopt_before(self) -> float:
        return 0.0

    def kill(self) -> NoReturn:
        self.dead = True
        raise Killed

    async def read(self, work: Callable[[Transaction], T]) -> T:
        await checkpoint()
        return self._run(work)

    async def write(self, work: Callable[[Transaction], T], started: Callable[[], None] | None = None) -> T:
        with anyio.CancelScope(shield=True):
            await checkpoint()
        if started is not None:
            started()
        if self._random.random() < self._risk:
            self.kill()
        found = self._run(work)
        if self._random.random() < self._risk:
            self.kill()
        return found

    def _run(self, work: Callable[[Transaction], T]) -> T:
        if self.dead:
            raise Killed
        return self._disk.work(work)
