"""Test that the metrics of the real daemon agree with `status --json` and with the remote."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from app_env import COMPANY, CONNECTION, AppEnv, until
from debian_tools import tool
from docferry.simulator import Fault
from web.conftest import ask, listening

#: The promised metrics, with their labels.
PROMISED = {
    "documents": {"mapping", "state"},
    "held_documents": {"mapping", "reason"},
    "oldest_due_timestamp_seconds": {"mapping"},
    "projected_finish_timestamp_seconds": {"remote"},
    "gates_closed": {"remote", "reason"},
    "quota_requests_limit": {"remote"},
    "quota_requests_remaining": {"remote"},
    "quota_reset_timestamp_seconds": {"remote"},
    "upload_attempts": {"remote", "outcome"},
    "uploaded_documents": {"mapping"},
    "uploaded_bytes": {"mapping"},
    "downloaded_documents": {"mapping"},
    "upload_duration_seconds": {"remote"},
    "delivery_delay_seconds": {"mapping"},
    "doubts_resolved": {"remote", "proof"},
    "scan_last_success_timestamp_seconds": {"mapping"},
    "scan_duration_seconds": {"mapping"},
    "unsettled_files": {"mapping"},
    "database_size_bytes": set[str](),
    "database_writable": set[str](),
    "state_free_bytes": set[str](),
    "config_last_reload_successful": set[str](),
    "alert_failures": {"to"},
    "build_info": {"version", "python", "schema"},
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    found = {}
    for family in parse(text):  # type: ignore[no-untyped-call]  # the library has no types here
        for sample in family.samples:
            found[sample.name.removeprefix("docferry_"), frozenset(sample.labels.items())] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def with_metrics(app_env: AppEnv, listen: str = "127.0.0.1:0", **more: str) -> None:
    lines = [f'listen = "{listen}"', *(f'{key} = "{text}"' for key, text in more.items())]
    app_env.sections.append("[metrics]\n" + "\n".join(lines))


def status(app_env: AppEnv) -> dict[str, object]:
    found: dict[str, object] = json.loads(app_env.run("status", "--json").stdout)
    return found


def finished(address: str, documents: int) -> Samples:
    """Wait until `documents` documents are final or held, and return the metrics."""

    def found() -> Samples | None:
        got = samples(ask(address, "/metrics").text)
        done = sum(
            number
            for (name, labels), number in got.items()
            if name == "documents" and dict(labels)["state"] in {"sent", "held", "gone"}
        )
        return got if done >= documents else None

    metrics: Samples = until(found, what="all documents")
    return metrics


def is_counted(address: str, name: str, mapping: str, number: int) -> bool:
    return value(finished(address, 11), name, mapping=mapping) == number


def test_figures_agree_with_status_and_the_remote(app_env: AppEnv) -> None:
    bank, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv")
    for number in range(5):
        (bank / f"{number}.pdf").write_bytes(b"%%PDF-1.4 %d %%%%EOF" % number)
        (scans / f"{number}.png").write_bytes(b"image %d" % number)
    (bank / "no.exe").write_bytes(b"MZ")
    app_env.download("inbox", company_id=f'"{COMPANY}"', every='"1s"')
    app_env.simulator.put_company_file(COMPANY, "from-the-customer.pdf", b"%PDF-1.4 theirs %%EOF")
    faults = [
        Fault("lost_answer", "codat.upload", nth=2),
        Fault("status", "codat.upload", nth=4, params={"status": 503}),
    ]
    app_env.simulator.set_faults(faults)
    with_metrics(app_env)
    with app_env.daemon():
        address = listening(app_env, "metrics")
        # Counters change after the commit that they count.
        counted = [("downloaded", "inbox", 1), ("uploaded", "bank", 5), ("uploaded", "scans", 5)]
        for what, mapping, number in counted:
            until(partial(is_counted, address, f"{what}_documents_total", mapping, number), what=f"{mapping}'s counter")
        told = status(app_env)
        found = finished(address, 11)
        rows = {row["mapping"]: row for row in told["uploads"]}  # type: ignore[attr-defined]
        for mapping, row in rows.items():
            for state, count in row["documents"].items():
                assert value(found, "documents", mapping=mapping, state=state) == count, (mapping, state)
        assert value(found, "held_documents", mapping="bank", reason="extension") == 1
        assert value(found, "uploaded_documents_total", mapping="bank") == 5
        assert value(found, "uploaded_documents_total", mapping="scans") == 5
        assert value(found, "uploaded_bytes_total", mapping="scans") == sum(f.stat().st_size for f in scans.iterdir())
        assert value(found, "delivery_delay_seconds_count", mapping="bank") == 5
        assert sum(app_env.stored().values()) == 11  # with the one of the customer
        # The lost answer became a doubt, and the list proved that the document had arrived.
        outcomes = Counter(
            {
                dict(labels)["outcome"]: int(number)
                for (name, labels), number in found.items()
                if name == "upload_attempts_total" and ("remote", "codat") in labels
            }
        )
        resolved = sum(
            number
            for (name, labels), number in found.items()
            if name == "doubts_resolved_total" and dict(labels)["proof"] != "absent"
        )
        assert resolved >= 1
        assert outcomes["sent"] + resolved == 5
        assert value(found, "config_last_reload_successful") == 1
        assert value(found, "database_writable") == 1


def test_every_promised_name_is_there_with_its_labels(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    with_metrics(app_env)
    with app_env.daemon():
        address = listening(app_env, "metrics")
        finished(address, 1)
        text = ask(address, "/metrics").text
        families = {family.name.removeprefix("docferry_"): family for family in parse(text)}  # type: ignore[no-untyped-call]  # no types
    assert PROMISED.keys() <= families.keys()
    for name, labels in PROMISED.items():
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == labels, name
    assert COMPANY not in text
    assert CONNECTION not in text
    assert str(app_env.root) not in text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/openmetrics-text"),
        ("*/*", "application/openmetrics-text"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("text/plain;version=0.0.4", "text/plain"),
    ],
)
def test_a_scraper_gets_the_format_it_asks_for(accept: str, content_type: str, app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_metrics(app_env)
    with app_env.daemon():
        reply = ask(listening(app_env, "metrics"), "/metrics", **({"accept": accept} if accept else {}))
    assert reply.headers["content-type"].startswith(content_type)
    assert reply.text.endswith("# EOF\n") == (content_type != "text/plain")
    assert list(parse_plain(reply.text))


def test_promtool_finds_no_fault(app_env: AppEnv) -> None:
    promtool = tool("promtool", "prometheus")
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    with_metrics(app_env)
    with app_env.daemon():
        address = listening(app_env, "metrics")
        finished(address, 1)
        texts = [ask(address, "/metrics", accept="text/plain").text, app_env.run("metrics").stdout]
    texts.append(app_env.run("metrics").stdout)  # without a daemon
    for text in texts:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_unix_socket_has_its_mode_and_a_dead_one_is_replaced(app_env: AppEnv) -> None:
    app_env.upload("bank")
    path = app_env.root / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with_metrics(app_env, f"unix:{path}")
    with app_env.daemon():
        address = listening(app_env, "metrics")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert ask(address, "/healthz").status == 200
        assert "docferry_uploaded_documents_total" in app_env.run("metrics").stdout
    assert not path.exists()


def test_a_taken_address_stops_no_document(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with_metrics(app_env, f"127.0.0.1:{other.getsockname()[1]}")
        with app_env.daemon() as daemon:
            until(lambda: "listen_failed" in daemon.text(), what="the error")
            until(lambda: sum(app_env.stored().values()) == 1, what="the document")
            assert "correct metrics.listen" in daemon.text()


def test_health_follows_the_daemon(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_metrics(app_env)
    assert app_env.run("health").returncode == 1
    with app_env.daemon():
        address = listening(app_env, "metrics")
        until(lambda: app_env.run("health", "--ready").returncode == 0, what="being ready")
        assert (ask(address, "/healthz").status, ask(address, "/readyz").status) == (200, 200)
        assert ask(address, "/healthz", host="evil.example").status == 421
        assert ask(address, "/nothing").status == 404
        assert ask(address, "/metrics", "POST").status == 405
    assert app_env.run("health").returncode == 1


def process_state(pid: int) -> str:
    """Return the letter of /proc: R runs, S sleeps, T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_daemon_that_hangs_is_not_alive(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with app_env.daemon() as daemon:
        until(lambda: app_env.run("health").returncode == 0, what="being alive")
        daemon.running.send_signal(19)
        try:
            until(lambda: process_state(daemon.running.pid) == "T", what="the daemon standing still")
            long_ago = (app_env.state / "status.json").stat().st_mtime - 120
            os.utime(app_env.state / "status.json", (long_ago, long_ago))
            assert app_env.run("health").returncode == 1
        finally:
            daemon.running.send_signal(18)
        # The service continues, and reports the error.
        until(lambda: app_env.run("health").returncode == 0, what="being alive again")


def test_a_broken_reload_shows(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_metrics(app_env)
    with app_env.daemon() as daemon:
        address = listening(app_env, "metrics")
        config = app_env.root / app_env.config_name
        sound = config.read_text()
        config.write_text("nonsense = 1\n" + sound)
        daemon.running.send_signal(1)

        def is_successful() -> float | None:
            return value(samples(ask(address, "/metrics").text), "config_last_reload_successful")

        until(lambda: is_successful() == 0, what="the broken reload")
        config.write_text(sound)
        daemon.running.send_signal(1)
        until(lambda: "reloaded" in daemon.text(), what="the reload")
        until(lambda: _asked(app_env) == 1, what="the sound one")


def _asked(app_env: AppEnv) -> float | None:
    try:
        return value(samples(ask(listening(app_env, "metrics"), "/metrics").text), "config_last_reload_successful")
    except OSError:
        return None  # between two configurations


def test_the_textfile_is_whole_and_tells_of_sync(app_env: AppEnv, tmp_path: Path) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    path = tmp_path / "metrics" / "docferry.prom"
    path.parent.mkdir()
    app_env.sections.append(f'[metrics]\ntextfile = "{path}"')
    app_env.sync()
    first = {s.name: s.value for family in parse_plain(path.read_text()) for s in family.samples}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert first["docferry_sync_last_exit_code"] == 0
    assert first["docferry_sync_last_success_timestamp_seconds"] == first["docferry_sync_last_run_timestamp_seconds"]
    (folder / "no.exe").write_bytes(b"MZ")
    app_env.sync(code=1)
    second = {s.name: s.value for family in parse_plain(path.read_text()) for s in family.samples}
    assert second["docferry_sync_last_exit_code"] == 1
    success = "docferry_sync_last_success_timestamp_seconds"
    assert second[success] == first[success] < second["docferry_sync_last_run_timestamp_seconds"]
    path.unlink()
    with app_env.daemon():
        until(path.exists, what="the textfile of the daemon")
        text = path.read_text()
        assert "docferry_sync_last_exit_code 1" in text
        assert "docferry_uploaded_documents_total" in text
    assert list(path.parent.iterdir()) == [path]


def test_a_textfile_that_cannot_be_written_changes_no_exit_code(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    app_env.sections.append('[metrics]\ntextfile = "/nowhere/at/all.prom"')
    done = app_env.run("sync")
    assert done.returncode == 0
    assert "metrics.textfile: /nowhere/at/all.prom was not written" in done.stderr
