"""Test that the Grafana dashboard queries existing metrics in valid PromQL."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from debian_tools import tool
from docferry.clock import SystemClock
from docferry.telemetry import Delivery
from docferry.web.metrics import EventMetrics, Snapshot

DASHBOARD = Path(__file__).parents[2] / "monitoring" / "grafana.json"


def queries() -> list[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]


def exposed() -> dict[str, set[str]]:
    """Return the exposed samples by name, with their labels."""
    state: dict[str, Any] = dict.fromkeys(("waiting", "held"), 1)
    upload = {
        **{"mapping": "bank", "documents": state, "oldest_due": "2026-01-01T00:00:00Z", "configured": True},
        **{"last_scan": "2026-01-01T00:00:00Z", "scan_seconds": 1.0, "unsettled_files": 0, "problem": None},
    }
    remote = dict.fromkeys(("limit", "remaining", "in_flight", "due"), 1)
    times = dict.fromkeys(("projected_finish", "reset"), "2026-01-01T00:00:00Z")
    figures = {
        "uploads": [upload],
        "downloads": [],
        "held": [{"mapping": "bank", "reason": "empty", "count": 1}],
        "remotes": [{"remote": "codat", **remote, **times}],
        "gates": [{"gate": "codat", "reason": "key"}],
        "hosts": [{"host": "sftp-1", "heartbeat": "2026-01-01T00:00:00Z", "alive": True}],
        "running": None,
    }
    facts = [
        *("database_size_bytes", "database_writable", "state_free_bytes", "config_last_reload_successful"),
        *("start_timestamp_seconds", "sync_last_run_timestamp_seconds", "sync_last_exit_code"),
    ]
    events = EventMetrics(SystemClock())
    events.attempt_ended("codat", "sent")
    events.request_ended("codat", 1.0)
    events.downloaded("bank")
    events.doubt_resolved("codat", "list")
    events.alert_failed("ops")
    events.uploaded(Delivery("bank", "codat", 1, 1.0))
    found: dict[str, set[str]] = {}
    for family in Snapshot(figures, dict.fromkeys(facts, 1.0), events).collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_exists_with_the_labels_that_are_asked_for() -> None:
    names = exposed()
    for title, query in queries():
        used = re.findall(r"docferry_\w+", query)
        assert used, title
        for name in used:
            assert name in names, (title, name)
        known = set[str]().union(*(names[name] for name in used))
        by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        matched = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query))
        assert by | matched <= known, title


def test_every_query_is_promql(tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$mapping", ".*")}
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


def test_panels_lie_side_by_side() -> None:
    taken: dict[tuple[int, int], str] = {}
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                if (x, y) in taken:
                    pytest.fail(f"{panel['title']} lies over {taken[x, y]}")
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
