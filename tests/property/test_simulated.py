"""Run some seeds of the simulation; `make seeds` runs 100,000."""

from __future__ import annotations

import os

from postgresql_server import PostgresqlServer
from property.simulated import walk

#: `DOCFERRY_SEEDS=1000:5000` walks others, one alone is repeated by `DOCFERRY_SEEDS=17:18`.
FIRST, LAST = map(int, os.environ.get("DOCFERRY_SEEDS", "0:300").split(":"))


def test_whatever_the_dice_say_each_document_arrives_once() -> None:
    tidings = walk(FIRST, LAST)
    assert tidings.runs == LAST - FIRST


def test_each_document_arrives_once_on_postgresql_too(postgresql_server: PostgresqlServer) -> None:
    """`make seeds ARGS="0:1000 postgresql"` runs more."""
    last = FIRST + min(LAST - FIRST, 10)
    assert walk(FIRST, last, postgresql_server.new_database()).runs == last - FIRST


def test_a_seed_is_a_run() -> None:
    """The same seed gives the same run, so a failure can be repeated."""
    assert walk(FIRST + 3, FIRST + 6) == walk(FIRST + 3, FIRST + 6)
