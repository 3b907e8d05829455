"""Run one pass: `docferry sync`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Protocol

import anyio
from msgspec import Struct

from docferry.app.application import Application, open_application
from docferry.app.pass_heartbeat import pass_heartbeat
from docferry.app.shutdown import drain, plain_errors
from docferry.errors import ConfigError
from docferry.files.write_lease import guard_signals
from docferry.model import Reason, escaped
from docferry.settings import Download, Settings, Upload, missing_keys

#: `sync` waits for documents due within this time, seconds; for doubtful ones the list lag is added.
WAIT_FOR_RETRY_S = 5.0
#: A pass probes gates with these reasons at once, while the daemon would wait.
PROBED_AT_ONCE = frozenset(
    {
        Reason.KEY,
        Reason.ACCOUNT,
        Reason.COMPANY,
        Reason.CONNECTION,
        Reason.REDIRECTED,
        Reason.UNREACHABLE,
        Reason.ANTIVIRUS,
    }
)
#: `sync` ends after this time (and twice the list lag) without a document sent, seconds.
STALL_TIMEOUT_S = 10.0
#: `sync` waits this long for a full disk or a foreign lock, seconds; the daemon waits without limit.
WAIT_FOR_WRITE_S = 60.0
#: `sync` waits this much longer than `settle` for files that are still being written, seconds.
WAIT_FOR_SETTLE_S = 10.0
#: The largest number of documents that a pass lists as still due.
NAMED = 20
DUE_STATES = ("waiting", "leased", "sending", "doubtful", "asking")


class Progress(Struct, frozen=True):
    """Hold the progress of one pass."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    held: int
    scanning: bool


class ProgressView(Protocol):
    """Show the progress of a pass."""

    def update(self, now: Progress) -> None:
        """Show the present progress."""


