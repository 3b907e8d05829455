"""Test the limits of a remote with the real program: rows N8 to N10 (rate, quota, key) of the catalogue."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from app_env import COMPANY, AppEnv, until
from crash.process_pool import ProcessPool
from docferry.simulator import Fault
from faults.network import UPLOAD, gates, lay, quick, rows


@pytest.fixture(name="app_env")
def quick_env(app_env: AppEnv) -> AppEnv:
    return quick(app_env)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_n8_retry_after_is_obeyed_over_a_restart(app_env: AppEnv, process_pool: ProcessPool, form: str) -> None:
    """No request is sent before the requested time, not even by a newly started daemon."""
    folder = app_env.upload("bank")
    app_env.simulator.set_faults([Fault("too_many", UPLOAD, first=1, params={"retry_after": form, "seconds": 4})])
    first = process_pool.spawn(app_env, "run").ready()
    made = lay(folder, "a.pdf")
    until(lambda: gates(app_env))
    first.kill()
    made += lay(folder, "b.pdf")
    with process_pool.daemon(app_env):
        until(lambda: app_env.stored() == made)
    refused, *others = [seen.at_first_byte for seen in app_env.simulator.log]
    assert min(others) - refused > 2.9  # a date is cut to the second


@pytest.mark.parametrize("form", ["past", "garbage", "-5", "nan"])
def test_n8_a_retry_after_that_says_nothing(app_env: AppEnv, process_pool: ProcessPool, form: str) -> None:
    """Our own pause counts: soon, and not at once."""
    made = lay(app_env.upload("bank"), "a.pdf")
    app_env.simulator.set_faults([Fault("too_many", UPLOAD, first=3, params={"retry_after": form})])
    process_pool.drained(app_env)
    assert app_env.stored() == made
    assert app_env.simulator.requests[UPLOAD] == 4


def test_n8_a_retry_after_of_thirty_years_is_capped(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """The pause is at most a day."""
    lay(app_env.upload("bank"), "a.pdf")
    app_env.simulator.set_faults([Fault("too_many", UPLOAD, first=1, params={"retry_after": "huge"})])
    process_pool.sync(app_env, code=75)
    ((_, until_),) = gates(app_env)
    assert abs(until_ - time.time() - 86_400) < 600
    assert process_pool.sync(app_env, code=75)["requests"] == 0


def test_n9_the_daily_quota_is_gone(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """The gate stays closed until the reset, across restarts; a retry by a person opens it."""
    folder = app_env.upload("bank")
    made = lay(folder, *(f"{number}.pdf" for number in range(6)))
    app_env.settings["workers"] = "1"
    app_env.simulator.options.daily_quota = 3
    report = process_pool.sync(app_env, code=75)
    assert (report["uploaded"], report["due"], report["held"]) == (3, 3, 0)
    spent = app_env.simulator.requests.total()
    assert process_pool.sync(app_env, code=75)["requests"] == 0
    with process_pool.daemon(app_env):
        made += lay(folder, "later.pdf")
        until(lambda: any(row["path"].endswith("later.pdf") for row in rows(process_pool, app_env)))
    assert app_env.simulator.requests.total() == spent
    app_env.simulator.options.daily_quota = None
    assert process_pool.spawn(app_env, "retry", "--all").wait() == 0
    process_pool.drained(app_env)
    assert app_env.stored() == made


def test_n9_a_retry_asks_the_daemon_s_remote_anew(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """A retry discards the known quota; while no request is left, other remotes are served."""
    folder, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv")
    made = lay(folder, *(f"{number}.pdf" for number in range(6)))
    app_env.settings["workers"] = "2"
    app_env.simulator.options.daily_quota = 3
    with process_pool.daemon(app_env):
        until(lambda: gates(app_env))
        spent = app_env.simulator.requests[UPLOAD]
        assert process_pool.spawn(app_env, "retry", "--all").wait() == 0
        until(lambda: app_env.simulator.requests[UPLOAD] > spent)
        until(lambda: gates(app_env))
        made += lay(scans, "scan.pdf")
        until(lambda: app_env.simulator.objects)
        app_env.simulator.options.daily_quota = None
        assert process_pool.spawn(app_env, "retry", "--all").wait() == 0
        until(lambda: app_env.stored() == made)


def test_n9_a_pass_ends_when_a_download_has_spent_the_quota(app_env: AppEnv, process_pool: ProcessPool) -> None:
    app_env.codat["quota_reserve"] = '"50%"'
    app_env.simulator.options.daily_quota = 1
    app_env.download("down", company_id=f'"{COMPANY}"')
    made = lay(app_env.upload("bank"), *(f"{number}.pdf" for number in range(3)))
    report = process_pool.sync(app_env, code=75)
    assert report["due"] >= 2
    assert [key for key, _ in gates(app_env)] == ["codat"]
    app_env.simulator.options.daily_quota = None
    assert process_pool.spawn(app_env, "retry", "--all").wait() == 0
    process_pool.drained(app_env)
    assert app_env.stored() == made


def test_n9_a_pass_waits_for_the_doubts_that_the_reserve_is_for(app_env: AppEnv, process_pool: ProcessPool) -> None:
    made = lay(app_env.upload("bank"), *(f"{number}.pdf" for number in range(4)))
    app_env.settings["workers"] = "1"
    app_env.codat["quota_reserve"] = '"50%"'
    app_env.simulator.options.daily_quota = 6  # the list and a ZIP are asked for it
    app_env.simulator.set_faults([Fault("lost_answer", UPLOAD, nth=2)])
    report = process_pool.sync(app_env, code=75)
    assert (report["uploaded"], report["due"]) == (3, 1)
    assert (app_env.stored() - made, app_env.stored().total()) == (Counter(), 3)


def test_n10_the_key_is_revoked(app_env: AppEnv, process_pool: ProcessPool) -> None:
    """One gate closes and is reported once; nothing is held; one document at a time probes until the key works."""
    folder = app_env.upload("bank")
    key = app_env.root / "key"
    key.touch(0o600)
    key.write_text(app_env.simulator.options.codat_key)
    app_env.codat["api_key_file"] = f'"{key}"'
    with process_pool.daemon(app_env, CODAT_API_KEY="") as daemon:
        made = lay(folder, "before.pdf")
        until(lambda: app_env.stored() == made)
        app_env.simulator.options.codat_key = "another"
        made += lay(folder, *(f"{number}.pdf" for number in range(20)))
        until(lambda: app_env.simulator.requests[UPLOAD] > 6)
        assert Counter(row["state"] for row in rows(process_pool, app_env))["held"] == 0
        key.write_text("another")
        until(lambda: app_env.stored() == made)
        said = [line for line in daemon.text().splitlines() if "gate_closed" in line]
    assert len(said) == 1, said
