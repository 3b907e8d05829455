"""Test a daemon whose PostgreSQL server goes away: it waits, says so, and stops in order."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from app_env import AppEnv, digest, until
from postgresql_server import PostgresqlServer, running_server
from web.conftest import ask, listening


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    """Run a server that the test may stop."""
    with running_server() as server:
        yield server


def test_a_daemon_waits_for_its_server(app_env: AppEnv, own_server: PostgresqlServer) -> None:
    folder = app_env.upload("bank")
    app_env.settings["database_url"] = f'"{own_server.new_database()}"'
    page = f"unix:{app_env.root}/page"
    app_env.sections += [f'[web]\nlisten = "{page}"', '[metrics]\nlisten = "127.0.0.1:0"']
    with app_env.daemon() as daemon:
        metrics = listening(app_env, "metrics")
        assert "docferry_database_writable 1.0" in ask(metrics, "/metrics").text
        (folder / "a.pdf").write_bytes(b"a")
        until(lambda: ("a.pdf", digest(b"a")) in app_env.stored(), 30, "the first document")
        own_server.stop()
        until(lambda: "cannot be written" in daemon.text(), 40, "the log saying so")
        status = (app_env.state / "status.json").read_text
        until(lambda: not json.loads(status())["ready"], 20, "the daemon not being ready")
        assert json.loads(status())["alive"]
        assert app_env.run("health", "--ready").returncode != 0

        # The page and the metrics answer with the last figures and the reason.
        assert "docferry_database_writable 0.0" in ask(metrics, "/metrics").text
        assert "cannot be written" in ask(metrics, "/readyz").text
        assert "cannot be written" in ask(page, "/").text
        assert "cannot be written" in ask(page, "/documents").text  # after 10 seconds

        # The same configuration cannot be used now, which ends no daemon.
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in daemon.text(), 40, "the reload being refused")
        (folder / "b.pdf").write_bytes(b"b")
        own_server.start()
        until(lambda: ("b.pdf", digest(b"b")) in app_env.stored(), 60, "the second document")
        assert daemon.end() == 0
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1, ("b.pdf", digest(b"b")): 1}


def test_a_daemon_stops_in_order_although_its_server_is_away(app_env: AppEnv, own_server: PostgresqlServer) -> None:
    app_env.upload("bank")
    app_env.settings["database_url"] = f'"{own_server.new_database()}"'
    with app_env.daemon() as daemon:
        own_server.stop()
        until(lambda: "cannot be written" in daemon.text(), 40, "the log saying so")
        assert daemon.end() == 0, daemon.text()[-2000:]
