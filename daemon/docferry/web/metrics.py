"""Collect the metrics: events are counted as they happen, all other values come from one snapshot at each scrape."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST as TEXT_TYPE
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from docferry import __version__
from docferry.app.figures import Figures
from docferry.clock import Clock
from docferry.settings import Settings
from docferry.store.schema import HEAD
from docferry.telemetry import Delivery, Telemetry

__all__ = ["OPENMETRICS_TYPE", "TEXT_TYPE", "EventMetrics", "Facts", "Snapshot", "render"]

#: Samples written without a pause, and the pause, seconds. 1,000 mappings make 27,000 samples. Written without pauses,
#: the thread would block the event loop by the interpreter's lock for 0.4 s.
SLICE: Final = 48
RENDER_PAUSE_S: Final = 0.0005
_REQUEST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DELAY_BUCKETS: Final = (1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)

#: The figures that a scrape adds to those of `status --json`, by name.
Facts = dict[str, float | None]
_FACTS: Final = {
    "database_size_bytes": "Size of the queue's database with its write-ahead log",
    "database_writable": "1 while the queue can be written",
    "state_free_bytes": "Free space of the disk that holds the state folder",
    "config_last_reload_successful": "1 unless the last SIGHUP read an invalid configuration",
    "start_timestamp_seconds": "Time at which the daemon read its configuration",
    "sync_last_run_timestamp_seconds": "When the last one-shot `sync` ended",
    "sync_last_success_timestamp_seconds": "When a one-shot `sync` last ended with exit code 0",
    "sync_last_exit_code": "Exit code of the last one-shot `sync`",
}
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; saves one series for each counter


class EventMetrics(Telemetry):
    """Hold counters and histograms in a separate registry, for the life of the process."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> _Children:
            return _Children(Counter(f"docferry_{name}", text, labels, registry=self.registry), *labels)

        def histogram(name: str, text: str, label: str, buckets: Sequence[float]) -> _Children:
            made = Histogram(f"docferry_{name}", text, [label], registry=self.registry, buckets=buckets)
            return _Children(made, label)

        text = "Attempts to upload a document, by the resulting state"
        self._attempts = counter("upload_attempts", text, "remote", "outcome")
        self._documents = counter("uploaded_documents", "Documents that arrived", "mapping")
        self._bytes = counter("uploaded_bytes", "Bytes of documents that arrived", "mapping")
        self._downloaded = counter("downloaded_documents", "Files downloaded", "mapping")
        self._resolved = counter("doubts_resolved", "Doubts resolved, by proof", "remote", "proof")
        self._failures = counter("alert_failures", "Alerts that a receiver did not accept", "to")
        text = "Duration of requests that got a receipt"
        self._durations = histogram("upload_duration_seconds", text, "remote", _REQUEST_BUCKETS)
        text = "Time from due until arrived"
        self._delays = histogram("delivery_delay_seconds", text, "mapping", _DELAY_BUCKETS)

    def collect(self) -> Iterator[Metric]:
        """Yield all families, each in parts."""
        yield from self._attempts.collect()
        yield from self._documents.collect()
        yield from self._bytes.collect()
        yield from self._downloaded.collect()
        yield from self._resolved.collect()
        yield from self._failures.collect()
        yield from self._durations.collect()
        yield from self._delays.collect()

    def expect(self, settings: Settings) -> None:
        """Initialise the counters of configured mappings to 0, so that the first event counts as an increase."""
        for upload in settings.uploads:
            self._documents(upload.name)
            self._bytes(upload.name)
        for download in settings.downloads:
            self._downloaded(download.name)

    def uploaded(self, delivery: Delivery) -> None:
        """Count an arrived document."""
        super().uploaded(delivery)
        self._documents(delivery.mapping).inc()
        self._bytes(delivery.mapping).inc(delivery.size)
        self._delays(delivery.mapping).observe(max(delivery.delay, 0.0))

    def attempt_ended(self, remote: str, outcome: str) -> None:
        """Count an attempt."""
        self._attempts(remote, str(outcome)).inc()

    def request_ended(self, remote: str, seconds: float) -> None:
        """Observe the time of a request."""
        self._durations(remote).observe(seconds)

    def downloaded(self, mapping: str) -> None:
        """Count a downloaded file."""
        self._downloaded(mapping).inc()

    def doubt_resolved(self, remote: str, proof: str) -> None:
        """Count the end of a doubt."""
        self._resolved(remote, proof).inc()

    def alert_failed(self, receiver: str) -> None:
        """Count an alert that a receiver did not accept."""
        self._failures(receiver).inc()


class _Children:
    """Cache label children, which the library looks up under a lock, and collect a few at a time."""

    def __init__(self, parent: Counter | Histogram, *labels: str) -> None:
        self._parent = parent
        self._names = labels
        self._kept: dict[tuple[str, ...], Any] = {}

    def __call__(self, *values: str) -> Any:
        child = self._kept.get(values)
        if child is None:
            child = self._kept[values] = self._parent.labels(*values)
        return child

    def collect(self) -> Iterator[Metric]:
        """Yield the family in parts of about `SLICE` samples."""
        (part,) = self._parent.describe()
        for values, child in tuple(self._kept.items()):
            named = dict(zip(self._names, values, strict=True))
            (family,) = child.collect()
            part.samples += [Sample(each.name, named | each.labels, each.value) for each in family.samples]
            if len(part.samples) >= SLICE:
                yield part
                (part,) = self._parent.describe()
        yield part


