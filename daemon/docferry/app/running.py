"""The running daemon as its monitoring sees it: alive, ready, and the figures that it tells."""

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

#: How late a loop may be before the watchdog is no longer fed, seconds.
LATE_S: Final = 60.0


@dataclass(slots=True)
class RunningDaemon:
    """A daemon that runs with one configuration, as monitoring sees it."""

    app: Application
    started: float  # wall seconds
    reload_ok: bool = True  # whether the last SIGHUP brought a sound configuration
    listening: dict[str, str] = field(default_factory=dict)  # where each service listens or writes
    queue: QueueView = field(init=False)

    def __post_init__(self) -> None:
        self.queue = QueueView(self.app.database)

    @property
    def is_alive(self) -> bool:
        """Whether the watchdog may be fed: scans and uploads move. A full disk is waited out, no restart makes room."""
        now = self.app.clock.steady()
        moves = now - self.app.scheduler.beat < LATE_S and now - self.app.scan_scheduler.beat < LATE_S
        return moves or self.app.database.trouble is not None

    @property
    def is_ready(self) -> bool:
        """Whether the first scan was planned and the queue can be written."""
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
        """Return the figures of `status --json`, as they are now."""
        return figures(self.app.settings, await self.queue.snapshot(), self.status())


#: What runs beside the daemon and watches it: the metrics, the status page.
Service = Callable[[RunningDaemon], Coroutine[Any, Any, None]]


class Monitoring:
    """What watches the daemon. This one is nothing; a program that has metrics or a page brings its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def telemetry(self, settings: Settings) -> Telemetry:
        """Return where events are counted under these settings."""
        del settings  # nothing to choose from here
        return Telemetry(self.clock)

    def services(self, settings: Settings) -> Sequence[Service]:
        """Return what runs beside the daemon under these settings."""
        del settings
        return ()
