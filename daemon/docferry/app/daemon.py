"""Run the daemon: one configuration after another, until a signal stops it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from docferry import logs, systemd
from docferry.app import status_file, verify
from docferry.app.application import Application, open_application
from docferry.app.receipts import FINISH_DAEMON_S
from docferry.app.running import Monitoring, RunningDaemon, Service
from docferry.app.shutdown import drain, first, plain_errors
from docferry.errors import ConfigError, DatabaseBusy, StateError
from docferry.files.write_lease import guard_signals
from docferry.settings import Download, Settings, load, missing_keys, resolve_again
from docferry.store import locks
from docferry.store.opening import prepare_server
from docferry.store.second_queue import second_queues
from docferry.store.state_dir import prepare_state_dir

log = logs.get("app")

#: The service reports readiness after this time even if a folder hangs, seconds.
READY_AFTER = 60.0
#: The pause before a failed or ended service is restarted, seconds.
SERVICE_RETRY_S = 30.0
#: The interval between two checks whether a folder has answered that did not at the start, seconds.
ANSWER_POLL_S = 2.0


async def run_daemon(settings: Settings, config: Path | None, monitoring: Monitoring) -> None:
    """Run until SIGTERM or SIGINT. On SIGHUP, read `config` again, and rebuild the application if it is valid."""
    guard_signals()
    with plain_errors():
        await _run_daemon(settings, config, monitoring)


async def _run_daemon(settings: Settings, config: Path | None, monitoring: Monitoring) -> None:
    await anyio.to_thread.run_sync(prepare_state_dir, settings.state_dir)
    received = anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with locks.single_instance(settings.state_dir), received as signals:
        following: Settings | None = settings
        while following is not None:
            following = await _serve(following, config, signals, monitoring)
    systemd.notify("STOPPING=1")


def _reload(config: Path | None, running: Settings) -> Settings | None:
    """Return the new settings; log a record and return None if they are invalid."""
    try:
        fresh = load(config)
    except ConfigError as error:
        for problem in error.problems:
            log.error("reload_refused", problem)
        log.error("reload_refused", "the configuration is broken; docferry continues with the old one")
        return None
    if fresh.state_dir != running.state_dir:
        log.error("reload_refused", "state_dir can't change while docferry runs; stop it and start it again")
        return None
    if fresh.database_url is not None:
        try:
            prepare_server(fresh.database_url.get_secret_value(), fresh.host_name)
        except StateError as error:
            log.error("reload_refused", f"{error}; docferry continues with the old configuration")
            return None
    return fresh


async def _serve(settings: Settings, config: Path | None, signals: object, monitoring: Monitoring) -> Settings | None:
    """Run one configuration, and return the next one, or None to stop."""
    for sentence in missing_keys(settings, settings.secrets()):
        log.error("key_missing", sentence)
    for sentence in await anyio.to_thread.run_sync(second_queues, settings):
        log.warning("second_queue", sentence)
    following: Settings | None = None
    async with open_application(settings, telemetry=monitoring.telemetry(settings)) as app:
        daemon = RunningDaemon(app, app.clock.now())
        await app.scheduler.prepare()
        with _stop_without_writes(app):
            async with anyio.create_task_group() as outer:
                await outer.start(app.scheduler.run)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(app.scan_scheduler.run, name="scan scheduler")
                    tasks.start_soon(app.after_upload.run, name="after upload")
                    for download in app.downloads:
                        tasks.start_soon(_poll_downloads, app, download, name=f"pull {download.name}")
                    tasks.start_soon(app.receipts.run, name="receipts")
                    tasks.start_soon(_heartbeat, daemon, name="heartbeat")
                    tasks.start_soon(_ready, app, name="ready")
                    if settings.verify.every is not None:
                        tasks.start_soon(verify.run, app, settings.verify.every, name="verify")
                    if settings.alerts.to or settings.heartbeat.is_set:
                        from docferry.app import alerts  # imported here only, because the receivers cost memory

                        tasks.start_soon(alerts.run, daemon, name="alerts")
                    tasks.start_soon(_keep_running, _refresh_view, daemon, name="queue view")
                    for service in monitoring.services(settings):
                        tasks.start_soon(_keep_running, service, daemon, name="monitoring")
                    following = await _next_settings(daemon, config, signals)
                    if following is None:
                        app.database.stop_waiting()
                    tasks.cancel_scope.cancel()
                await drain(app, outer)
            await app.receipts.finish(FINISH_DAEMON_S)
    status_file.forget(settings.state_dir)
    return following


async def _refresh_view(daemon: RunningDaemon) -> None:
    await daemon.queue.refresh_when_asked()


async def _keep_running(service: Service, daemon: RunningDaemon) -> None:
    """Run a service until cancelled. Log every failure and restart the service: it must not stop uploads."""
    while True:
        try:
            await service(daemon)
        except Exception as error:  # noqa: BLE001 - monitoring must not end the daemon
            log.error("monitoring_failed", f"{type(error).__name__}: {error}; tried again in {SERVICE_RETRY_S:g} s")
            log.debug("monitoring_failed", exc=error)
        await anyio.sleep(SERVICE_RETRY_S)


@contextmanager
def _stop_without_writes(app: Application) -> Iterator[None]:
    """Stop although the database cannot be written: the next start resumes the transfers in flight."""
    try:
        yield
    except* DatabaseBusy as postpone:
        if not app.database.has_stopped_waiting:
            raise
        log.warning("stopped_in_trouble", f"{first(postpone)}; the next start resumes the documents in flight")


async def _next_settings(daemon: RunningDaemon, config: Path | None, signals: object) -> Settings | None:
    """Return the settings to run next, after a signal or the answer of a folder; None to stop."""
    following: Settings | None = None
    async with anyio.create_task_group() as group:

        async def first_of(wait: Callable[[], Awaitable[Settings | None]]) -> None:
            nonlocal following
            found = await wait()
            if not group.cancel_scope.cancel_called:
                following = found
            group.cancel_scope.cancel()

        if daemon.app.settings.unanswered:
            group.start_soon(first_of, partial(_wait_for_folder, daemon.app.settings), name="wait for folders")
        await first_of(partial(_wait_for_signal, daemon, config, signals))
    return following


async def _wait_for_folder(settings: Settings) -> Settings:
    """Wait until a folder answers that did not, and return the settings with its links resolved."""
    while not settings.real_paths.has_late_answer:  # noqa: ASYNC110 - a thread that hangs in a share sets no event
        await anyio.sleep(ANSWER_POLL_S)
    try:
        fresh = await anyio.to_thread.run_sync(resolve_again, settings)
    except ConfigError as error:
        for problem in error.problems:
            log.error("folder_refused", f"{problem}; its mapping waits until the configuration is read again")
        await anyio.sleep_forever()
    log.info("folder_answers", "a folder answers again; docferry restarts its work with all folders that answer")
    return fresh


async def _wait_for_signal(daemon: RunningDaemon, config: Path | None, signals: object) -> Settings | None:
    async for number in signals:  # type: ignore[attr-defined]  # anyio's receiver has no public type
        if number != signal.SIGHUP:
            log.info("stopping", signal=signal.Signals(number).name)
            systemd.notify("STOPPING=1\nSTATUS=finishing what is in flight")
            return None
        systemd.notify("RELOADING=1")
        fresh = await anyio.to_thread.run_sync(_reload, config, daemon.app.settings)
        if fresh is not None:
            log.info("reloaded", "the configuration was read again")
            return fresh
        daemon.reload_ok = False
        systemd.notify("READY=1")
    return None


async def _ready(app: Application) -> None:
    with anyio.move_on_after(READY_AFTER):
        await app.scan_scheduler.first_round.wait()
    log.info("ready", mappings=len(app.uploads) + len(app.downloads))
    systemd.notify("READY=1")


async def _heartbeat(daemon: RunningDaemon) -> None:
    """Publish changed figures for `status` and systemd.

    Notify the watchdog only while scans and uploads make progress.
    """
    app, watchdog = daemon.app, systemd.watchdog_seconds()
    every = min(status_file.EVERY, watchdog) if watchdog else status_file.EVERY
    trouble: str | None = None
    told: tuple[str, object] = ("", None)
    while True:
        if (app.database.alarm is None) != (trouble is None):
            trouble = app.database.alarm
            log.error("database_trouble", trouble or "all is well again with the database")
        if watchdog and daemon.is_alive:
            systemd.notify("WATCHDOG=1")
        sentence, figures = status_file.summary(app), daemon.status()
        if (sentence, figures) != told:
            systemd.notify(f"STATUS={sentence}")
            written = await anyio.to_thread.run_sync(status_file.write, app.settings.state_dir, figures)
            told = (sentence, figures if written else None)
        await anyio.to_thread.run_sync(status_file.keep_fresh, app.settings.state_dir)
        await anyio.sleep(every)


async def _poll_downloads(app: Application, download: Download) -> None:
    while True:
        problems = await app.downloader.round(download)
        app.reconciler.state(download.name).problem = "; ".join(problems) or None
        app.reconciler.state(download.name).last_scan = app.clock.now()
        await anyio.sleep(download.every)
