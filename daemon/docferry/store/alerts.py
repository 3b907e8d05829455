"""The conditions that last and who was told of them, kept over restarts; and which of them are silenced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import text

from docferry.store.connection import Transaction
from docferry.store.database import Database


class Observed(StrEnum):
    """How far a condition got."""

    PENDING = "pending"  # it was seen, and has not lasted long enough
    FIRING = "firing"
    RESOLVED = "resolved"  # it was firing, and has been gone for long enough
    NOTE = "note"  # a digest: it is told once, and neither lasts nor ends


@dataclass(slots=True)
class AlertDelivery:
    """What one receiver was told of one alert."""

    delivered: Observed | None = None
    at: float = 0.0  # when it was told, wall seconds
    tries: int = 0  # attempts since then, all of which failed


@dataclass(slots=True)
class Alert:
    """One condition from its first sighting to its end. Times are wall seconds."""

    key: str
    since: float
    labels: tuple[tuple[str, str], ...]
    summary: str
    advice: str
    observed: Observed
    last_seen: float
    changed: float  # when `observed` became what it is
    ended: float | None = None  # since when it has not been seen; None: it is there
    deliveries: dict[str, AlertDelivery] = field(default_factory=dict)  # by receiver

    @property
    def event(self) -> str:
        """The first part of the key."""
        return self.key.partition("/")[0]


class Alerts:
    """The tables alert, alert_delivery and alert_silence. `host`: whose conditions, in a queue of several hosts."""

    def __init__(self, database: Database, host: str = "") -> None:
        self._database = database
        self.host = host

    async def all(self) -> list[Alert]:
        """Return every alert with its deliveries, the oldest first."""

        def work(transaction: Transaction) -> list[Alert]:
            rows = transaction.fetch_all(_ALERTS, {"host": self.host})
            found = {row[:2]: alert for row in rows if (alert := _alert(*row)) is not None}
            deliveries = transaction.fetch_all(_DELIVERIES, {"host": self.host})
            for key, since, receiver, delivered, delivered_at, tries in deliveries:
                if (alert := found.get((key, since))) is not None:
                    told = Observed(delivered) if delivered in _KNOWN else None
                    alert.deliveries[receiver] = AlertDelivery(told, delivered_at, tries)
            return list(found.values())

        return await self._database.read(work)

    async def replace(self, alerts: Sequence[Alert]) -> None:
        """Keep exactly these alerts, in one commit. The caller may change them meanwhile."""
        rows = [
            {
                "host": self.host,
                "key": alert.key,
                "since": alert.since,
                "labels": json.dumps(alert.labels),
                "summary": alert.summary,
                "advice": alert.advice,
                "observed": alert.observed.value,
                "last_seen": alert.last_seen,
                "changed": alert.changed,
                "ended": alert.ended,
            }
            for alert in alerts
        ]
        deliveries = [
            {
                "host": self.host,
                "key": alert.key,
                "since": alert.since,
                "receiver": receiver,
                "delivered": delivery.delivered.value if delivery.delivered else None,
                "delivered_at": delivery.at,
                "tries": delivery.tries,
            }
            for alert in alerts
            for receiver, delivery in alert.deliveries.items()
        ]

        def work(transaction: Transaction) -> None:
            for statement in _CLEAR:
                transaction.execute(statement, {"host": self.host})
            for row in rows:
                transaction.execute(_INSERT_ALERT, row)
            for delivery in deliveries:
                transaction.execute(_INSERT_DELIVERY, delivery)

        await self._database.write(work)

    async def uploaded_since(self, moment: float) -> int:
        """Return how many transfers were sent since then."""
        (number,) = await self._database.fetch_one(_UPLOADED, {"moment": moment})
        return int(number)

    async def silences(self, now: float) -> dict[str, float]:
        """Return the silences that last, as key patterns with the wall seconds at which they end."""
        return dict(await self._database.fetch_all(_SILENCES, {"now": now}))

    async def silence(self, pattern: str, until: float, now: float) -> None:
        """Tell nobody of conditions whose key fits `pattern` until then; a time in the past ends a silence."""

        def work(transaction: Transaction) -> None:
            transaction.execute(_FORGET_SILENCES, {"now": now, "key": pattern})
            if until > now:
                transaction.execute(_SILENCE, {"key": pattern, "until": until})

        await self._database.write(work)


def _alert(*row: Any) -> Alert | None:
    """Return a row as an alert; None when something else than docferry wrote it."""
    key, since, labels, summary, advice, observed, last_seen, changed, ended = row
    try:
        return Alert(
            key=key,
            since=since,
            labels=tuple((str(name), str(value)) for name, value in json.loads(labels)),
            summary=summary,
            advice=advice,
            observed=Observed(observed),
            last_seen=last_seen,
            changed=changed,
            ended=ended,
        )
    except (ValueError, TypeError):
        return None


_KNOWN = frozenset(Observed)
_ALERTS = text(
    "SELECT key, since, labels, summary, advice, observed, last_seen, changed, ended FROM alert WHERE host = :host "
    "ORDER BY since, key"
)
_DELIVERIES = text("SELECT key, since, receiver, delivered, delivered_at, tries FROM alert_delivery WHERE host = :host")
_CLEAR = (text("DELETE FROM alert WHERE host = :host"), text("DELETE FROM alert_delivery WHERE host = :host"))
_INSERT_ALERT = text(
    "INSERT INTO alert (host, key, since, labels, summary, advice, observed, last_seen, changed, ended) VALUES "
    "(:host, :key, :since, :labels, :summary, :advice, :observed, :last_seen, :changed, :ended)"
)
_INSERT_DELIVERY = text(
    "INSERT INTO alert_delivery (host, key, since, receiver, delivered, delivered_at, tries) VALUES "
    "(:host, :key, :since, :receiver, :delivered, :delivered_at, :tries)"
)
_UPLOADED = text("SELECT count(*) FROM transfer WHERE state = 'sent' AND last_sent > :moment")
_SILENCES = text("SELECT key, until FROM alert_silence WHERE until > :now")
_FORGET_SILENCES = text("DELETE FROM alert_silence WHERE until <= :now OR key = :key")
_SILENCE = text("INSERT INTO alert_silence (key, until) VALUES (:key, :until)")
