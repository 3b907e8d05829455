"""Run the tasks that observe conditions, deliver messages and save the alerts. No document waits for these tasks."""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import anyio.to_thread
from msgspec import Struct

from docferry import logs
from docferry.alerts.conditions import Facts, Limits, observe
from docferry.alerts.digest import Totals, latest_time, text_of
from docferry.alerts.messages import Message
from docferry.alerts.receivers import DeliveryError, Receiver
from docferry.alerts.tracker import COLLECT_S, Pace, Tracker
from docferry.clock import Clock
from docferry.settings.alerts import AlertsSettings as Settings
from docferry.store.alerts import Alert, Alerts

log = logs.get("alerts")

#: The interval between two collections of facts, seconds; shorter where `after` is short.
OBSERVE_S: Final = 10.0
#: The largest share of time spent on collecting facts.
OBSERVE_SHARE: Final = 0.05
#: The interval at which a receiver is checked without news, seconds: time alone makes reminders due.
LOOK_S: Final = 5.0
#: Pauses after failures of one receiver: the first and the longest, seconds.
DELIVERY_RETRY_S: Final = (5.0, 600.0)
#: The interval between two log records of a lasting failure, seconds.
LOG_AGAIN_S: Final = 3600.0
#: The longest wait of a delivery for its database write, seconds. A full disk must not delay the next delivery.
SAVE_S: Final = 5.0
#: The interval at which minor changes are saved, such as the last time of a condition, seconds.
SAVE_SEEN_S: Final = 60.0


class Sources(Struct, frozen=True):
    """Provide the facts, the figures and the counter of failures."""

    facts: Callable[[], Awaitable[Facts]]
    totals: Callable[[], Awaitable[Totals]]
    failed: Callable[[str], None]  # the name of a receiver, once for each failed attempt


