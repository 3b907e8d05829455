"""Pings a service that notices when docferry falls silent, such as healthchecks.io."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio

from docferry import logs
from docferry.alerts.conditions import clean
from docferry.alerts.receivers.base import DeliveryError
from docferry.settings.alerts import Heartbeat as Settings
from docferry.settings.keys import Key
from docferry.store.alerts import Alert

log = logs.get("alerts")

#: A ping that failed is tried again after so long, seconds; within `every` at the latest.
RETRY_S: Final = 30.0


class Heartbeat:
    """The pings of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failing = False

    async def run(self, notifier_lasting: Callable[[], Sequence[Alert]], is_alive: Callable[[], bool]) -> None:
        """Ping every `every`, until cancelled: URL while all is well, else URL/fail with a summary."""
        while True:
            lasting = notifier_lasting()
            if not is_alive():
                taken = await self.ping("/fail", "docferry is running and makes no progress")
            elif lasting:
                taken = await self.ping("/fail", summary(lasting))
            else:
                taken = await self.ping("", "all is well")
            await anyio.sleep(self._settings.every if taken else min(RETRY_S, self._settings.every))

    async def ping(self, suffix: str, text: str) -> bool:
        """Call the address with `suffix` appended to its path; return whether it was taken."""
        from docferry.alerts.receivers.http import post  # httpx is imported only where something is pinged

        try:
            address = with_suffix(self._settings.address(), suffix)
            await post(address, text.encode(), {"Content-Type": "text/plain; charset=utf-8"}, self._settings.ca_file)
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
