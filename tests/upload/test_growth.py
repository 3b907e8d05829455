"""The statements of a pass cost the same in a large database as in a small one."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest

from app_env import COMPANY, CONNECTION
from docferry.clock import SystemClock
from docferry.model import SeenFile, Stamp, State, Target
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.statement import Sql
from upload.conftest import UploadEnv, once

pytestmark = pytest.mark.anyio

#: Sent documents of an earlier time. A statement that reads each of them takes several steps for a row.
ROWS = 4_000
NEW = 12
#: The number of SQLite's steps between two calls of its progress handler.
STEPS = 50
VERBS = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
LITERALS = re.compile(r"x?'(?:[^']|'')*'|\b[0-9][0-9.e+]*\b", re.IGNORECASE)
#: A plan that reads all rows in one step, as `count(*)` does. The other indexes have few rows, because of a condition.
WHOLE = re.compile(
    r"SCAN (\w+ )?(transfer|document|attempt|receipt)\b(?!.*USING)"
    r"|SCAN .*USING (COVERING )?INDEX (transfer_dedupe_key|transfer_sent|document_\w+|receipt_transfer)"
)


class Watched(sqlite3.Connection):
    """Count SQLite's steps by statement; keep the largest count of a single execution."""

    dearest: ClassVar[Counter[str]] = Counter()
    samples: ClassVar[dict[str, str]] = {}  # with their literals, which decide about partial indexes

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._running, self._steps = "", 0
        self.set_trace_callback(self._begin)
        self.set_progress_handler(self._advance, STEPS)

    def _begin(self, statement: str) -> None:
        self._running, self._steps = LITERALS.sub("?", statement), 0
        self.samples.setdefault(self._running, statement)
        self.dearest[self._running] += 0

    def _advance(self) -> None:
        self._steps += STEPS
        self.dearest[self._running] = max(self.dearest[self._running], self._steps)


def _plan(database: sqlite3.Connection, statement: str) -> str:
    return "\n".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}"))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter[str], dict[str, str]]]:
    """Watch every connection to SQLite that is opened during the context."""
    with monkeypatch.context() as patched:
        patched.setattr(Watched, "dearest", Counter())
        patched.setattr(Watched, "samples", {})
        patched.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
        yield Watched.dearest, Watched.samples


async def fill(env: UploadEnv) -> None:
    """Record sent documents of a removed mapping with their attempts and receipts, in the lane of the new documents."""
    env.app_env.state.mkdir(mode=0o700, exist_ok=True)
    target = Target("codat", COMPANY, CONNECTION)
    plans = []
    for number in range(ROWS):
        seen_file = SeenFile(b"%d" % (number % 100), b"%d.pdf" % number, Stamp(1, number, number))
        digest = f"{number * 2_654_435_761 % 2**32:064x}"
        plans.append(Planned(seen_file, target, f"{number:032}", f"{number}.pdf", digest, digest, State.SENT))
    async with open_database(env.app_env.state / "docferry.db") as database:
        await Documents(database, SystemClock()).apply("archive", plans)
        await database.execute(Sql("UPDATE transfer SET lease = 1, tries = 1, last_sent = created"))
        await database.execute(
            Sql(
                "INSERT INTO attempt (transfer_id, lease, began, ended, state) "
                "SELECT id, 1, created, created, 'sent' FROM transfer"
            )
        )
        ids = range(1, ROWS + 1)
        await database.write(lambda transaction: database.receipts.append_released(transaction, ids, 0.0, "test"))


async def test_no_statement_of_a_pass_reads_all_rows(env: UploadEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count SQLite's steps: one plan may describe a seek and a scan."""
    folder = env.app_env.upload("bank")
    names = [f"{number}.pdf" for number in range(NEW)]
    await fill(env)
    env.write_documents(folder, *names)
    with watched(monkeypatch) as (steps, samples):
        await env.run_daemon()
    assert env.at_codat() == once(*names)
    # The check of a small database at the start reads all of it.
    found = {text: count for text, count in steps.items() if not text.startswith("PRAGMA integrity_check")}
    assert {text: count for text, count in found.items() if count >= ROWS} == {}
    with closing(sqlite3.connect(env.app_env.state / "docferry.db")) as database:
        for text in samples.values():
            if text.startswith("CREATE TEMP TABLE"):
                database.execute(text)
        plans = {text: _plan(database, text) for text in samples.values() if VERBS.match(text)}
    assert {text: plan for text, plan in plans.items() if WHOLE.search(plan)} == {}
    assert any("INDEX transfer_dedupe_key" in plan for plan in plans.values())
