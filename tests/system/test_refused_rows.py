"""Test that rows which the database refuses stay with their document: the daemon goes on, and says so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import psycopg
import pytest

from app_env import COMPANY, AppEnv, files_below, until
from postgresql_server import PostgresqlServer
from refusing_trigger import allowing, refusing

FINE = [f"{number}.pdf" for number in range(5)]
Change = Callable[[Sequence[str]], None]


@pytest.fixture
def change(request: pytest.FixtureRequest, app_env: AppEnv) -> Change:
    """Return a function that changes the queue as another program would. The queue and its folders are empty."""
    app_env.upload("bank")
    app_env.download("inbox", company_id=f'"{COMPANY}"', every='"200ms"')
    app_env.codat["requests_per_minute"] = "1000000"
    if request.param == "sqlite":
        app_env.sync()

        def run(statements: Sequence[str]) -> None:
            with closing(sqlite3.connect(app_env.state / "docferry.db", timeout=60.0)) as connection, connection:
                for statement in statements:
                    connection.execute(statement)

        return run
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    url = server.new_database()
    app_env.settings["database_url"] = f'"{url}"'
    app_env.sync()

    def run_on_server(statements: Sequence[str]) -> None:
        with psycopg.connect(url) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    return run_on_server


def status(app_env: AppEnv) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(app_env.run("status", "--json").stdout)
    return found


def is_postgresql(app_env: AppEnv) -> bool:
    return "database_url" in app_env.settings


def fill(app_env: AppEnv) -> None:
    """Write documents, one of which has the name `bad.pdf`, and let a customer upload two files at Codat."""
    for name in [*FINE, "bad.pdf"]:
        (app_env.root / "bank" / name).write_bytes(name.encode())
    for name in ("theirs.pdf", "theirs-bad.pdf"):
        app_env.simulator.put_company_file(COMPANY, name, name.encode(), "Banking", "2026-03-04T10:00:00Z", "Bank")


def sent(app_env: AppEnv) -> list[str]:
    return sorted(row["remote_name"] for row in app_env.rows("--state", "sent"))


def arrived(app_env: AppEnv) -> list[str]:
    return sorted(path.name for path in files_below(app_env.root / "inbox") if path.suffix == ".pdf")


BAD = "NEW.remote_name = 'bad.pdf'"
SINGLE = {
    "everything": ("UPDATE ON transfer", BAD),
    "sent": ("UPDATE ON transfer", f"{BAD} AND NEW.state = 'sent'"),
    "new transfer": ("INSERT ON transfer", BAD),
    "download": ("INSERT ON download", "NEW.origin LIKE '%bad%'"),
}


@pytest.mark.parametrize(
    ("change", "case"),
    [*(("sqlite", case) for case in SINGLE), ("postgresql", "everything")],
    indirect=["change"],
)
def test_a_refused_row_stays_with_its_document(app_env: AppEnv, change: Change, case: str) -> None:
    event, condition = SINGLE[case]
    change(refusing(event, condition, postgresql=is_postgresql(app_env)))
    fill(app_env)
    with app_env.daemon() as daemon:
        until(lambda: set(FINE) <= set(sent(app_env)), what="the other documents")
        until(lambda: "theirs.pdf" in arrived(app_env), what="the other download")
        until(lambda: "no 17" in (status(app_env)["trouble"] or ""), what="the alarm")
        assert daemon.running.poll() is None
        assert case == "download" or "bad.pdf" not in sent(app_env)
        change([allowing(event, postgresql=is_postgresql(app_env))])
        if case != "download":

            def recovered() -> bool:
                app_env.run("retry", "--all")
                return "bad.pdf" in sent(app_env)

            if case != "everything":  # it is tried again after a minute; see tests/store/test_refusals.py
                until(recovered, what="the document after the repair")
        assert daemon.end() == 0
    assert max(app_env.stored().values()) == 1


@pytest.mark.parametrize(
    ("change", "table"),
    [("sqlite", "cursor"), ("postgresql", "process")],
    indirect=["change"],
)
def test_rows_that_concern_no_document_end_no_daemon(app_env: AppEnv, change: Change, table: str) -> None:
    """Refused rows are an alarm; the stopped work continues after the repair."""
    fill(app_env)
    on_server = is_postgresql(app_env)
    change(
        [*refusing(f"INSERT OR UPDATE ON {table}", postgresql=True)]
        if on_server
        else refusing(f"UPDATE ON {table}", postgresql=False)
    )
    with app_env.daemon() as daemon:
        until(lambda: "no 17" in daemon.text(), what="the log record")
        if table == "process":
            assert not sent(app_env)  # without a confirmed heartbeat nothing is sent
        change([allowing(f"ON {table}", postgresql=on_server)])

        def recovered() -> bool:
            app_env.run("retry", "--all")
            return set(FINE) <= set(sent(app_env))

        until(recovered, 90.0, "all documents after the repair")
        assert daemon.running.poll() is None
        assert daemon.end() == 0
    assert max(app_env.stored().values()) == 1


DAMAGES = {
    "folder": "UPDATE document SET folder = CAST('x' AS TEXT) WHERE name = CAST('bad.pdf' AS BLOB)",
    "remote": "UPDATE transfer SET remote = 'elsewhere' WHERE remote_name = 'bad.pdf'",
    "utf-8": "UPDATE transfer SET detail = CAST(X'ff' AS TEXT) WHERE remote_name = 'bad.pdf'",
    "number": "UPDATE transfer SET first_sent = 'never', tries = X'00' WHERE remote_name = 'bad.pdf'",
}


@pytest.mark.parametrize("change", ["sqlite"], indirect=True)
@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_row_hinders_no_other_document(app_env: AppEnv, change: Change, case: str) -> None:
    app_env.simulator.options.codat_key, key = "another", app_env.simulator.options.codat_key
    (app_env.root / "bank" / "bad.pdf").write_bytes(b"bad")
    app_env.run("sync", "--timeout", "3", CODAT_API_KEY="wrong")
    assert [row["state"] for row in app_env.rows()] == ["waiting"]
    app_env.simulator.options.codat_key = key
    change([DAMAGES[case]])
    for name in FINE:
        (app_env.root / "bank" / name).write_bytes(name.encode())
    with app_env.daemon() as daemon:
        until(lambda: {name for name, _ in app_env.stored()} >= set(FINE), what="the other documents")
        assert daemon.running.poll() is None
        assert daemon.end() == 0
    for words in (("status",), ("list",), ("sync", "--timeout", "2"), ("verify",)):
        assert app_env.run(*words).returncode in (0, 1, 75), words
