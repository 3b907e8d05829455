"""Define a receiver of alerts, and the common part of all kinds."""

from __future__ import annotations

from typing import Protocol

from docferry.alerts.messages import Message
from docferry.clock import Clock
from docferry.settings.alerts import ReceiverSettings


class DeliveryError(Exception):
    """A receiver did not take a message; the text says why, without secrets."""


class Receiver(Protocol):
    """One place that alerts are sent to."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def refresh(self) -> float | None:
        """Seconds after which the receiver forgets a condition; None: it forgets none."""

    def wants(self, event: str) -> bool:
        """Return whether it gets this event."""

    async def send(self, message: Message) -> None:
        """Deliver a message, or raise DeliveryError."""


class ConfiguredReceiver:
    """The common part of all receivers: one `[[alerts.to]]` of the configuration."""

    refresh: float | None = None

    def __init__(self, settings: ReceiverSettings, clock: Clock) -> None:
        self.name = settings.name
        self._settings = settings
        self._clock = clock

    def wants(self, event: str) -> bool:
        """Return whether it gets this event."""
        return self._settings.wants(event)
