"""Which conditions last, what each receiver knows of them, and what it is to be told next. Pure: no clock, no I/O.

What is observed and what was delivered are kept apart. A receiver is told the difference between the two, so neither a
restart nor a receiver that was down repeats a message or loses a recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Protocol

from docferry.alerts.conditions import Condition, Observation
from docferry.store.alerts import Alert, AlertDelivery, Observed

#: Conditions that begin together are told together: the first waits so long for the others, seconds.
COLLECT_S: Final = 30.0
#: A message that could not be delivered for so long is given up, seconds.
GIVE_UP_S: Final = 86_400.0
#: A digest is one condition with a new time every day.
DIGEST: Final = "digest"

_OPEN: Final = frozenset({Observed.PENDING, Observed.FIRING})


class Subscriber(Protocol):
    """The properties of a receiver that the tracker uses."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def refresh(self) -> float | None:
        """Seconds after which the receiver forgets a condition; None: it forgets none."""

    def wants(self, event: str) -> bool:
        """Return whether it gets this event."""


class Kind(StrEnum):
    """Why an alert is in a message."""

    FIRING = "firing"
    REMINDER = "reminder"
    RESOLVED = "resolved"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Item:
    """One alert in a message. `observed` is the knowledge of the receiver afterwards."""

    alert: Alert
    kind: Kind
    observed: Observed
    due: float  # since when it waits to be told, wall seconds


@dataclass(frozen=True, slots=True)
class Pace:
    """The times of `[alerts]`, seconds."""

    after: float
    repeat: float
    collect: float = COLLECT_S


class Tracker:
    """Every alert, with the knowledge of each receiver."""

    def __init__(self, alerts: Iterable[Alert], subscribers: Sequence[Subscriber], pace: Pace) -> None:
        self._alerts = list(alerts)
        self._subscribers = subscribers
        self._pace = pace
        self._silences: Mapping[str, float] = {}
        self.revision = 0  # grows with every change that must outlive a restart
        names = {subscriber.name for subscriber in subscribers}
        for alert in self._alerts:
            alert.deliveries = {name: each for name, each in alert.deliveries.items() if name in names}

    @property
    def firing(self) -> list[Alert]:
        """The conditions that last, the oldest first."""
        return [alert for alert in self._alerts if alert.observed is Observed.FIRING]

    def copy(self) -> list[Alert]:
        """Return everything that must outlive a restart, as it is now."""
        return [
            replace(alert, deliveries={name: replace(each) for name, each in alert.deliveries.items()})
            for alert in self._alerts
        ]

    def silence(self, silences: Mapping[str, float]) -> None:
        """Take over key patterns and the wall seconds until which nobody is told of what fits them."""
        self._silences = silences

    def is_silenced(self, alert: Alert, now: float) -> bool:
        """Return whether nobody is to be told of this condition now."""
        return any(until > now and fnmatchcase(alert.key, key) for key, until in self._silences.items())

    # -- observe ------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation, now: float) -> None:
        """Take over the present conditions."""
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
            if self.is_silenced(alert, now):  # then only those are told of its end who know of its beginning
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
        """The wall seconds for which the latest digest was written; None: there was none yet."""
        return max((alert.since for alert in self._alerts if alert.key == DIGEST), default=None)

    def note_digest(self, scheduled: float, now: float, text: str) -> None:
        """Tell everybody `text`. Empty: note only that the digest of that time is not due any more."""
        self._alerts = [alert for alert in self._alerts if alert.key != DIGEST]
        self._alerts.append(Alert(DIGEST, scheduled, (), text, "", Observed.NOTE, now, now))
        self.revision += 1

    # -- deliver ------------------------------------------------------------------------------------------------

    def due(self, subscriber: Subscriber, now: float) -> list[Item]:
        """Return the items of the next message to a receiver. The first one waits for the others."""
        items = list(self._waiting(subscriber, now))
        if not any(now - item.due >= self._pace.collect or item.due > now for item in items):
            return []
        return items

    def delivered(self, subscriber: Subscriber, items: Sequence[Item], now: float) -> None:
        """Note that a receiver took a message."""
        for item in items:
            item.alert.deliveries[subscriber.name] = AlertDelivery(item.observed, now)
        self.revision += 1
        self._prune()

    def failed(self, subscriber: Subscriber, items: Sequence[Item], now: float) -> list[Item]:
        """Note that a receiver did not take a message; return the items that have been tried for too long."""
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
                return self._item(alert, Kind.RESOLVED, alert.changed - self._pace.collect)  # good news does not wait
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
        """Forget what ended and is known to everybody. A digest stays until the next one: it tells its time."""
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
    """A clock that was set back must not keep a condition from counting: times in the future become now."""
    alert.since, alert.changed = min(alert.since, now), min(alert.changed, now)
    if alert.ended is not None:
        alert.ended = min(alert.ended, now)