class SyncReport(Struct, frozen=True):
    """Hold the result of one pass."""

    uploaded: int
    downloaded: int
    unchanged: int
    held: int
    due: int
    bytes_up: int
    bytes_down: int
    requests: int
    seconds: float
    problems: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Return the result as lines for people."""
        figures = f"{self.uploaded} uploaded, {self.downloaded} downloaded, {self.held} held, {self.due} due"
        return "\n".join([figures, *self.problems])

    @property
    def exit_code(self) -> int:
        """Return the exit code: 0 all done, 75 run it again, 1 a person is needed."""
        if self.due or self.problems:
            return 75
        return 1 if self.held else 0


class PassOptions(Struct, frozen=True):
    """Define the scope of one pass."""

    mappings: Sequence[str] = ()  # all when empty
    uploads: bool = True
    downloads: bool = True
    adopt: bool = False  # the database was lost: ask the remote before sending
    timeout: float | None = None  # seconds


async def sync(settings: Settings, options: PassOptions, view: ProgressView | None = None) -> SyncReport:
    """Scan, settle, upload all due documents and download new ones. Safe beside a running daemon."""
    guard_signals()
    with plain_errors():
        async with pass_heartbeat(settings) as result:
            with plain_errors():
                problems = missing_keys(settings, settings.secrets())
                if problems:
                    raise ConfigError(problems)
                async with open_application(
                    settings,
                    mappings=options.mappings,
                    downloads=options.downloads,
                    adopt=options.adopt,
                    write_timeout=WAIT_FOR_WRITE_S,
                ) as app:
                    report = await OnePass(app, uploads=options.uploads, view=view).run(options.timeout)
                    await app.receipts.finish()
            result.exit_code, result.text = report.exit_code, report.summary
            return report
    raise AssertionError("unreachable: plain_errors never swallows")


def _shown(upload: Upload, path: bytes) -> str:
    return escaped(bytes(upload.root).rstrip(b"/") + b"/" + path)


def _because(detail: str | None) -> str:
    return f": {escaped(detail)}" if detail else ""


class OnePass:
    """Run the steps of one `sync`."""

    def __init__(self, app: Application, *, uploads: bool, view: ProgressView | None) -> None:
        self._app = app
        self._uploads = uploads
        self._view = view
        self._problems: list[str] = []
        self._scanning = True
        self._open_before = 0  # known documents that were not sent yet

    async def run(self, timeout: float | None) -> SyncReport:
        """Run the pass; stop at a signal or after `timeout` seconds."""
        app = self._app
        began = app.clock.steady()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as side:
                with anyio.CancelScope(deadline=anyio.current_time() + (timeout or float("inf"))) as scope:
                    side.start_soon(self._stop_at, signals, scope)
                    if self._view is not None:
                        side.start_soon(self._show, self._view)
                    async with anyio.create_task_group() as work:
                        for download in app.downloads:
                            work.start_soon(self._download, download)
                        if self._uploads:
                            await self._upload()
                side.cancel_scope.cancel()
        return await self._report(app.clock.steady() - began)

    async def _stop_at(self, signals: object, scope: anyio.CancelScope) -> None:
        async for _ in signals:  # type: ignore[attr-defined]  # anyio's receiver has no public type
            scope.cancel()

    async def _upload(self) -> None:
        app = self._app
        await app.scheduler.prepare()
        await app.gates.let_probe(PROBED_AT_ONCE, app.clock.now())
        self._open_before = sum((await app.reports.open_counts(app.uploads)).values()) if app.uploads else 0
        async with anyio.create_task_group() as group:
            await group.start(app.scheduler.run)
            group.start_soon(app.after_upload.run, name="after upload")
            self._problems += await app.scan_scheduler.round()
            self._scanning = False
            await self._settle()
            await self._drain()
            await drain(app, group)
        await app.after_upload.serve()

    async def _settle(self) -> None:
        """Wait for files that are still being written, for a limited time."""
        app, debouncer = self._app, self._app.reconciler.debouncer
        longest = max((upload.settle for upload in app.uploads.values()), default=0.0)
        deadline = app.clock.steady() + longest + WAIT_FOR_SETTLE_S
        while (due := debouncer.next_due()) is not None and app.clock.steady() < deadline:
            await anyio.sleep(min(max(due - app.clock.steady(), 0.0), deadline - app.clock.steady()))
            await app.scan_scheduler.serve_hints(large=False)
        crowded = [name for name in app.uploads if debouncer.take_overflow(name)]
        if crowded and app.clock.steady() < deadline:
            self._problems += await app.scan_scheduler.round()
            await self._settle()

    async def _drain(self) -> None:
        """Wait until nothing is in flight and nothing becomes due soon."""
        app = self._app
        lag = max((remote.absent_after for remote in app.remotes.values()), default=0.0)
        progress, since = -1, app.clock.steady()
        while True:
            await app.scan_scheduler.serve_hints()
            if not app.scheduler.is_busy:
                await app.scheduler.refresh()
                if app.scheduler.is_busy:
                    continue  # it has claimed transfers in the meantime
                if app.uploader.counters.uploaded != progress:
                    progress, since = app.uploader.counters.uploaded, app.clock.steady()
                waited = app.clock.steady() - since
                stuck = waited > STALL_TIMEOUT_S + 2 * lag
                if stuck or app.scheduler.next_due_within(WAIT_FOR_RETRY_S, lag + WAIT_FOR_RETRY_S) is None:
                    return
                app.scheduler.wake()
            await anyio.sleep(0.02 if app.scheduler.is_busy else 0.05)  # no event signals the end

    async def _download(self, download: Download) -> None:
        problems = await self._app.downloader.round(download)
        self._problems += [f"{download.name}: {problem}" for problem in problems]

    async def _show(self, view: ProgressView) -> None:
        while True:
            view.update(await self._progress())
            await anyio.sleep(0.2)

    async def _progress(self) -> Progress:
        counts = await self._app.reports.open_counts(self._app.uploads) if self._app.uploads else {}
        left = sum(count for state, count in counts.items() if state != "held")
        counters = self._app.uploader.counters
        done = counters.uploaded
        average = counters.bytes_up / done if done else 0.0
        return Progress(
            done,
            done + left,
            counters.bytes_up,
            counters.bytes_up + int(left * average),
            counts.get("held", 0),
            self._scanning,
        )

    async def _waiting(self) -> list[str]:
        """Return a sentence for each document that is still due, at most NAMED."""
        app = self._app
        named = [
            f"{_shown(upload, path)} is still being written"
            for upload in app.uploads.values()
            for path, _ in app.reconciler.debouncer.unsettled(upload.name)[:NAMED]
        ]
        for upload in app.uploads.values():
            if len(named) < NAMED:
                rows = await app.reports.rows(mapping=upload.name, states=list(DUE_STATES), limit=NAMED)
                named += [f"{_shown(upload, row.path)} is {row.state}{_because(row.detail)}" for row in rows]
        return named[:NAMED]

    async def _report(self, seconds: float) -> SyncReport:
        app = self._app
        counts = await app.reports.open_counts(app.uploads) if self._uploads and app.uploads else {}
        held = counts.get("held", 0)
        due = sum(count for state, count in counts.items() if state != "held")
        unsettled = sum(len(app.reconciler.debouncer.unsettled(name)) for name in app.uploads)
        gates = await app.gates.all() if due else {}
        problems = [*self._problems, *(f"{gate.key} is closed: {gate.detail}" for gate in gates.values())]
        problems += await self._waiting() if due + unsettled else []
        refused = app.reconciler.planner.refused
        problems += [why for name in app.uploads for why in refused.get(name, {}).values()][:NAMED]
        known = sum(app.reconciler.state(name).known for name in app.uploads) - self._open_before
        return SyncReport(
            uploaded=app.uploader.counters.uploaded,
            downloaded=app.downloader.counters.files,
            unchanged=max(0, known) + app.reconciler.planner.unchanged,
            held=held,
            due=due + unsettled,
            bytes_up=app.uploader.counters.bytes_up,
            bytes_down=app.downloader.counters.bytes,
            requests=sum(remote.health.requests for remote in app.remotes.values()),
            seconds=round(seconds, 3),
            problems=tuple(problems),
        )
