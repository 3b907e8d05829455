"""Pings a service that notices when docferry falls silent, such as healthchecks.io."""

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

#: A ping that failed is tried again after so long, seconds; within `every` at the latest.
PING_RETRY_S: Final = 30.0


class Liveness(Protocol):
    """The process whose life the pings report."""

    @property
    def is_alive(self) -> bool:
        """Whether it makes progress."""


class Heartbeat:
    """The pings of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failing = False

    async def run(self, notifier: Notifier, process: Liveness) -> None:
        """Ping every `every` and when a condition begins or ends, until cancelled.

        The address itself is pinged while all is well, URL/fail with a summary while a condition lasts.
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
        """Call the address with `suffix` appended to its path; return whether it was taken."""
        from docferry.alerts.receivers.http import hide, post  # httpx is imported only where something is pinged

        try:
            address = with_suffix(hide(self._settings.address()), suffix)
            await post(address, text.encode(), {"Content-Type": "text/plain; charset=utf-8"}, self._settings)
        except DeliveryError as error:
            if not self._failing:  # once, until it works again
                log.warning("heartbeat_failed", str(error))
            self._failing = True
            return False
        self._failing = False
        return True


def with_suffix(address: Key, suffix: str) -> Key:
    """Return the address with something appended to its path, before a query."""
    if address.value is None or not suffix:
        return address
    path, mark, query = address.value.partition("?")
    return Key(value=f"{path.rstrip('/')}{suffix}{mark}{query}", origin=address.origin)


def summary(lasting: Sequence[Alert]) -> str:
    """Return the conditions that last, one a line."""
    lines = [f"{alert.event}: {alert.summary}" for alert in lasting[:20]]
    lines += [f"and {len(lasting) - 20} more"] if len(lasting) > 20 else []
    return "\n".join(clean(line, 400) for line in lines)
