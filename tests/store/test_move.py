"""Move a queue to PostgreSQL: completely or not at all, also when the program is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from docferry.clock import TurnableClock
from docferry.errors import StateError
from docferry.model import Outcome, State
from docferry.store import move, schema
from docferry.store.claims import Pick
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.reports import Reports
from docferry.store.statement import Sql
from docferry.store.transfers import Transfers
from postgresql_server import PostgresqlServer
from store.conftest import planned

pytestmark = pytest.mark.anyio
KEYS = Sql("SELECT key FROM cursor WHERE key NOT LIKE 'server/%' ORDER BY key")


async def test_a_queue_is_moved_completely(tmp_path: Path, postgresql_server: PostgresqlServer) -> None:
    path, url, clock = tmp_path / "docferry.db", postgresql_server.new_database(), TurnableClock()
    async with open_database(path) as database:
        documents = Documents(database, clock)
        await documents.apply("bank", [planned(f"{n}/a.pdf", str(n)) for n in range(2500)])
        await documents.apply("share", [planned("b.pdf", "b")])
        await documents.set_target("bank", "codat")
        transfers = Transfers(database, clock, "me")
        claimed = await transfers.claim([Pick(lane, 5) for lane in await transfers.lanes()], 5)
        await transfers.mark_sending(claimed)
        await transfers.settle_all(claimed[:2], Outcome(State.SENT), was=State.SENDING)
        before = await Reports(database).rows()
    assert move.move(path, url, "h1", {"share"}) > 5000
    assert not path.exists()
    async with open_database(url) as database:
        after = await Reports(database).rows()
        names = {"bank": "bank@h1", "share": "share"}
        assert [(names[row.mapping], row.path, row.state, row.sha256, row.updated) for row in before] == [
            (row.mapping, row.path, row.state, row.sha256, row.updated) for row in after
        ]
        assert await database.fetch_all(KEYS) == [("mapping/bank@h1",)]
        applied = await Documents(database, clock).apply("bank@h1", [planned("new.pdf")])
        assert applied.queued == 1
        assert len(await Reports(database).rows()) == len(before) + 1


async def test_a_queue_is_not_moved_into_another(tmp_path: Path, postgresql_server: PostgresqlServer) -> None:
    path, url, clock = tmp_path / "docferry.db", postgresql_server.new_database(), TurnableClock()
    async with open_database(url) as database:
        await Documents(database, clock).apply("m", [planned("theirs.pdf")])
    async with open_database(path) as database:
        await Documents(database, clock).apply("m", [planned("ours.pdf")])
    with pytest.raises(StateError, match="has a queue already"):
        move.move(path, url, "h1", set())
    async with open_database(path) as database:
        assert [row.path for row in await Reports(database).rows()] == [b"ours.pdf"]
    async with open_database(url) as database:
        assert [row.path for row in await Reports(database).rows()] == [b"theirs.pdf"]


#: Moves a queue, and kills itself before or after a statement.
KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from docferry.store import move

path, url, moment, start = sys.argv[1:]

@event.listens_for(Engine, f"{moment}_cursor_execute")
def kill(connection, cursor, statement, *_):
    if connection.dialect.name == "postgresql" and statement.startswith(start) and "receipt_log" not in statement:
        if start != "COMMIT" or Path(path + ".moving").exists():
            os.kill(os.getpid(), signal.SIGKILL)

move.move(Path(path), url, "h1", set())
"""


def move_and_die(path: Path, url: str, moment: str, start: str) -> int:
    """Return the exit code of a move that is killed."""
    command = [sys.executable, "-c", KILLED, str(path), url, moment, start]
    return subprocess.run(command, check=False, timeout=120).returncode


@pytest.mark.parametrize(
    ("moment", "start"),
    [("before", "INSERT INTO document"), ("before", "COMMIT"), ("after", "COMMIT")],
    ids=["copying", "before the commit", "after the commit"],
)
async def test_a_killed_move_leaves_one_queue_and_can_be_ended(
    tmp_path: Path, postgresql_server: PostgresqlServer, moment: str, start: str
) -> None:
    path, url, clock = tmp_path / "docferry.db", postgresql_server.new_database(), TurnableClock()
    async with open_database(path) as database:
        await Documents(database, clock).apply("m", [planned(f"{n}.pdf") for n in range(50)])
    assert await anyio.to_thread.run_sync(move_and_die, path, url, moment, start) == -signal.SIGKILL
    if start == "COMMIT":  # nobody can send from the file, since the server may have committed
        assert not path.exists()
        with pytest.raises(StateError, match=r"interrupted.*queue move"):
            schema.prepare(path)
    else:
        schema.prepare(path)
    assert move.move(path, url, "h1", set()) > 100
    assert (path.exists(), schema.moving(path).exists(), schema.moved(path).exists()) == (False, False, True)
    async with open_database(url) as database:
        assert len(await Reports(database).rows()) == 50


def test_a_moved_queue_is_not_begun_again(tmp_path: Path, postgresql_server: PostgresqlServer) -> None:
    path = tmp_path / "docferry.db"
    schema.prepare(path)
    move.move(path, postgresql_server.new_database(), "h1", set())
    with pytest.raises(StateError, match="set database_url"):
        schema.prepare(path)
    assert not path.exists()
