"""Test the alert rules with promtool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from debian_tools import tool

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = {
    "DocferryDown",
    "DocumentsOverdue",
    "DocumentsHeld",
    "GateNeedsPerson",
    "ScanStale",
    "QueueNotWritable",
    "DiskLow",
    "QuotaLow",
    "HostSilent",
}


def promtool(*words: str) -> None:
    program = tool("promtool", "prometheus")
    done = subprocess.run([program, *words], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", "docferry.rules.yml")


def test_each_rule_fires_and_stays_silent_as_it_should() -> None:
    promtool("test", "rules", "docferry.rules.test.yml")


def test_every_rule_is_there_and_tested_both_ways() -> None:
    rules = yaml.safe_load((MONITORING / "docferry.rules.yml").read_text())
    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"]} == RULES
    tests = yaml.safe_load((MONITORING / "docferry.rules.test.yml").read_text())
    cases = [case for test in tests["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == RULES
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == RULES
