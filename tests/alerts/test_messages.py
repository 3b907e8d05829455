"""Test messages: Alertmanager's JSON, plain text, and the escaping in both."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from msgspec.structs import replace

from docferry.alerts.digest import Totals, latest_time, text_of
from docferry.alerts.messages import NOT_ENDED, Message, note
from docferry.alerts.tracker import Item, Kind
from docferry.store.alerts import Alert, Observed

NOW = 1_790_000_000.0


def alert(
    key: str = "held/scans/empty", summary: str = "3 documents of scans are held as empty", **more: object
) -> Alert:
    _, *values = key.split("/")
    labels = tuple(zip(("mapping", "reason"), values, strict=False))
    made = Alert(key, NOW - 600, labels, summary, "Mend it.", Observed.FIRING, NOW, NOW - 300)
    return replace(made, **more)


def item(kind: Kind = Kind.FIRING, **more: object) -> Item:
    made = alert(**more)  # type: ignore[arg-type]  # the fields of a test's own choosing
    return Item(made, kind, Observed.RESOLVED if kind is Kind.RESOLVED else Observed.FIRING, NOW - 30)


def message(*items: Item) -> Message:
    return Message("ops", "sftp-1", items)


def test_a_webhook_gets_what_alertmanager_sends() -> None:
    ended = item(Kind.RESOLVED, key="folder/acme", summary="missing", ended=NOW - 5)
    said = message(item(), ended).webhook()
    assert said["version"] == "4"
    assert said["status"] == "firing"
    assert said["receiver"] == "ops"
    first, second = said["alerts"]
    assert first["status"] == "firing"
    assert first["labels"]["alertname"] == "held"
    assert first["labels"]["mapping"] == "scans"
    assert first["labels"]["reason"] == "empty"
    assert first["annotations"]["summary"] == "3 documents of scans are held as empty"
    assert datetime.fromisoformat(first["startsAt"]).timestamp() == NOW - 600
    assert first["endsAt"] == NOT_ENDED
    assert second["status"] == "resolved"
    assert datetime.fromisoformat(second["endsAt"]).timestamp() == NOW - 5
    assert first["fingerprint"] != second["fingerprint"]
    assert said["commonLabels"] == {"host": "sftp-1", "service": "docferry", "severity": "warning"}
    json.dumps(said)


def test_all_resolved_is_resolved() -> None:
    assert message(item(Kind.RESOLVED, ended=NOW)).webhook()["status"] == "resolved"
    assert "RESOLVED" in message(item(Kind.RESOLVED, ended=NOW)).subject


def test_a_fingerprint_stays_while_the_text_changes() -> None:
    begun, grown = message(item()), message(item(summary="5 documents of scans are held as empty"))
    ended = message(item(Kind.RESOLVED, ended=NOW))
    assert len({each.webhook()["alerts"][0]["fingerprint"] for each in (begun, grown, ended)}) == 1


def test_an_id_is_that_of_the_news_and_not_of_the_attempt() -> None:
    assert message(item()).id == message(item(summary="other words")).id
    assert message(item()).id != message(item(Kind.RESOLVED, ended=NOW)).id
    assert message(item()).id != Message("other", "sftp-1", [item()]).id


@pytest.mark.parametrize("hostile", ["a\r\nBcc: x@y", "\x1b[2J\x00", "\u202eabc", "\udcff.pdf", "a\nb: c"])
def test_hostile_text_stays_on_its_line(hostile: str) -> None:
    said = message(item(summary=hostile, labels=(("mapping", hostile),)))
    assert said.subject.isprintable()
    assert all(line.isprintable() for line in said.text.split("\n"))
    assert said.text.count("\n") == message(item()).text.count("\n")
    json.dumps(said.webhook(), ensure_ascii=False).encode()


def test_a_thousand_conditions_make_a_short_text() -> None:
    many = message(*(item(key=f"held/m{number}/empty") for number in range(1000)))
    assert "and 950 more" in many.text
    assert len(many.webhook()["alerts"]) == 1000
    assert many.subject == "docferry on sftp-1: 1000 need attention"


def test_a_test_message_asks_for_nothing() -> None:
    said = note("test", "This is a test.", "ops", NOW)
    assert said.subject.endswith(": test")
    assert said.severity == "info"
    assert said.text == "This is a test.\n"
    assert said.webhook()["alerts"][0]["labels"]["alertname"] == "test"


def test_a_digest_is_told_when_all_is_well_too() -> None:
    totals = Totals(uploaded=1234, due=5, held=6, gates=7, oldest_due=NOW - 60, projected_finish={"codat": NOW + 60})
    text = text_of(totals, [], "sftp-1", NOW)
    assert text.startswith("docferry on sftp-1: all is well; 1,234 documents uploaded in 24 hours, 5 due, 6 held")
    assert "Projected: codat by 2026-" in text
    text = text_of(totals, [alert()], "sftp-1", NOW)
    assert "1 condition needs attention" in text
    assert "- 3 documents of scans are held as empty (since 2026-" in text


@pytest.mark.parametrize(("now", "expected"), [("08:00", "2026-11-30 07:00"), ("06:59", "2026-11-29 07:00")])
def test_a_digest_is_due_at_its_local_time(now: str, expected: str) -> None:
    moment = datetime.fromisoformat(f"2026-11-30 {now}").timestamp()
    assert latest_time("07:00", moment) == datetime.fromisoformat(expected).timestamp()
