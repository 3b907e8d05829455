"""Test how facts become conditions: their number, keys and texts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from docferry import logs
from docferry.alerts.conditions import Facts, Limits, observe
from docferry.model import Gate
from docferry.settings.alerts import EVENTS

LIMITS = Limits(oldest_due=3600.0, disk_free=1_000_000_000)
NOW = 1_790_000_000.0
WELL = Facts(
    held=[],
    overdue={},
    gates=[],
    missing_keys={},
    folders={},
    still_written={},
    missing={},
    disk_free=5_000_000_000,
    clock_offsets={"codat": 0.4, "wootiv": -59.0},
    projected_finish={"codat": NOW + 3599},
    silent_hosts={},
)


def gate(key: str, reason: str, detail: str = "why", since: float = NOW - 60) -> Gate:
    return Gate(key, reason, detail, NOW + 60, 1, since)


def keys(facts: Facts) -> list[str]:
    return sorted(condition.key for condition in observe(facts, LIMITS, NOW).conditions)


def test_nothing_is_a_condition_while_all_is_well() -> None:
    assert keys(WELL) == []
    assert observe(WELL, LIMITS, NOW).unknown == frozenset()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            replace(WELL, held=[("scans", "empty", 1), ("scans", "refused", 2), ("acme", "empty", 3)]),
            ["held/acme/empty", "held/scans/empty", "held/scans/refused"],
        ),
        (replace(WELL, overdue={"scans": (4, NOW - 7200)}), ["overdue/scans"]),
        (
            replace(WELL, gates=[gate("codat/a", "company"), gate("codat/b", "company"), gate("codat", "quota")]),
            ["gate/codat/company", "gate/codat/quota"],
        ),
        (replace(WELL, gates=[gate("wootiv", "key")]), ["key/wootiv"]),
        (replace(WELL, missing_keys={"codat": "codat has no API key"}, gates=[gate("codat", "key")]), ["key/codat"]),
        (replace(WELL, folders={"scans": "it is missing"}), ["folder/scans"]),
        (replace(WELL, still_written={"scans": 2}), ["still_written/scans"]),
        (replace(WELL, missing={"scans": 1, "acme": 3}), ["missing/acme", "missing/scans"]),
        (replace(WELL, disk_free=999_999_999), ["disk"]),
        (replace(WELL, queue_problem="disk full"), ["queue"]),
        (replace(WELL, clock_offsets={"codat": 61.0, "wootiv": -61.0}), ["clock/codat", "clock/wootiv"]),
        (replace(WELL, projected_finish={"codat": NOW + 3601}), ["projected_late/codat"]),
        (replace(WELL, silent_hosts={"sftp-2": NOW - 60}), ["host/sftp-2"]),
        (replace(WELL, notices={"old_copy": "older", "unanchored": "since noon"}), ["old_copy", "unanchored"]),
    ],
)
def test_each_fact_makes_its_condition(facts: Facts, expected: list[str]) -> None:
    assert keys(facts) == expected
    for key in expected:
        assert key.partition("/")[0] in EVENTS


def test_what_is_not_known_neither_begins_nor_ends() -> None:
    found = observe(Facts(), LIMITS, NOW)
    assert found.conditions == ()
    # The queue's own trouble and notices are always known, and the digest is no condition.
    assert found.unknown == set(EVENTS) - {"queue", "old_copy", "unanchored", "digest"}


def test_labels_and_texts_show_no_secret_and_no_control_character() -> None:
    logs.hide("canary-7f3a9c2e-key")
    detail = "see https://s3.example.com/x?X-Amz-Signature=abcdef and canary-7f3a9c2e-key\r\nBcc: x\x1b[2J" + "z" * 999
    facts = replace(WELL, gates=[gate("codat/COMPANY-ID", "company", detail)], folders={"a\nb": detail})
    for condition in observe(facts, LIMITS, NOW).conditions:
        for text in (condition.summary, condition.advice, condition.key, *(value for _, value in condition.labels)):
            assert text.isprintable()
            assert "canary" not in text
            assert "abcdef" not in text
            assert len(text) <= 300
        assert "COMPANY-ID" not in condition.key


def test_a_secret_at_the_cut_is_not_shown_in_part() -> None:
    logs.hide("canary-7f3a9c2e-key")
    for length in range(250, 310):
        facts = replace(WELL, folders={"m": "x" * length + "canary-7f3a9c2e-key"})
        (condition,) = observe(facts, LIMITS, NOW).conditions
        assert "cana" not in condition.summary
