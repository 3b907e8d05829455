"""Test how the hosts of a shared queue are shown: `hosts`, `status`, metrics and alerts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import Popen
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from app_env import AppEnv, until
from docferry.app.alerts import silent_hosts
from docferry.store.owners import Process
from postgresql_server import PostgresqlServer
from web.conftest import ask


@contextmanager
def daemon(app_env: AppEnv, url: str, host: str) -> Iterator[Popen[bytes]]:
    """Run the daemon of one host, with a state folder of its own; stop it at the end."""
    with (app_env.root / f"{host}.log").open("wb") as log:
        more = on(app_env, url, host) | {"DOCFERRY_WEB__LISTEN": f"unix:{app_env.root / host}.sock"}
        running = Popen(app_env.command("run"), env={**app_env.environment, **more}, stderr=log)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(60)


def on(app_env: AppEnv, url: str, host: str) -> dict[str, str]:
    """Return the environment of a command on one host."""
    state = str(app_env.root / f"state-{host}")
    return {"DOCFERRY_DATABASE_URL": url, "DOCFERRY_HOST": host, "DOCFERRY_STATE_DIR": state}


def hosts(app_env: AppEnv, url: str) -> dict[str, Any]:
    done = app_env.run("hosts", "--json", **on(app_env, url, "h1"))
    assert done.returncode == 0, done.stderr
    return {row["host"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(200)
def test_a_host_that_dies_is_shown_and_reported_until_it_is_back(
    app_env: AppEnv, postgresql_server: PostgresqlServer
) -> None:
    url = postgresql_server.new_database()
    app_env.upload("bank")
    app_env.sections.append(
        '[alerts]\nafter = "0s"\n[[alerts.to]]\nname = "ops"\nkind = "command"\ncommand = ["/bin/true"]'
    )
    app_env.write_config()

    def reported() -> bool:
        done = app_env.run("alerts", "list", "--json", **on(app_env, url, "h1"))
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return any((row["key"], row["state"]) == ("host/h2", "firing") for row in rows)

    with ExitStack() as stack:
        stack.enter_context(daemon(app_env, url, "h1"))
        second = stack.enter_context(daemon(app_env, url, "h2"))
        until(lambda: {h: row["alive"] for h, row in hosts(app_env, url).items()} == {"h1": True, "h2": True}, 60)
        second.kill()
        second.wait()
        with psycopg.connect(url, autocommit=True) as connection:  # instead of waiting for 30 s
            connection.execute("UPDATE process SET heartbeat = heartbeat - 40 WHERE host = 'h2'")
        assert {h: row["alive"] for h, row in hosts(app_env, url).items()} == {"h1": True, "h2": False}
        assert "no heartbeat any more: h2" in app_env.run("status", **on(app_env, url, "h1")).stdout
        shown = app_env.run("hosts", **on(app_env, url, "h1")).stdout
        assert "h1" in shown
        assert "h2" in shown
        metrics = app_env.run("metrics", **on(app_env, url, "h1")).stdout
        assert "docferry_hosts_alive 1.0\n" in metrics
        assert 'docferry_host_heartbeat_timestamp_seconds{host="h2"} ' in metrics
        page = ask(f"unix:{app_env.root / 'h1.sock'}", "/")
        assert page.status == 200
        assert "A host has stopped" in page.text
        assert '<section id="hosts"' in page.text
        until(reported, 60, "the alert")
        with daemon(app_env, url, "h2"):
            until(lambda: not reported(), 60, "its end")
        assert hosts(app_env, url).keys() == {"h1"}  # it was stopped regularly


def test_a_queue_of_one_machine_has_no_hosts(app_env: AppEnv) -> None:
    app_env.upload("bank")
    app_env.sync()
    assert app_env.run("hosts", "--json").stdout == ""
    assert "belongs to this machine alone" in app_env.run("hosts").stdout
    assert "docferry_hosts_alive 0.0\n" in app_env.run("metrics").stdout
    assert json.loads(app_env.run("status", "--json").stdout)["hosts"] == []


def test_one_living_host_reports_each_silent_one() -> None:
    row = Process("h1:1-a", "h1", 1, "1", 0.0, 100.0, 1.0, None, (), {}, ())
    dead = [replace(row, host=host, heartbeat=60.0, age=41.0) for host in ("h2", "h4")]
    living = [row, replace(row, host="h3"), *dead, replace(dead[0], host="h3")]
    assert silent_hosts(living, "h3") == {"h2": 60.0}
    assert silent_hosts(living, "h1") == {"h4": 60.0}
    assert silent_hosts([row, *dead], "h1") == {"h2": 60.0, "h4": 60.0}
    assert silent_hosts([], "h1") == {}


@pytest.mark.timeout(200)
def test_a_share_that_only_one_host_has_mounted_is_reported(
    app_env: AppEnv, postgresql_server: PostgresqlServer
) -> None:
    """The other host neither scans nor sends; `check`, `status`, `hosts` and the log report the reason."""
    url = postgresql_server.new_database()
    here = app_env.upload("share", folder="here", shared="true")
    (here / "a.pdf").write_bytes(b"a")
    assert app_env.run("sync", **on(app_env, url, "h1")).returncode == 0
    app_env.sections.clear()
    app_env.upload("share", folder="there", shared="true", may_be_empty="true")
    done = app_env.run("sync", **on(app_env, url, "h2"))
    assert done.returncode == 75
    assert "is the share mounted on this host?" in done.stderr
    found = json.loads(app_env.run("check", "--json", **on(app_env, url, "h2")).stdout)["findings"]
    assert [f["level"] for f in found if f["subject"] == "share" and "known documents" in f["detail"]] == ["fail"]
    app_env.write_config()
    with daemon(app_env, url, "h2"):
        until(lambda: hosts(app_env, url).get("h2", {}).get("unreadable") == ["share"], 60, "the report")
        status = json.loads(app_env.run("status", "--json", **on(app_env, url, "h2")).stdout)
        assert "is the share mounted" in status["uploads"][0]["problem"]
        (app_env.root / "there" / "a.pdf").write_bytes(b"a")
        os.utime(app_env.root / "there" / "a.pdf", ns=(0, (here / "a.pdf").stat().st_mtime_ns))  # it is mounted now
        until(lambda: hosts(app_env, url)["h2"]["scans"] == ["share"], 60, "the election")
    assert len(app_env.stored()) == 1


@pytest.mark.timeout(200)
def test_a_moved_queue_is_not_shown_as_empty(app_env: AppEnv, postgresql_server: PostgresqlServer) -> None:
    """Commands name the setting that is missing, instead of a queue without documents."""
    url = postgresql_server.new_database()
    (app_env.upload("bank") / "a.pdf").write_bytes(b"%PDF-1.7\n%%EOF")
    app_env.sync()
    assert app_env.run("queue", "move", "--to", url).returncode == 0
    for command in ("status", "sync"):
        done = app_env.run(command)
        assert (done.returncode, "set database_url" in done.stderr) == (2, True), command
    there = {"DOCFERRY_DATABASE_URL": url}
    assert json.loads(app_env.run("status", "--json", **there).stdout)["uploads"][0]["documents"]["sent"] == 1
    assert app_env.run("sync", **there).returncode == 0
    assert len(app_env.stored()) == 1
