"""Test alerts with the real program: kills between messages, the commands, the pings of `sync`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from alerts.servers import Hook
from app_env import AppEnv, until
from system.conftest import Say


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook().running() as found:
        yield found


def alerts_of(hook: Hook, path: str = "/hook") -> list[tuple[str, str, str]]:
    """Return status, event and mapping of every received alert."""
    bodies: list[dict[str, Any]] = [json.loads(taken.body) for taken in list(hook.taken) if taken.path == path]
    return [
        (alert["status"], alert["labels"]["alertname"], alert["labels"].get("mapping", ""))
        for body in bodies
        for alert in body["alerts"]
    ]


def pings(hook: Hook) -> list[str]:
    return [taken.path for taken in list(hook.taken) if taken.path.startswith("/ping")]


@pytest.mark.timeout(240)
def test_a_daemon_that_is_killed_repeats_nothing_and_loses_no_end(app_env: AppEnv, hook: Hook) -> None:
    folder = app_env.upload("scans")
    app_env.sections += [
        '[alerts]\nafter = "1s"\n',
        '[[alerts.to]]\nname = "down"\nkind = "webhook"\nurl = "http://127.0.0.1:1/x"\n',
        f'[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}/hook"\n',
        f'[heartbeat]\nurl = "{hook.url}/ping"\nevery = "1s"\n',
    ]
    with app_env.daemon() as daemon:
        until(lambda: "/ping" in pings(hook), what="a ping")
        (folder / "empty.pdf").touch()
        (folder / "good.pdf").write_bytes(b"%PDF-1.4 good %%EOF")
        until(lambda: "/ping/fail" in pings(hook), what="a ping of failure")
        daemon.kill()  # it lasts, and nobody was told
    firing = ("firing", "held", "scans")
    with app_env.daemon() as daemon:
        until(lambda: alerts_of(hook), what="the alert")
        assert alerts_of(hook) == [firing]
        until(lambda: told(app_env, "hook"), what="the delivery written down")
        daemon.kill()
    (folder / "empty.pdf").unlink()
    with app_env.daemon():
        until(lambda: len(alerts_of(hook)) > 1, what="the end")
        assert alerts_of(hook) == [firing, ("resolved", "held", "scans")]
        sent = len(pings(hook))
        until(lambda: "/ping" in pings(hook)[sent:], what="a ping that all is well")
    assert len(app_env.stored()) == 1  # the receiver that is down delayed no document


def told(app_env: AppEnv, receiver: str) -> bool:
    done = app_env.run("alerts", "list", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return any(row["receivers"].get(receiver, {}).get("told") == "firing" for row in rows)


def test_every_fact_of_the_daemon_makes_its_condition(app_env: AppEnv, hook: Hook) -> None:
    scans, bank = app_env.upload("scans"), app_env.upload("bank", to="wootiv")
    app_env.upload("gone").rmdir()
    app_env.sections += [
        '[alerts]\nafter = "1s"\noldest_due = "1s"\ndisk_free = "9000TB"\n',
        f'[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}/hook"\n',
    ]
    app_env.settings["settle"] = '"2s"'
    (scans / "empty.pdf").touch()
    expected = {"folder/gone", "held/scans/empty", "key/codat", "overdue/scans", "disk", "still_written/bank"}
    with app_env.daemon(), (bank / "open.pdf").open("wb", buffering=0) as writer:
        app_env.simulator.options.codat_key = "another key than the daemon has"
        (scans / "refused.pdf").write_bytes(b"%PDF-1.4 x %%EOF")

        def keys() -> set[str]:
            writer.write(b"more")
            done = app_env.run("alerts", "list", "--json")
            return {row["key"] for row in map(json.loads, done.stdout.splitlines()) if row["state"] == "firing"}

        until(lambda: expected <= keys(), what="every condition")
        assert keys() - expected <= {"projected_late/codat"}


def test_what_a_verification_found_missing_is_told_until_it_is_sent_again(app_env: AppEnv, hook: Hook) -> None:
    (app_env.upload("scans", "wootiv") / "a.pdf").write_bytes(b"a")
    app_env.sync()
    app_env.simulator.remove_object("a.pdf")
    assert app_env.run("verify").returncode == 1
    app_env.sections += [
        '[alerts]\nafter = "1s"\n',
        f'[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}/hook"\n',
    ]
    with app_env.daemon():
        until(lambda: alerts_of(hook), 60.0, "the alert")
        assert alerts_of(hook) == [("firing", "missing", "scans")]
        assert app_env.run("retry", "--missing").returncode == 0
        until(lambda: len(alerts_of(hook)) > 1, 60.0, "its end")
        assert alerts_of(hook)[1:] == [("resolved", "missing", "scans")]


def test_sync_pings_its_start_and_its_exit_code(app_env: AppEnv, hook: Hook) -> None:
    folder = app_env.upload("scans")
    app_env.sections.append(f'[heartbeat]\nurl = "{hook.url}/ping"\n')
    (folder / "empty.pdf").touch()
    (folder / "good.pdf").write_bytes(b"%PDF-1.4 good %%EOF")
    app_env.sync(code=1)
    assert pings(hook) == ["/ping/start", "/ping/1"]
    assert b"1 held" in hook.taken[1].body
    hook.taken.clear()
    (folder / "empty.pdf").unlink()
    app_env.sync(code=0)
    assert pings(hook) == ["/ping/start", "/ping/0"]
    hook.taken.clear()
    done = app_env.run("sync", "--mapping", "scanz")
    assert done.returncode == 2
    assert app_env.run("sync", "--dry-run").returncode == 0
    assert pings(hook) == []  # the command line is judged before anything begins
    hook.status = 500
    app_env.sync(code=0)


def test_the_commands(app_env: AppEnv, hook: Hook, say: Say) -> None:
    app_env.upload("scans")
    assert say("alerts", "list") == (0, "no condition needs attention\n", "")
    assert say("alerts", "test")[0] == 2
    app_env.sections += [
        f'[[alerts.to]]\nname = "good"\nkind = "webhook"\nurl = "{hook.url}/hook"\n',
        '[[alerts.to]]\nname = "bad"\nkind = "webhook"\nurl = "http://127.0.0.1:1/canary-path/x"\n',
    ]
    code, out, err = say("alerts", "test", "good")
    assert (code, err) == (0, "")
    assert "delivered" in out
    code, out, err = say("alerts", "test")
    assert (code, err) == (75, "")
    assert "canary" not in out
    assert [event for _, event, _ in alerts_of(hook)] == ["test", "test"]
    code, _, err = say("alerts", "test", "goood")
    assert (code, err) == (2, 'docferry: there is no receiver "goood"; did you mean "good"?\n')
    assert say("alerts", "silence", "disk", "8h")[0] == 2  # nothing ran here yet
    app_env.sync()
    code, out, _ = say("alerts", "silence", "held/*", "8h")
    assert code == 0
    assert "held/* is silenced until" in out
    assert "silenced: held/*" in say("alerts", "list")[1]
    assert say("alerts", "silence", "held/*", "0")[1] == "held/* is no longer silenced\n"
    assert "silenced" not in say("alerts", "list")[1]
    code, _, err = say("alerts", "silence", "heldd/x", "8h")
    assert code == 2
    assert 'no condition has a key like "heldd/x"' in err
    code, _, err = say("alerts", "silence", "held/x", "soon")
    assert code == 2
    assert '"soon" is no time' in err
    assert say("alerts")[0] == 2
