"""Prepare the figures of the overview for its template."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import anyio.to_thread
from msgspec import Struct

from docferry.app.application import Application
from docferry.app.running import RunningDaemon
from docferry.files import scan
from docferry.files.safe_open import Root
from docferry.model import escaped
from docferry.settings import Upload
from docferry.store.pages import Hour, Pages
from docferry.telemetry import Request
from docferry.web import attention, charts
from docferry.web.facts import disk_facts
from docferry.web.text import duration, size

HOURS: Final = 48
#: Mappings that the overview shows by default.
MAPPINGS_SHOWN: Final = 50
#: The age at which plots are drawn again, seconds, and as a multiple of their reading time.
_PLOTS_S: Final = 10.0
_COST_FACTOR: Final = 20.0


class Flight(Struct, frozen=True):
    """Describe a request with documents in flight."""

    name: str
    more: int  # further documents of its batch
    mapping: str
    remote: str
    size: int
    percent: int | None  # None: too small to count
    since: float


class Plots:
    """Cache the plots, and read them again at intervals that a large queue allows. No page waits for them twice."""

    def __init__(self, app: Application) -> None:
        self._database = app.database
        self._pages = Pages(app.database)
        self._lock = anyio.Lock()
        self._hours: list[Hour] = []
        self._since = 0.0
        self._fresh_until = 0.0

    async def hours(self) -> tuple[list[Hour], float]:
        """Return the arrivals of the last 48 hours by hour, and the start of the first hour."""
        async with self._lock:
            began = time.monotonic()
            if began >= self._fresh_until and self._database.trouble is None:
                self._since = (time.time() // 3600 - HOURS + 1) * 3600
                self._hours = await self._pages.hours(self._since)
                took = time.monotonic() - began
                self._fresh_until = time.monotonic() + max(_PLOTS_S, took * _COST_FACTOR)
            return self._hours, self._since


async def overview(daemon: RunningDaemon, plots: Plots, *, everything: bool) -> dict[str, Any]:
    """Return the values of `overview.html`."""
    figures = await daemon.figures()
    hours, since = await plots.hours()
    facts = await anyio.to_thread.run_sync(disk_facts, daemon.app.settings)
    facts |= {"config_last_reload_successful": float(daemon.reload_ok)}
    emptied = await anyio.to_thread.run_sync(_emptied, daemon.app, figures)
    mappings = sorted(figures["uploads"], key=_urgency)
    shown = mappings if everything else mappings[:MAPPINGS_SHOWN]
    documents = figures["documents"]
    return {
        "figures": figures,
        "items": attention.items(figures, emptied, facts, time.time()),
        "pauses": attention.quiet_gates(figures),
        "due": documents["waiting"] + documents["doubtful"],
        "flights": [_flight(request) for request in daemon.app.telemetry.requests],
        "sent_lately": sum(hour.documents for hour in hours if hour.hour >= HOURS - 24),
        "octets_lately": sum(hour.octets for hour in hours if hour.hour >= HOURS - 24),
        "mappings": shown,
        "hidden": len(mappings) - len(shown),
        "plots": _plots(hours, since),
        "facts": facts,
    }


def _urgency(row: dict[str, Any]) -> tuple[int, int, str]:
    counts = row["documents"]
    return (not row["problem"], -counts["held"], row["mapping"])


def _emptied(app: Application, figures: dict[str, Any]) -> frozenset[str]:
    """Return the mappings that stopped because their folder exists but is empty."""
    stopped = {row["mapping"] for row in figures["uploads"] if row["problem"]}
    return frozenset(name for name, upload in app.uploads.items() if name in stopped and _is_empty(upload))


def _is_empty(upload: Upload) -> bool:
    try:
        return upload.unanswered is None and scan.is_empty(Root.of(upload))
    except Exception:  # noqa: BLE001 - the problem of the folder reports every cause
        return False


def _flight(request: Request) -> Flight:
    first, total = request.items[0].transfer, request.size
    percent = min(100, round(100 * request.given / total)) if request.given else None
    return Flight(
        escaped(first.remote_name),
        len(request.items) - 1,
        first.mapping,
        request.remote,
        total,
        percent,
        request.since,
    )


def _plots(hours: Sequence[Hour], since: float) -> list[dict[str, Any]]:
    documents, octets, delays = [0.0] * HOURS, [0.0] * HOURS, [-1.0] * HOURS
    for hour in hours:
        if 0 <= hour.hour < HOURS:
            documents[hour.hour] += hour.documents
            octets[hour.hour] += hour.octets
            delays[hour.hour] = max(delays[hour.hour], hour.longest_delay, 0.0)
    labels = [datetime.fromtimestamp(since + at * 3600, UTC).strftime("%a %H:00 UTC") for at in range(HOURS)]

    def series(title: str, values: list[float], show: Any) -> charts.Series:
        return charts.Series(title, values, labels, [show(value) for value in values], show(max(values)))

    return [
        _plot("Documents an hour", series("Documents an hour", documents, lambda n: f"{n:,.0f}")),
        _plot("Bytes an hour", series("Bytes an hour", octets, size)),
        {
            "title": "Longest delivery delay",
            "highest": duration(max(delays)) if max(delays) >= 0 else "–",
            "svg": charts.line(series("Longest delivery delay", delays, duration)),
        },
    ]


def _plot(title: str, series: charts.Series) -> dict[str, Any]:
    return {"title": title, "highest": series.highest, "svg": charts.bars(series)}
