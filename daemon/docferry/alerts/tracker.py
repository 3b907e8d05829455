"""Track lasting conditions, the state of each receiver, and the next message to each. Pure: no clock, no I/O.

Observations and deliveries are stored separately, and a message contains their difference. So neither a restart nor a
failed receiver repeats a message or loses a recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from docferry.alerts.conditions import Condition, Observation
from docferry.store.alerts import Alert, AlertDelivery, Observed

#: The time that the first condition waits for others to share its message, seconds.
COLLECT_S: Final = 30.0
#: The time after which an undeliverable message is dropped, seconds.
GIVE_UP_S: Final = 86_400.0
#: The event of a digest, which is one condition with a new time every day.
DIGEST: Final = "digest"

_OPEN: Final = frozenset({Observed.PENDING, Observed.FIRING})


class Subscriber(Protocol):
    """Define the properties of a receiver that the tracker uses."""

    @property
    def name(self) -> str:
        """Return the name of the receiver in the configuration."""

    @property
    def refresh(self) -> float | None:
        """Return the seconds after which the receiver forgets a condition; None if never."""

    def wants(self, event: str) -> bool:
        """Return whether the receiver gets this event."""


class Kind(StrEnum):
    """Name the reason for an alert in a message."""

    FIRING = "firing"
    REMINDER = "reminder"
    RESOLVED = "resolved"
    NOTE = "note"


class Item(Struct, frozen=True):
    """Hold one alert in a message. `observed` is the state of the receiver after delivery."""

    alert: Alert
    kind: Kind
    observed: Observed
    due: float  # since when it waits for delivery, wall seconds


class Pace(Struct, frozen=True):
    """Hold the times of `[alerts]`, seconds."""

    after: float
    repeat: float
    collect: float = COLLECT_S


class Tracker:
    """Track every alert and the state of each receiver."""

    def __init__(self, alerts: Iterable[Alert], subscribers: Sequence[Subscriber], pace: Pace) -> None:
        self._alerts = list(alerts)
        self._subscribers = subscribers
        self._pace = pace
        self._silences: Mapping[str, float] = {}
        self.revision = 0  # incremented at every change that must survive a restart
        names = {subscriber.name for subscriber in subscribers}
        for alert in self._alerts:
            alert.deliveries = {name: each for name, each in alert.deliveries.items() if name in names}

    @property
    def firing(self) -> list[Alert]:
        """Return the lasting conditions, the oldest first."""
        return [alert for alert in self._alerts if alert.observed is Observed.FIRING]

    def copy(self) -> list[Alert]:
        """Return a copy of everything that must survive a restart."""
        return [
            replace(alert, deliveries={name: replace(each) for name, each in alert.deliveries.items()})
            for alert in self._alerts
        ]

    def silence(self, silences: Mapping[str, float]) -> None:
        """Set the patterns of silenced keys, each with the end of its silence in wall seconds."""
        self._silences = silences

    def is_silenced(self, alert: Alert, now: float) -> bool:
        """Return whether this condition is silenced now."""
        return any(until > now and fnmatchcase(alert.key, key) for key, until in self._silences.items())

    # -- observe ------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation, now: float) -> None:
        """Replace the present conditions."""
        seen = {condition.key: condition for condition in observation.conditions}
        for alert in [each for each in self._alerts if each.observed in _OPEN]:
            _follow_clock(alert, now)
            condition = seen.pop(alert.key, None)
            if condition is not None:
                self._there(alert, condition, now)
            elif alert.event not in observation.unknown:
                self._absent(alert, now)
        for condition in seen.values():
            self._begin(condition, now)
        self._prune()

    def _begin(self, condition: Condition, now: float) -> None:
        lasts = self._pace.after <= 0
        self._alerts.append(
            Alert(
                key=condition.key,
                since=now,
                labels=condition.labels,
                summary=condition.summary,
                advice=condition.advice,
                observed=Observed.FIRING if lasts else Observed.PENDING,
                last_seen=now,
                changed=now,
            )
        )
        self.revision += 1

    def _there(self, alert: Alert, condition: Condition, now: float) -> None:
        alert.summary, alert.advice, alert.last_seen = condition.summary, condition.advice, now
        if alert.ended is not None:
            alert.ended = None
            self.revision += 1
        if alert.observed is Observed.PENDING and now - alert.since >= self._pace.after:
            self._become(alert, Observed.FIRING, now)

    def _absent(self, alert: Alert, now: float) -> None:
        if alert.observed is Observed.PENDING:
            self._alerts.remove(alert)
            self.revision += 1
            return
        if alert.ended is None:
            alert.ended = now
            self.revision += 1
        if now - alert.ended >= self._pace.after:
            self._become(alert, Observed.RESOLVED, now)
            if self.is_silenced(alert, now):  # the end is then sent only to receivers that got the beginning
                for subscriber in self._subscribers:
                    alert.deliveries.setdefault(subscriber.name, AlertDelivery(Observed.RESOLVED, now))

    def _become(self, alert: Alert, observed: Observed, now: float) -> None:
        alert.observed, alert.changed = observed, now
        for delivery in alert.deliveries.values():
            delivery.tries = 0
        self.revision += 1

    # -- the digest --------------------------------------------------------------------------------------------------

    @property
    def last_digest(self) -> float | None:
        """Return the time of the latest digest, wall seconds; None if there was none."""
        return max((alert.since for alert in self._alerts if alert.key == DIGEST), default=None)

    def note_digest(self, scheduled: float, now: float, text: str) -> None:
        """Queue `text` for all receivers. An empty text only records that this digest is no longer due."""
        self._alerts = [alert for alert in self._alerts if alert.key != DIGEST]
        self._alerts.append(Alert(DIGEST, scheduled, (), text, "", Observed.NOTE, now, now))
        self.revision += 1

    # -- deliver ------------------------------------------------------------------------------------------------

    def due(self, subscriber: Subscriber, now: float) -> list[Item]:
        """Return the items of the next message to a receiver. The first item waits for others."""
        items = list(self._waiting(subscriber, now))
        if not any(now - item.due >= self._pace.collect or item.due > now for item in items):
            return []
        return items

    def delivered(self, subscriber: Subscriber, items: Sequence[Item], now: float) -> None:
        """Record that a receiver accepted a message."""
        for item in items:
            item.alert.deliveries[subscriber.name] = AlertDelivery(item.observed, now)
        self.revision += 1
        self._prune()

    def failed(self, subscriber: Subscriber, items: Sequence[Item], now: float) -> list[Item]:
        """Record that a receiver did not accept a message; return the items to give up."""
        given_up = []
        for item in items:
            delivery = item.alert.deliveries.setdefault(subscriber.name, AlertDelivery())
            delivery.tries += 1
            if now - item.due > GIVE_UP_S:
                item.alert.deliveries[subscriber.name] = AlertDelivery(item.observed, now)
                given_up.append(item)
        self.revision += 1
        self._prune()
        return given_up

    def _waiting(self, subscriber: Subscriber, now: float) -> Iterator[Item]:
        for alert in self._alerts:
            if subscriber.wants(alert.event):
                item = self._difference(alert, subscriber, now)
                if item is not None:
                    yield item

    def _difference(self, alert: Alert, subscriber: Subscriber, now: float) -> Item | None:
        """Return the news of an alert for a receiver."""
        told = alert.deliveries.get(subscriber.name, AlertDelivery())
        match alert.observed:
            case Observed.FIRING if told.delivered is None:
                return None if self.is_silenced(alert, now) else self._item(alert, Kind.FIRING, alert.changed)
            case Observed.FIRING:
                return self._reminder(alert, told, subscriber, now)
            case Observed.RESOLVED if told.delivered is not Observed.RESOLVED:
                # recoveries are not delayed
                return self._item(alert, Kind.RESOLVED, alert.changed - self._pace.collect)
            case Observed.NOTE if alert.summary and told.delivered is None:
                return self._item(alert, Kind.NOTE, alert.changed - self._pace.collect)
        return None

    def _reminder(self, alert: Alert, told: AlertDelivery, subscriber: Subscriber, now: float) -> Item | None:
        if subscriber.refresh is not None:
            lasts = subscriber.refresh
        elif self.is_silenced(alert, now):
            return None
        else:
            lasts = self._pace.repeat
        due = min(told.at, now) + lasts
        return self._item(alert, Kind.REMINDER, due - self._pace.collect) if due <= now else None

    @staticmethod
    def _item(alert: Alert, kind: Kind, due: float) -> Item:
        return Item(alert, kind, alert.observed, due)

    def _prune(self) -> None:
        """Remove alerts that ended and were delivered to all.

        A digest stays until the next one, because it holds the time.
        """
        kept = [alert for alert in self._alerts if alert.observed is not Observed.RESOLVED or self._is_untold(alert)]
        if len(kept) < len(self._alerts):
            self._alerts = kept
            self.revision += 1

    def _is_untold(self, alert: Alert) -> bool:
        return any(
            alert.deliveries.get(subscriber.name, AlertDelivery()).delivered is not Observed.RESOLVED
            for subscriber in self._subscribers
            if subscriber.wants(alert.event)
        )


def _follow_clock(alert: Alert, now: float) -> None:
    """Replace times in the future by now, so that a clock set back does not suspend a condition."""
    alert.since, alert.changed = min(alert.since, now), min(alert.changed, now)
    if alert.ended is not None:
        alert.ended = min(alert.ended, now)
