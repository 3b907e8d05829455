"""Report the state of the running daemon to its monitoring: liveness, readiness and figures."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from docferry.app import status_file
from docferry.app.application import Application
from docferry.app.figures import Figures, figures
from docferry.clock import Clock
from docferry.settings import Settings
from docferry.store.queue_view import QueueView
from docferry.telemetry import Telemetry

#: The largest delay of a loop before the watchdog is no longer notified, seconds.
LATE_S: Final = 60.0


@dataclass(slots=True)
class RunningDaemon:
    """Describe a daemon that runs with one configuration, for monitoring."""

    app: Application
    started: float  # wall seconds
    reload_ok: bool = True  # whether the last SIGHUP read a valid configuration
    listening: dict[str, str] = field(default_factory=dict)  # the address or path of each service
    queue: QueueView = field(init=False)

    def __post_init__(self) -> None:
        self.queue = QueueView(self.app.database)

    @property
    def is_alive(self) -> bool:
        """Return whether scans and uploads make progress.

        A full disk counts as progress: a restart would not free space.
        """
        now = self.app.clock.steady()
        moves = now - self.app.scheduler.beat < LATE_S and now - self.app.scan_scheduler.beat < LATE_S
        return moves or self.app.database.trouble is not None

    @property
    def is_ready(self) -> bool:
        """Return whether the first scan was planned and the queue can be written."""
        return self.app.scan_scheduler.first_round.is_set() and self.app.database.trouble is None

    def status(self) -> dict[str, Any]:
        """Return the content of the status file."""
        return status_file.snapshot(self.app, self.started) | {
            "alive": self.is_alive,
            "ready": self.is_ready,
            "reload_ok": self.reload_ok,
            "listening": dict(self.listening),
        }

    async def figures(self) -> Figures:
        """Return the present figures of `status --json`."""
        return figures(self.app.settings, await self.queue.snapshot(), self.status())


#: A service beside the daemon: the metrics or the status page.
Service = Callable[[RunningDaemon], Coroutine[Any, Any, None]]


class Monitoring:
    """Define the services that monitor the daemon. This base class has none."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def telemetry(self, settings: Settings) -> Telemetry:
        """Return the counter of events for these settings."""
        del settings  # the base class ignores the settings
        return Telemetry(self.clock)

    def services(self, settings: Settings) -> Sequence[Service]:
        """Return the services that run beside the daemon with these settings."""
        del settings
        return ()
