"""Test that limits, quotas, gates and stops hold with senders as they do without."""

from __future__ import annotations

import signal

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, until
from crash.process_pool import ProcessPool
from docferry.simulator import Fault
from faults.network import UPLOAD, gates, lay, quick
from upload.conftest import OTHER, names_of
from upload.test_senders import have_ended, in_flight, requests_of, senders_of, states

with_and_without = pytest.mark.parametrize("senders", [0, 1, 2])


@pytest.fixture
def env(app_env: AppEnv, senders: int) -> AppEnv:
    app_env.settings |= {"senders": str(senders), "workers": "12", "log_level": '"info"', "rescan": '"1s"'}
    quick(app_env).codat["timeout"] = '"60s"'
    return app_env


@with_and_without
def test_the_requests_at_once_for_one_company(env: AppEnv, process_pool: ProcessPool, senders: int) -> None:
    """Each company gets its whole share, and never more; a further request would be refused."""
    env.codat["concurrent_per_company"] = "3"
    options, peaks = env.simulator.options, env.simulator.codat.limits.peak_concurrency
    options.concurrent_per_company, options.latency = 3, 2.0
    env.upload("customers", folder="customers/{company_id}/{connection_id}")
    root = env.root / "customers"
    with process_pool.daemon(env, senders=bool(senders)) as daemon:
        made = lay(root / COMPANY / CONNECTION, *names_of(12, "a")) + lay(root / OTHER / CONNECTION, *names_of(12, "b"))
        until(lambda: in_flight(env) == in_flight(env, OTHER) == 3, what="three requests of each company")
        options.latency = 0.0
        until(lambda: states(env) == {"sent": 24}, what="every receipt")
        assert not gates(env)
    assert peaks == {COMPANY: 3, OTHER: 3}
    assert env.simulator.requests[UPLOAD] == 24
    assert env.stored() == made
    assert requests_of(daemon) == (24 if senders else 0)


@with_and_without
def test_the_requests_of_a_minute(env: AppEnv, process_pool: ProcessPool, senders: int) -> None:
    """Documents wait for the next minute, unsent, while another remote is served; a stop returns them."""
    env.codat["requests_per_minute"] = "7"
    folder, scans = env.upload("bank"), env.upload("scans", "wootiv", object_name='"{name}"')
    with process_pool.daemon(env, senders=bool(senders)) as daemon:
        made = lay(folder, *names_of(20))
        until(lambda: states(env)["sent"] == 7, what="the receipts of a minute")
        scan = lay(scans, "scan.pdf")
        until(lambda: env.simulator.objects, what="a document of another remote")
        until(lambda: states(env)["sent"] == 8 and states(env).total() == 21, what="its receipt")
    assert states(env) == {"sent": 8, "waiting": 13}
    assert env.simulator.requests[UPLOAD] == 7
    assert not env.stored() - made - scan
    assert requests_of(daemon) == (8 if senders else 0)


@with_and_without
def test_the_requests_of_a_day(env: AppEnv, process_pool: ProcessPool, senders: int) -> None:
    env.settings["workers"] = "1"
    env.simulator.options.daily_quota = 5
    lay(env.upload("bank"), *names_of(12))
    child = process_pool.spawn(env, "sync", "--json", senders=bool(senders))
    assert child.wait() == 75
    report = child.report()
    assert (report["uploaded"], report["due"], report["held"]) == (5, 7, 0)
    assert env.simulator.requests.total() == 5
    assert [key for key, _ in gates(env)] == ["codat"]
    child = process_pool.spawn(env, "sync", "--json", senders=bool(senders))
    assert child.wait() == 75
    assert env.simulator.requests.total() == 5


@pytest.mark.parametrize(("senders", "status"), [(1, 401), (2, 429)])
def test_a_gate_that_closes_while_senders_send(env: AppEnv, process_pool: ProcessPool, status: int) -> None:
    """The requests in flight end with their receipts; nothing else is sent through the gate, nothing is held."""
    env.settings["workers"] = "4"
    refusal = Fault("status", UPLOAD, nth=4, params={"status": status, "headers": {"Retry-After": "3600"}})
    env.simulator.set_faults([Fault("slow_read", UPLOAD, first=3, params={"rate": 100_000}), refusal])
    folder = env.upload("bank")
    with process_pool.daemon(env, senders=True) as daemon:
        made = lay(folder, *names_of(20), size=200_000)
        until(lambda: states(env) == {"sent": 3, "waiting": 17}, what="the receipts of the requests in flight")
        assert [key for key, _ in gates(env)] == ["codat"]
    assert states(env) == {"sent": 3, "waiting": 17}
    assert env.simulator.requests[UPLOAD] == requests_of(daemon) == 4
    assert not env.stored() - made


@pytest.mark.parametrize("senders", [1])
def test_a_stop_leaves_the_requests_of_senders_their_time(env: AppEnv, process_pool: ProcessPool) -> None:
    """Within `stop_grace` they get their receipts; no other request begins, and nothing is doubtful."""
    env.settings |= {"workers": "4", "stop_grace": '"60s"'}
    env.simulator.options.latency = 2.0
    lay(env.upload("bank"), *names_of(20))
    daemon = process_pool.spawn(env, "run", senders=True).ready()
    until(lambda: in_flight(env) == 4, what="requests in flight")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    found = states(env)
    assert found.keys() <= {"sent", "waiting"}
    assert found["sent"] == env.simulator.requests[UPLOAD] == requests_of(daemon) < 20


@pytest.mark.parametrize("senders", [1])
def test_a_reload_replaces_the_senders_and_sends_nothing_twice(env: AppEnv, process_pool: ProcessPool) -> None:
    env.settings |= {"workers": "4", "stop_grace": '"60s"'}
    env.simulator.options.latency = 2.0
    folder = env.upload("bank")
    with process_pool.daemon(env, senders=True) as daemon:
        first = senders_of(daemon)
        made = lay(folder, *names_of(20))
        until(lambda: in_flight(env) == 4, what="requests in flight")
        env.settings["workers"] = "6"
        env.write_config()
        daemon.signal(signal.SIGHUP)
        until(lambda: in_flight(env) == 6, what="requests of the new configuration")
        assert have_ended(first)
        env.simulator.options.latency = 0.0
        until(lambda: states(env) == {"sent": 20}, what="every receipt")
    assert env.stored() == made
    assert env.simulator.requests[UPLOAD] == requests_of(daemon) == 20
