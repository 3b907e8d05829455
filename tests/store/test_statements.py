"""Frequent statements use indexes, so that their cost does not depend on the number of rows."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from docferry.store import claims, documents, enqueue, lookup_counts, plan_table, schema, transfers, transitions
from docferry.store.statement import ByDialect, Sql, for_sqlite

ASKED_BY_A_PERSON = {"_RETRY", "_TO_RELEASE"}  # rare commands of a person
SENTENCES = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")

#: Statements for PostgreSQL alone, beside those for many rows together.
OF_POSTGRESQL = {"_ASK", "_USE_INDEXES", "_USE_BITMAPS"}


def statements(module: ModuleType) -> dict[str, str]:
    """Return the statements of a module by name, in SQLite's dialect."""
    texts = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Sql | ByDialect) and not name.endswith("_TOGETHER") and name not in OF_POSTGRESQL
    }
    found = {name: for_sqlite(value).sql for name, value in texts.items()}
    return {name: text for name, text in found.items() if SENTENCES.match(text) and name not in ASKED_BY_A_PERSON}


@pytest.mark.parametrize(
    "module", [claims, documents, enqueue, transitions, transfers, lookup_counts], ids=lambda module: module.__name__
)
def test_no_statement_reads_a_whole_table(tmp_path: Path, module: ModuleType) -> None:
    schema.prepare(tmp_path / "docferry.db")
    database = sqlite3.connect(tmp_path / "docferry.db")
    database.execute(plan_table.CREATE.sqlite)
    found = statements(module)
    assert found
    for name, text in found.items():
        given = dict.fromkeys(re.findall(r":([a-z_0-9]+)", text), 0)
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", given)]
        whole = [step for step in steps if re.match(r"SCAN (transfer|document)\b(?!.*USING)", step)]
        assert not whole, f"{module.__name__}.{name} reads {whole}"
    database.close()


def test_the_cost_of_lanes_does_not_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    """SQLite shows one plan for a seek and for a scan; only the number of steps differs."""
    schema.prepare(tmp_path / "docferry.db")
    database = sqlite3.connect(tmp_path / "docferry.db")
    steps = [_steps(database, waiting) for waiting in (40, 4000)]
    assert steps[1] < 1.5 * steps[0]
    database.close()


def _steps(database: sqlite3.Connection, waiting: int) -> int:
    """Return the steps of SQLite, divided by ten, to find four lanes among `number` transfers."""
    database.execute("DELETE FROM transfer")
    database.executemany(
        "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, dedupe_key, size, state, lease, tries, "
        "key_version, created, due_since, next_attempt, updated) "
        "VALUES ('', ?, ?, '', '', ?, 1, 'waiting', 0, 0, 0, 0, 0, ?, 0)",
        [(f"m{n % 2}", f"lane{n % 4}", str(n), n) for n in range(waiting)],
    )
    ticks: list[int] = []
    database.set_progress_handler(lambda: ticks.append(0), 10)
    found = database.execute(str(claims._WAITING_LANES.sqlite)).fetchall()
    database.set_progress_handler(None, 0)
    assert [row[:3] for row in found] == [
        ("m0", "lane0", 0),
        ("m0", "lane2", 2),
        ("m1", "lane1", 1),
        ("m1", "lane3", 3),
    ]
    return len(ticks)
