"""Start the metrics and the status page. Imported only if the configuration contains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from docferry.app.running import Monitoring, Service
from docferry.clock import Clock
from docferry.settings import Settings
from docferry.telemetry import Telemetry

if TYPE_CHECKING:
    from docferry.web.metrics import EventMetrics
    from docferry.web.page_service import PageService


class ConfiguredMonitoring(Monitoring):
    """Provide the services of `[metrics]` and `[web]`. Counters survive a reload by SIGHUP."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._telemetry = Telemetry(clock)
        self._events: EventMetrics | None = None
        self._page: PageService | None = None

    def telemetry(self, settings: Settings) -> Telemetry:
        """Return the counters of the metrics, if metrics were ever configured."""
        if self._events is None and (settings.metrics.listen or settings.metrics.textfile):
            from docferry.web.metrics import EventMetrics

            self._events = EventMetrics(self.clock)
        return self._events or self._telemetry

    def services(self, settings: Settings) -> Sequence[Service]:
        """Return the configured services."""
        services: list[Service] = []
        if self._events is not None and (settings.metrics.listen or settings.metrics.textfile):
            from docferry.web.metrics_service import MetricsService

            services.append(MetricsService(self._events))
        if settings.web.listen is not None:
            from docferry.web.page_service import PageService

            self._page = self._page or PageService()
            services.append(self._page)
        return services