class Snapshot:
    """Collect one moment: the figures of `status --json`, and facts about the process and its disk."""

    def __init__(self, figures: Figures, facts: Facts, events: EventMetrics | None = None) -> None:
        self._figures = figures
        self._facts = facts
        self._events = events

    def collect(self) -> Iterator[Metric]:
        """Yield every family, events last; a large family in consecutive parts."""
        uploads, remotes = self._figures["uploads"], self._figures["remotes"]
        labels = (__version__, platform.python_version(), HEAD)
        yield from _gauge("build_info", "Version of docferry", ("version", "python", "schema"), [(labels, 1)])
        documents = (((r["mapping"], state), count) for r in uploads for state, count in r["documents"].items())
        yield from _gauge("documents", "Documents, by mapping and state", ("mapping", "state"), documents)
        held = [((r["mapping"], r["reason"]), r["count"]) for r in self._figures["held"]]
        yield from _gauge("held_documents", "Documents that need a person, by reason", ("mapping", "reason"), held)
        yield from _of_mappings(uploads, self._figures["downloads"])
        yield from _of_remotes(remotes)
        gates: dict[tuple[str, str], int] = {}
        for gate in self._figures["gates"]:
            key = gate["gate"].partition("/")[0], str(gate["reason"])
            gates[key] = gates.get(key, 0) + 1
        text = "Gates that are closed, by remote and reason"
        yield from _gauge("gates_closed", text, ("remote", "reason"), gates.items())
        yield from _of_hosts(self._figures)
        for name, value in self._facts.items():
            if value is not None:
                yield from _gauge(name, _FACTS[name], (), [((), value)])
        if self._events is not None:
            yield from self._events.collect()


def render(snapshot: Snapshot, *, plain: bool = False) -> bytes:
    """Return the text of a scrape, OpenMetrics or `plain` Prometheus text. Call it in a thread, because it pauses.

    The library's own writers take 12 µs a sample, this one 2 µs; a test compares their results.
    """
    parts: list[str] = []
    last = ""
    for part in snapshot.collect():
        if part.name != last:
            last = part.name
            name = f"{last}_total" if plain and part.type == "counter" else last
            parts.append(f"# HELP {name} {part.documentation}\n# TYPE {name} {part.type}\n")
        parts += [f"{each.name}{_labels(each.labels)} {_number_text(each.value)}\n" for each in part.samples]
        time.sleep(RENDER_PAUSE_S)  # lets the event loop run
    if not plain:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _number_text(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # untyped in the library
    return text


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()]) + "}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return value


def _gauge(name: str, text: str, labels: Sequence[str], samples: Iterable[Any]) -> Iterator[Metric]:
    """Yield a family in parts of `SLICE` samples, at least one."""
    full = f"docferry_{name}"
    part = Metric(full, text, "gauge")
    for values, value in samples:
        part.samples.append(Sample(full, dict(zip(labels, values, strict=True)), value))
        if len(part.samples) >= SLICE:
            yield part
            part = Metric(full, text, "gauge")
    yield part


def _of_mappings(uploads: Sequence[Figures], downloads: Sequence[Figures]) -> Iterator[Metric]:
    def column(rows: Sequence[Figures], key: str) -> list[tuple[tuple[str], float]]:
        return [((row["mapping"],), _number(row[key])) for row in rows if row[key] is not None]

    def per_mapping(name: str, text: str, samples: Any) -> Iterator[Metric]:
        return _gauge(name, text, ("mapping",), samples)

    available = [((row["mapping"],), float(not row["problem"])) for row in (*uploads, *downloads) if row["configured"]]
    yield from per_mapping(
        "oldest_due_timestamp_seconds", "Time since which the oldest document is due", column(uploads, "oldest_due")
    )
    yield from per_mapping(
        "scan_last_success_timestamp_seconds",
        "Time of the last complete scan",
        column(uploads, "last_scan"),
    )
    yield from per_mapping(
        "scan_duration_seconds", "Duration of the last scan, for reading and comparing", column(uploads, "scan_seconds")
    )
    yield from per_mapping("unsettled_files", "Files that are still being written", column(uploads, "unsettled_files"))
    yield from per_mapping("folder_available", "1 while nothing stops the mapping", available)


def _of_hosts(figures: Figures) -> Iterator[Metric]:
    """Yield the heartbeats of a shared queue by host; a local queue has one host while its daemon runs."""
    heartbeats: dict[str, float] = {}
    for row in figures["hosts"]:
        heartbeats[row["host"]] = max(_number(row["heartbeat"]), heartbeats.get(row["host"], 0.0))
    alive = {row["host"] for row in figures["hosts"] if row["alive"]}
    number = len(alive) if heartbeats else float(figures["running"] is not None)
    yield from _gauge("hosts_alive", "Hosts of the queue with a recent heartbeat", (), [((), number)])
    text = "When a host of a shared queue last sent a heartbeat, by the server's clock"
    samples = [((host,), at) for host, at in sorted(heartbeats.items())]
    yield from _gauge("host_heartbeat_timestamp_seconds", text, ("host",), samples)


def _of_remotes(remotes: Sequence[Figures]) -> Iterator[Metric]:
    for name, key, text in (
        (
            "projected_finish_timestamp_seconds",
            "projected_finish",
            "When all due documents will have arrived",
        ),
        ("quota_requests_limit", "limit", "Requests a day that the remote allows"),
        ("quota_requests_remaining", "remaining", "Requests that are left today"),
        ("quota_reset_timestamp_seconds", "reset", "Time at which the remote resets its quota"),
        ("uploads_in_flight", "in_flight", "Requests with documents that are in flight now"),
        ("due_documents", "due", "Documents that are due"),
    ):
        samples = [((row["remote"],), _number(row[key])) for row in remotes if row[key] is not None]
        yield from _gauge(name, text, ("remote",), samples)


def _number(value: float | str) -> float:
    """Return a figure as a number; the figures have times as ISO texts."""
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)
