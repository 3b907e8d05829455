"""Format a message to one receiver: as text for people, and as Alertmanager's JSON for programs."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from docferry.alerts.conditions import clean
from docferry.alerts.tracker import Item, Kind
from docferry.clock import iso
from docferry.store.alerts import Alert, Observed

#: The largest number of conditions that a message lists; the message counts the others.
MOST_NAMED: Final = 50
#: Alertmanager's end time of an alert that has not ended.
NOT_ENDED: Final = "0001-01-01T00:00:00Z"
_HEADINGS: Final = {
    Kind.FIRING: "Needs attention:",
    Kind.REMINDER: "Still needs attention:",
    Kind.RESOLVED: "Resolved:",
}
_SEVERITY: Final = {"queue": "critical", "key": "critical", "old_copy": "critical"}


@dataclass(frozen=True, slots=True)
class Message:
    """Format the items of one message to one receiver. `host` is the name of this machine."""

    receiver: str
    host: str
    items: Sequence[Item] = field(repr=False)

    @property
    def id(self) -> str:
        """Return an id that is equal for equal items, also after restarts, so that receivers can drop duplicates."""
        parts = [(item.alert.key, item.alert.since, item.kind.value, item.due) for item in self.items]
        said = json.dumps([self.receiver, self.host, parts])
        return "msg_" + hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:32]

    @property
    def status(self) -> str:
        """Return `firing` while an item needs attention, otherwise `resolved`."""
        return "resolved" if all(item.kind is Kind.RESOLVED for item in self.items) else "firing"

    @property
    def severity(self) -> str:
        """Return the highest severity of the items that need attention."""
        found = {severity(item.alert) for item in self.items if item.kind is not Kind.RESOLVED}
        return next((each for each in ("critical", "warning", "info") if each in found), "info")

    @property
    def subject(self) -> str:
        """Return the subject, one line without control characters."""
        notes = [item for item in self.items if item.kind is Kind.NOTE]
        lasting = [item for item in self.items if item.kind in (Kind.FIRING, Kind.REMINDER)]
        ended = [item for item in self.items if item.kind is Kind.RESOLVED]
        parts = []
        if len(self.items) == 1 and not notes:
            parts = [f"{'RESOLVED: ' if ended else ''}{self.items[0].alert.summary}"]
        else:
            parts += [f"{len(lasting)} need attention" if len(lasting) != 1 else "1 needs attention"] if lasting else []
            parts += [f"{len(ended)} resolved"] if ended else []
            parts += ["daily digest" if item.alert.event == "digest" else item.alert.event for item in notes]
        return clean(f"docferry on {self.host}: {', '.join(parts)}", 150)

    @property
    def text(self) -> str:
        """Return the whole message for people."""
        blocks = []
        for kind, heading in _HEADINGS.items():
            named = [item.alert for item in self.items if item.kind is kind]
            if named:
                lines = [line for alert in named[:MOST_NAMED] for line in _lines(alert, kind)]
                if len(named) > MOST_NAMED:
                    lines.append(f"  and {len(named) - MOST_NAMED} more; `docferry alerts list` shows all")
                blocks.append("\n".join([heading, *lines]))
        blocks += [_clean_lines(item.alert.summary) for item in self.items if item.kind is Kind.NOTE]
        return "\n\n".join(blocks) + "\n"

    def webhook(self) -> dict[str, Any]:
        """Return the object that Alertmanager's webhooks send, version 4."""
        alerts = [alert_json(item, self.host) for item in self.items]
        return {
            "version": "4",
            "groupKey": '{}:{service="docferry"}',
            "truncatedAlerts": 0,
            "status": self.status,
            "receiver": self.receiver,
            "groupLabels": {"service": "docferry"},
            "commonLabels": _common([alert["labels"] for alert in alerts]),
            "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
            "externalURL": "",
            "alerts": alerts,
        }


def alert_json(item: Item, host: str) -> dict[str, Any]:
    """Return one alert as Alertmanager's webhooks show it."""
    alert = item.alert
    labels = labels_of(alert, host)
    return {
        "status": "resolved" if item.kind is Kind.RESOLVED else "firing",
        "labels": labels,
        "annotations": annotations_of(alert),
        "startsAt": iso(alert.since),
        "endsAt": iso(alert.since) if item.kind is Kind.NOTE else iso(alert.ended) or NOT_ENDED,
        "generatorURL": "",
        "fingerprint": fingerprint(labels),
    }


def labels_of(alert: Alert, host: str) -> dict[str, str]:
    """Return the labels that identify a condition; never a path, a company or an id."""
    return {
        "alertname": alert.event,
        **{name: clean(value) for name, value in alert.labels},
        "host": clean(host),
        "service": "docferry",
        "severity": severity(alert),
    }


def annotations_of(alert: Alert) -> dict[str, str]:
    """Return the texts of a condition, redacted and escaped."""
    if alert.observed is Observed.NOTE:
        text = _clean_lines(alert.summary)
        return {"summary": text.partition("\n")[0], "description": text}
    return {"summary": clean(alert.summary, 400), "description": clean(alert.advice, 400), "key": clean(alert.key)}


def fingerprint(labels: dict[str, str]) -> str:
    """Return 16 hexadecimal digits that identify these labels."""
    return hashlib.sha256(json.dumps(sorted(labels.items())).encode("utf-8", "replace")).hexdigest()[:16]


def severity(alert: Alert) -> str:
    """Return `critical`, `warning` or `info`."""
    return "info" if alert.observed is Observed.NOTE else _SEVERITY.get(alert.event, "warning")


def _lines(alert: Alert, kind: Kind) -> list[str]:
    lines = [f"- {clean(alert.summary, 400)}"]
    if kind is Kind.RESOLVED:
        return [*lines, f"  from {iso(alert.since)} to {iso(alert.ended)}"]
    lines.append(f"  since {iso(alert.since)}; key {clean(alert.key)}")
    return [*lines, f"  {clean(alert.advice, 400)}"] if alert.advice else lines


def _clean_lines(text: str) -> str:
    return "\n".join(clean(line, 400) for line in text.split("\n"))


def _common(dicts: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the pairs that all alerts of the message share."""
    if not dicts:
        return {}
    return {key: value for key, value in dicts[0].items() if all(each.get(key) == value for each in dicts[1:])}


def note(event: str, text: str, receiver: str, now: float) -> Message:
    """Return a message without a condition, such as a test message."""
    alert = Alert(event, now, (), text, "", Observed.NOTE, now, now)
    return Message(receiver, socket.gethostname(), [Item(alert, Kind.NOTE, Observed.NOTE, now)])
