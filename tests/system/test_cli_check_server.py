"""Test `docferry check` on a PostgreSQL queue: can the server lose a commit."""

from __future__ import annotations

import json
from collections.abc import Mapping

import psycopg
import pytest

from app_env import AppEnv
from docferry.cli.server_checks import findings
from docferry.store.durability import Durability
from postgresql_server import PostgresqlServer

SAFE = {
    "server_version": "18.1 (Debian)",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "synchronous_standby_names": "",
}


@pytest.mark.parametrize(
    ("changed", "standbys", "level", "said"),
    [
        ({}, 0, "ok", "a crash loses no commit"),
        ({}, 0, "note", "a lost disk is a lost queue"),
        ({"fsync": "off"}, 0, "fail", "set fsync = on"),
        ({"full_page_writes": "off"}, 0, "warn", "half-written pages"),
        ({"synchronous_commit": "off"}, 0, "warn", "a crash loses the newest commits"),
        ({"synchronous_commit": "off", "synchronous_standby_names": "a"}, 1, "warn", "ALTER ROLE"),
        ({}, 2, "warn", "2 standbys connected, none of them synchronous"),
        ({"synchronous_standby_names": "FIRST 1 (a)"}, 1, "ok", "each commit is on a standby too (FIRST 1 (a);"),
        ({"synchronous_standby_names": "a", "synchronous_commit": "remote_write"}, 1, "ok", "only in its memory"),
        ({"synchronous_standby_names": "a", "synchronous_commit": "local"}, 1, "warn", "do not wait for a"),
        ({"synchronous_standby_names": "a"}, 0, "warn", "commits wait until one is"),
    ],
)
def test_each_way_to_lose_a_commit_is_told_with_its_fix(
    changed: Mapping[str, str], standbys: int, level: str, said: str
) -> None:
    found = list(findings(Durability({**SAFE, **changed}, standbys)))
    assert [each.level for each in found if said in f"{each.detail} {each.cure}"] == [level]
    assert all(each.cure for each in found if each.level in ("warn", "fail"))


def test_check_asks_the_server_and_creates_nothing(app_env: AppEnv, postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.new_database()
    app_env.upload("bank")
    told = json.loads(app_env.run("check", "--json", DOCFERRY_DATABASE_URL=url).stdout)
    found = {row["detail"]: row["level"] for row in told["findings"] if row["subject"] == "database"}
    assert any("fsync is off" in detail for detail in found), found  # as the server of the tests has it
    assert not any("SQLite" in detail for detail in found)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('transfer')").fetchone() == (None,)


def test_check_tells_a_server_that_is_away_from_a_wrong_one(
    app_env: AppEnv, postgresql_server: PostgresqlServer
) -> None:
    app_env.upload("bank")
    away = app_env.run("check", DOCFERRY_DATABASE_URL="postgresql://docferry:hidden@127.0.0.1:1/docferry")
    assert away.returncode == 75, away.stdout
    assert "cannot be used now" in away.stdout
    assert "hidden" not in away.stdout
    wrong = app_env.run("check", DOCFERRY_DATABASE_URL=postgresql_server.url("nowhere"))
    assert wrong.returncode == 2, wrong.stdout
    malformed = app_env.run("check", DOCFERRY_DATABASE_URL="postgresql://h/d?nonsense=1")
    assert malformed.returncode == 2, malformed.stdout
    assert "database_url is malformed" in malformed.stdout
