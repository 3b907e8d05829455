"""Deliver messages to receivers, with one module for each kind. Only configured kinds are imported."""

from __future__ import annotations

from docferry.alerts.receivers.base import DeliveryError, Receiver
from docferry.clock import Clock
from docferry.settings import alerts as settings_of

__all__ = ["DeliveryError", "Receiver", "open_receiver"]


def open_receiver(settings: settings_of.ReceiverSettings, clock: Clock) -> Receiver:
    """Return the receiver that these settings describe."""
    match settings.kind:
        case "email":
            from docferry.alerts.receivers.email import Email

            return Email(settings, clock)
        case "command":
            from docferry.alerts.receivers.command import Command

            return Command(settings, clock)
        case "webhook":
            from docferry.alerts.receivers.http import Webhook

            return Webhook(settings, clock)
        case "alertmanager":
            from docferry.alerts.receivers.http import Alertmanager

            return Alertmanager(settings, clock)
        case "ntfy":
            from docferry.alerts.receivers.http import Ntfy

            return Ntfy(settings, clock)