class Notifier:
    """Observe conditions and notify the receivers, until cancelled.

    `collect`: seconds that the first condition of a message waits for others.
    """

    def __init__(
        self,
        settings: Settings,
        rows: Alerts,
        receivers: Sequence[Receiver],
        sources: Sources,
        clock: Clock,
        collect: float = COLLECT_S,
    ) -> None:
        self._settings = settings
        self._rows = rows
        self._receivers = receivers
        self._sources = sources
        self._clock = clock
        self._pace = Pace(settings.after, settings.repeat, collect)
        self._tracker = Tracker((), receivers, self._pace)
        self._saved = anyio.Event()
        self._saved_revision = 0
        self._save_now = anyio.Event()
        self._changed = anyio.Event()
        self.observed = anyio.Event()  # set once the conditions are known for the first time
        self._host = rows.host or socket.gethostname()

    @property
    def lasting(self) -> list[Alert]:
        """Return the lasting conditions that are not silenced."""
        now = self._clock.now()
        return [alert for alert in self._tracker.firing if not self._tracker.is_silenced(alert, now)]

    async def wait_changed(self) -> None:
        """Wait until a condition begins or ends."""
        await self._changed.wait()

    async def run(self) -> None:
        """Observe and deliver until cancelled."""
        self._tracker = Tracker(await self._restore(), self._receivers, self._pace)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._keep, name="alerts keep")
                group.start_soon(self._observe, name="alerts observe")
                for receiver in self._receivers:
                    group.start_soon(self._serve, receiver, name=f"alerts to {receiver.name}")
        finally:
            # Save the latest deliveries, so that the next start does not repeat them.
            with anyio.move_on_after(SAVE_S, shield=True):
                await self._write()

    async def _restore(self) -> list[Alert]:
        """Read the saved alerts. Send nothing until they can be read: their messages may have been sent already."""
        while True:
            try:
                return await self._rows.all()
            except Exception as error:  # noqa: BLE001 - other code ends the daemon for a broken database, with a reason
                log.warning("alerts_unobserved", f"{error}; tried again", exc=error)
            await anyio.sleep(OBSERVE_S)

    # -- observing ---------------------------------------------------------------------------------------------------

    async def _observe(self) -> None:
        limits = Limits(self._settings.oldest_due, self._settings.disk_free)
        while True:
            began = anyio.current_time()
            lasting, now = {alert.key for alert in self._tracker.firing}, self._clock.now()
            try:
                self._tracker.silence(await self._rows.silences(now))
                facts = await self._sources.facts()
                # In a thread: redacting the texts of a thousand mappings takes tens of milliseconds.
                self._tracker.observe(await anyio.to_thread.run_sync(observe, facts, limits, now), now)
                await self._digest()
            except Exception as error:  # noqa: BLE001 - unreadable facts are read again later; documents continue
                log.warning("alerts_unobserved", f"{error}; tried again", exc=error)
            if lasting != {alert.key for alert in self._tracker.firing}:
                self._changed.set()
                self._changed = anyio.Event()
            self.observed.set()
            self._save_now.set()
            took = anyio.current_time() - began
            await anyio.sleep(max(min(OBSERVE_S, max(self._settings.after / 5, 0.2)), took / OBSERVE_SHARE))

    async def _digest(self) -> None:
        """Write today's digest once it is due. The very first start writes no overdue digest."""
        if self._settings.digest is None:
            return
        now, last = self._clock.now(), self._tracker.last_digest
        scheduled = latest_time(self._settings.digest, now)
        if last is not None and scheduled <= last <= now:
            return
        text = "" if last is None else text_of(await self._sources.totals(), self._tracker.firing, self._host, now)
        self._tracker.note_digest(scheduled, now, text)

    # -- delivering --------------------------------------------------------------------------------------------------

    async def _serve(self, receiver: Receiver) -> None:
        """Send the messages of one receiver, with growing pauses after failures."""
        failures, logged = 0, -LOG_AGAIN_S
        while True:
            items = self._tracker.due(receiver, self._clock.now())
            if not items:
                await anyio.sleep(min(LOOK_S, max(self._settings.after / 5, 0.2)))
                continue
            problem = await self._send(receiver, Message(receiver.name, self._host, items))
            if problem is None:
                failures = 0
                self._tracker.delivered(receiver, items, self._clock.now())
                await self._save()
                continue
            failures += 1
            self._sources.failed(receiver.name)
            given_up = self._tracker.failed(receiver, items, self._clock.now())
            if failures == 1 or self._clock.steady() - logged >= LOG_AGAIN_S:
                logged = self._clock.steady()
                log.warning("alert_failed", f"{problem}; tried again for a day", receiver=receiver.name)
            if given_up:
                log.error("alert_given_up", f"{len(given_up)} alerts could not be delivered for a day: {problem}")
            await anyio.sleep(_pause(failures))

    @staticmethod
    async def _send(receiver: Receiver, message: Message) -> str | None:
        """Return why the message could not be delivered; None when it was delivered."""
        try:
            await receiver.send(message)
        except DeliveryError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a defect in one receiver must not end the others or the daemon
            log.warning("alert_failed", exc=error, receiver=receiver.name)
            return f"{type(error).__name__}: {error}"
        log.info("alert_delivered", message.subject, receiver=receiver.name)
        return None

    # -- keeping -----------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Save changed alerts. Only this task waits for a database that cannot be written."""
        written = self._clock.steady()
        while True:
            await self._save_now.wait()
            self._save_now = anyio.Event()
            steady = self._clock.steady()
            seen_again = bool(self._tracker.firing) and steady - written >= SAVE_SEEN_S
            if await self._write(anyway=seen_again):
                written = steady
            self._saved.set()
            self._saved = anyio.Event()

    async def _write(self, *, anyway: bool = False) -> bool:
        """Save everything if anything changed; return whether the database is up to date."""
        revision = self._tracker.revision
        if revision == self._saved_revision and not anyway:
            return False
        try:
            await self._rows.replace(self._tracker.copy())
        except Exception as error:  # noqa: BLE001 - the next change saves it
            log.warning("alerts_not_kept", str(error), exc=error)
            return False
        self._saved_revision = revision
        return True

    async def _save(self) -> None:
        revision = self._tracker.revision
        self._save_now.set()
        with anyio.move_on_after(SAVE_S):
            while self._saved_revision < revision:
                await self._saved.wait()


def _pause(failures: int) -> float:
    first, longest = DELIVERY_RETRY_S
    # Random, so that receivers that failed together are not retried together.
    return min(longest, first * 2.0 ** min(failures - 1, 10)) * random.uniform(0.75, 1.0)  # noqa: S311 - not secret
