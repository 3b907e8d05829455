"""Define a receiver of alerts, and the common part of all kinds."""

from __future__ import annotations

from typing import Protocol

from docferry.alerts.messages import Message
from docferry.clock import Clock
from docferry.settings.alerts import ReceiverSettings


class DeliveryError(Exception):
    """Report that a receiver did not accept a message. The text gives the reason, without secrets."""


class Receiver(Protocol):
    """Define one destination of alerts."""

    @property
    def name(self) -> str:
        """Return the name of the receiver in the configuration."""

    @property
    def refresh(self) -> float | None:
        """Return the seconds after which the receiver forgets a condition; None if never."""

    def wants(self, event: str) -> bool:
        """Return whether the receiver gets this event."""

    async def send(self, message: Message) -> None:
        """Deliver a message, or raise DeliveryError."""


class ConfiguredReceiver:
    """Implement the common part of all receivers: one `[[alerts.to]]` of the configuration."""

    refresh: float | None = None

    def __init__(self, settings: ReceiverSettings, clock: Clock) -> None:
        self.name = settings.name
        self._settings = settings
        self._clock = clock

    def wants(self, event: str) -> bool:
        """Return whether the receiver gets this event."""
        return self._settings.wants(event)
