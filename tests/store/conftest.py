"""Provide a database for each test, and helpers that set its state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from docferry.clock import TurnableClock
from docferry.model import Outcome, SeenFile, Stamp, State, Target, Transfer
from docferry.store.claims import Lane, Pick
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer

ACME = Target("codat", "acme", "bank")


@dataclass
class StoreEnv:
    """Hold the tables of one database, with a clock that the test sets."""

    database: Database
    clock: TurnableClock
    documents: Documents
    transfers: Transfers

    def other(self, owner: str) -> Transfers:
        """Return the queue of another process."""
        return Transfers(self.database, self.clock, owner)

    async def enqueue(self, *names: str, mapping: str = "m", target: Target = ACME) -> None:
        await self.documents.apply(mapping, [planned(name, target=target) for name in names])

    async def claimed(self, most: int = 100, *, transfers: Transfers | None = None) -> list[Transfer]:
        """Lease everything that is due."""
        queue = transfers or self.transfers
        picks = [Pick(lane, most) for lane in await queue.lanes()]
        return await queue.claim(picks, most)

    async def sending(self, name: str) -> Transfer:
        """Return a transfer in SENDING."""
        await self.enqueue(name)
        (transfer,) = await self.claimed()
        await self.transfers.mark_sending([transfer])
        return replace(transfer, state=State.SENDING)

    async def doubtful(self, name: str) -> Transfer:
        transfer = await self.sending(name)
        await self.transfers.settle(transfer, Outcome(State.DOUBTFUL, None, "cut"), was=State.SENDING)
        return replace(transfer, state=State.DOUBTFUL)

    async def asking(self, name: str) -> Transfer:
        await self.doubtful(name)
        (transfer,) = await self.claimed()
        assert transfer.state is State.ASKING
        return transfer

    async def brought_to(self, state: State) -> Transfer:
        """Return a transfer in a state that has a lease."""
        if state is State.SENDING:
            return await self.sending("a.pdf")
        if state is State.ASKING:
            return await self.asking("a.pdf")
        await self.enqueue("a.pdf")
        (transfer,) = await self.claimed()
        return transfer

    async def held(self, name: str, reason: str) -> Transfer:
        transfer = await self.sending(name)
        await self.transfers.settle(transfer, Outcome(State.HELD, reason, "why"), was=State.SENDING)
        return transfer

    async def rows(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        return await self.database.fetch_all(Sql(statement), values)

    async def column(self, statement: str, **values: Any) -> list[Any]:
        return [row[0] for row in await self.rows(statement, **values)]

    async def change(self, statement: str, **values: Any) -> None:
        await self.database.execute(Sql(statement), values)

    async def everything(self) -> list[list[tuple[Any, ...]]]:
        """Return all rows, to prove that nothing changed."""
        tables = ("transfer", "attempt", "document", "gate")
        return [await self.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]  # noqa: S608 - our names


def planned(
    path: str,
    content: str | None = None,
    *,
    target: Target | None = ACME,
    mtime: int = 1,
    dedupe_key: str | None = None,
    **more: Any,
) -> Planned:
    """Return the plan of a file with this content; the default is its path."""
    digest = sha256((content if content is not None else path).encode()).hexdigest()
    folder, _, name = path.rpartition("/")
    uid = sha256(f"{path} {content} {mtime} {more}".encode()).hexdigest()[:32]
    seen_file = SeenFile(folder.encode(), name.encode(), Stamp(len(digest), mtime, mtime))
    return Planned(seen_file, target, uid, name, digest, dedupe_key or digest, **more)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on both databases; those with the mark `sqlite_only` concern SQLite's file."""
    if "location" in metafunc.fixturenames:
        is_of_sqlite = metafunc.definition.get_closest_marker("sqlite_only") is not None
        metafunc.parametrize("location", ["sqlite"] if is_of_sqlite else ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Return the path of a new SQLite file, or the URL of an empty PostgreSQL database."""
    if request.param == "sqlite":
        return tmp_path / "docferry.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    return server.new_database()


@pytest.fixture
async def env(location: Path | str) -> AsyncIterator[StoreEnv]:
    clock = TurnableClock()
    async with open_database(location) as database:
        yield StoreEnv(database, clock, Documents(database, clock), Transfers(database, clock, "me"))


@pytest.fixture
def lane() -> Callable[..., Lane]:
    return lambda name="codat/acme/bank", mapping="m", due=0.0, doubtful=False: Lane(mapping, name, due, doubtful)


Verb = Callable[[], Awaitable[Any]]
