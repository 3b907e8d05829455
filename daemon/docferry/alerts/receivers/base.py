"""What every receiver offers."""

from __future__ import annotations

from typing import Protocol

from docferry.alerts.messages import Message


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
