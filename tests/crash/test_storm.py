"""Run a small storm; with DOCFERRY_FULL=1 one of ten thousand documents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash.storm import LAG, Plan, storm

FULL = os.environ.get("DOCFERRY_FULL") == "1"


@pytest.mark.timeout(3_600 if FULL else 120)
def test_half_of_all_requests_go_wrong(tmp_path: Path) -> None:
    """Every document arrives once and whole, over TLS and without; at most one in a thousand is held."""
    documents, lag, patience = (10_000, LAG, 3_500.0) if FULL else (160, LAG / 2, 100.0)
    outcome = storm(tmp_path, Plan(documents, 4, lag=lag, patience=patience))
    assert outcome.is_well, outcome.table()
    assert 0.4 < outcome.share < 0.6, outcome.table()
    assert len(outcome.kinds) >= 18, outcome.table()


@pytest.mark.timeout(3_600 if FULL else 180)
def test_senders_and_daemons_die_as_well(tmp_path: Path) -> None:
    documents, patience = (10_000, 3_500.0) if FULL else (30, 150.0)
    outcome = storm(tmp_path, Plan(documents, 5, senders=1, patience=patience))
    assert outcome.is_well, outcome.table()
