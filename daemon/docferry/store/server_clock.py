"""Read the clock of the database server, which all hosts of a shared queue use."""

from __future__ import annotations

from docferry.clock import Clock, ServerClock, SystemClock
from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.statement import Sql

#: SQL expression for the server's time, wall seconds.
SERVER_NOW = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
_NOW = Sql(f"SELECT {SERVER_NOW}")


async def read_server_clock(database: Database, local: Clock) -> ServerClock:
    """Read the server's time, and return a clock for it."""
    began = local.steady()
    (server_now,) = await database.fetch_one(_NOW)
    return ServerClock(local, server_now, began, local.steady())


async def queue_clock(database: Database) -> Clock:
    """Return the clock of a queue: the server's on PostgreSQL, else this machine's."""

    def is_shared(transaction: Transaction) -> bool:
        return transaction.has_recordsets

    local = SystemClock()
    return await read_server_clock(database, local) if await database.read(is_shared) else local
