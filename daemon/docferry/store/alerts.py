"""Store conditions, the deliveries to each receiver, and silences across restarts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from docferry.store.connection import Transaction
from docferry.store.database import Database
from docferry.store.statement import Sql


class Observed(StrEnum):
    """Name the progress of a condition."""

    PENDING = "pending"  # present, but not yet for long enough
    FIRING = "firing"
    RESOLVED = "resolved"  # was firing, and is absent for long enough
    NOTE = "note"  # a digest: sent once, without duration and end


class AlertDelivery(Struct):
    """Describe the last delivery of one alert to one receiver."""

    delivered: Observed | None = None
    at: float = 0.0  # the time of delivery, wall seconds
    tries: int = 0  # attempts since then, all failed


class Alert(Struct):
    """Describe one condition from its beginning to its end. Times are wall seconds."""

    key: str
    since: float
    labels: tuple[tuple[str, str], ...]
    summary: str
    advice: str
    observed: Observed
    last_seen: float
    changed: float  # the time of the last change of `observed`
    ended: float | None = None  # the time since which it is absent; None while present
    deliveries: dict[str, AlertDelivery] = field(default_factory=dict)  # by receiver

    @property
    def event(self) -> str:
        """Return the first part of the key."""
        return self.key.partition("/")[0]


class Alerts:
    """Access the tables alert, alert_delivery and alert_silence.

    `host` selects conditions in a queue of several hosts.
    """

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
        """Store exactly these alerts, in one commit. The caller may change them in the meantime."""
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
        """Return the number of transfers sent since a time, wall seconds."""
        (number,) = await self._database.fetch_one(_UPLOADED, {"moment": moment})
        return int(number)

    async def silences(self, now: float) -> dict[str, float]:
        """Return the active silences: key patterns with the wall seconds of their ends."""
        return dict(await self._database.fetch_all(_SILENCES, {"now": now}))

    async def silence(self, pattern: str, until: float, now: float) -> None:
        """Silence conditions whose key matches `pattern` until a time; a time in the past ends a silence."""

        def work(transaction: Transaction) -> None:
            transaction.execute(_FORGET_SILENCES, {"now": now, "key": pattern})
            if until > now:
                transaction.execute(_SILENCE, {"key": pattern, "until": until})

        await self._database.write(work)


def _alert(*row: Any) -> Alert | None:
    """Return a row as an alert; None if it is not in docferry's format."""
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
_ALERTS = Sql(
    "SELECT key, since, labels, summary, advice, observed, last_seen, changed, ended FROM alert WHERE host = :host "
    "ORDER BY since, key"
)
_DELIVERIES = Sql("SELECT key, since, receiver, delivered, delivered_at, tries FROM alert_delivery WHERE host = :host")
_CLEAR = (Sql("DELETE FROM alert WHERE host = :host"), Sql("DELETE FROM alert_delivery WHERE host = :host"))
_INSERT_ALERT = Sql(
    "INSERT INTO alert (host, key, since, labels, summary, advice, observed, last_seen, changed, ended) VALUES "
    "(:host, :key, :since, :labels, :summary, :advice, :observed, :last_seen, :changed, :ended)"
)
_INSERT_DELIVERY = Sql(
    "INSERT INTO alert_delivery (host, key, since, receiver, delivered, delivered_at, tries) VALUES "
    "(:host, :key, :since, :receiver, :delivered, :delivered_at, :tries)"
)
_UPLOADED = Sql("SELECT count(*) FROM transfer WHERE state = 'sent' AND last_sent > :moment")
_SILENCES = Sql("SELECT key, until FROM alert_silence WHERE until > :now")
_FORGET_SILENCES = Sql("DELETE FROM alert_silence WHERE until <= :now OR key = :key")
_SILENCE = Sql("INSERT INTO alert_silence (key, until) VALUES (:key, :until)")
