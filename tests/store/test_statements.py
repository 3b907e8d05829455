"""Statements that every document needs read no table from end to end, however many rows it has."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import TextClause

from docferry.store import moves, plans, schema, transfers

ASKED_BY_A_PERSON = {"_RETRY"}  # once in a while, for all that is held
SENTENCES = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")


def statements(module: ModuleType) -> dict[str, str]:
    """Every statement that a module has a name for."""
    found = {name: str(value) for name, value in vars(module).items() if isinstance(value, str | TextClause)}
    found = {name: text for name, text in found.items() if "{" not in text}  # a mould of others
    return {name: text for name, text in found.items() if SENTENCES.match(text) and name not in ASKED_BY_A_PERSON}


@pytest.mark.parametrize("module", [plans, moves, transfers], ids=lambda module: module.__name__)
def test_no_statement_reads_a_whole_table(tmp_path: Path, module: ModuleType) -> None:
    schema.prepare(tmp_path / "docferry.db")
    database = sqlite3.connect(tmp_path / "docferry.db")
    database.execute(str(plans._TABLE))
    found = statements(module)
    assert len(found) > 2
    for name, text in found.items():
        named = re.findall(r":([a-z_0-9]+)", text)
        given = dict.fromkeys(named, 0) if named else [0] * text.count("?")
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", given)]
        whole = [step for step in steps if re.match(r"SCAN (transfer|document)\b(?!.*USING)", step)]
        assert not whole, f"{module.__name__}.{name} reads {whole}"
    database.close()
