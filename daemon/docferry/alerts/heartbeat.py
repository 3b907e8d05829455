"""Ping a monitoring service, such as healthchecks.io, that reports missing pings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import anyio

from docferry import logs
from docferry.alerts.conditions import clean
from docferry.alerts.notifier import Notifier
from docferry.alerts.receivers.base import DeliveryError
from docferry.settings.alerts import HeartbeatSettings as Settings
from docferry.settings.keys import Key
from docferry.store.alerts import Alert

log = logs.get("alerts")

#: The pause after a failed ping, seconds; at most `every`.
PING_RETRY_S: Final = 30.0


class Liveness(Protocol):
    """Describe the process that the pings report on."""

    @property
    def is_alive(self) -> bool:
        """Return whether the process makes progress."""


class Heartbeat:
    """Send the pings of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failing = False

    async def run(self, notifier: Notifier, process: Liveness) -> None:
        """Ping every `every` seconds and at each change of the conditions, until cancelled.

        Without conditions, ping the address itself; with conditions, ping URL/fail with a summary.
        """
        await notifier.observed.wait()
        while True:
            if not process.is_alive:
                taken = await self.ping("/fail", "docferry is running and makes no progress")
            elif lasting := notifier.lasting:
                taken = await self.ping("/fail", summary(lasting))
            else:
                taken = await self.ping("", "all is well")
            with anyio.move_on_after(self._settings.every if taken else min(PING_RETRY_S, self._settings.every)):
                await notifier.wait_changed()

    async def ping(self, suffix: str, text: str) -> bool:
        """Request the address with `suffix` appended to its path; return whether the service accepted the ping."""
        from docferry.alerts.receivers.http import hide, post  # httpx is imported only where pings are configured

        try:
            address = with_suffix(hide(self._settings.address()), suffix)
            await post(address, text.encode(), {"Content-Type": "text/plain; charset=utf-8"}, self._settings)
        except DeliveryError as error:
            if not self._failing:  # logged once for each series of failures
                log.warning("heartbeat_failed", str(error))
            self._failing = True
            return False
        self._failing = False
        return True


def with_suffix(address: Key, suffix: str) -> Key:
    """Return the address with `suffix` appended to its path, before a query."""
    if address.value is None or not suffix:
        return address
    path, mark, query = address.value.partition("?")
    return Key(value=f"{path.rstrip('/')}{suffix}{mark}{query}", origin=address.origin)


def summary(lasting: Sequence[Alert]) -> str:
    """Return the lasting conditions, one a line."""
    lines = [f"{alert.event}: {alert.summary}" for alert in lasting[:20]]
    lines += [f"and {len(lasting) - 20} more"] if len(lasting) > 20 else []
    return "\n".join(clean(line, 400) for line in lines)
