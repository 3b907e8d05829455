"""Runs the house: `ferry()` is the daemon, `sync()` one pass, over the same rooms."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread

from docferry import logs, pulse, systemd
from docferry.errors import ArchiveError, ConfigError, DatabaseBusy, DocferryError, FolderError, RemoteError
from docferry.files.source import guard_signals
from docferry.house import House, accept_empty, open_house
from docferry.model import Reason
from docferry.settings import Download, Settings, missing_keys
from docferry.store import tenure

__all__ = ["Progress", "SyncReport", "accept_empty", "ferry", "sync"]

log = logs.get("app")

#: `sync` waits for documents that are due again within this, seconds; for doubts as long as the list may lag.
PATIENCE = 5.0
#: A pass is somebody's wish: it tries these gates at once, where the daemon would wait for the next probe.
A_PERSON_SAW_TO_IT = frozenset(
    {Reason.KEY, Reason.ACCOUNT, Reason.COMPANY, Reason.CONNECTION, Reason.REDIRECTED, Reason.UNREACHABLE}
)
#: `sync` goes on for so long without a document arriving (and as long as the list may lag, twice), seconds.
STANDSTILL = 10.0
#: `sync` waits so long for a full disk or a foreign lock, seconds; the daemon waits for ever.
WRITE_PATIENCE = 60.0
#: `sync` waits so much longer than `settle` for files that are still being written, seconds.
UNSETTLED_PATIENCE = 10.0
#: A share that hangs must not keep the service from being ready for the others, seconds.
READY_AFTER = 60.0
#: How late a loop may be before the watchdog is no longer fed, seconds.
LATE = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one pass got."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    held: int
    scanning: bool


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one pass did, and what is left."""

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
    def exit_code(self) -> int:
        """0 all done; 75 run it again; 1 a person is needed."""
        if self.due or self.problems:
            return 75
        return 1 if self.held else 0


# -- the daemon --------------------------------------------------------------------------------------------------------


async def ferry(
    settings: Settings, *, reload: Callable[[], Settings], notify: Callable[[str], None] = systemd.notify
) -> None:
    """The daemon: until SIGTERM or SIGINT. SIGHUP builds the house anew with what `reload` reads, if it is sound."""
    guard_signals()
    with _plain_errors():
        await _ferry(settings, reload, notify)


async def _ferry(settings: Settings, reload: Callable[[], Settings], notify: Callable[[str], None]) -> None:
    await anyio.to_thread.run_sync(tenure.prepare_state_dir, settings.state_dir)
    received = anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with tenure.sole(settings.state_dir), received as signals:
        following: Settings | None = settings
        while following is not None:
            following = await _serve(following, signals, partial(_reloaded, reload, settings), notify)
    notify("STOPPING=1")


def _reloaded(reload: Callable[[], Settings], running: Settings) -> Settings | None:
    """The configuration as it is now; None, and said, when it can't be taken."""
    try:
        fresh = reload()
    except ConfigError as error:
        for problem in error.problems:
            log.error("reload_refused", problem)
        log.error("reload_refused", "the configuration is broken; docferry goes on with the old one")
        return None
    if fresh.state_dir != running.state_dir:
        log.error("reload_refused", "state_dir can't change while docferry runs; stop it and start it again")
        return None
    return fresh


async def _serve(
    settings: Settings, signals: object, reloaded: Callable[[], Settings | None], notify: Callable[[str], None]
) -> Settings | None:
    """One configuration's life: returns the next one, or None to stop."""
    for sentence in missing_keys(settings, settings.secrets()):
        log.error("key_missing", sentence)
    following: Settings | None = None
    async with open_house(settings) as house:
        await house.runner.prepare()
        with _stopped_in_trouble(house):
            async with anyio.create_task_group() as outer:
                await outer.start(house.runner.run)
                async with anyio.create_task_group() as rooms:
                    rooms.start_soon(house.lookout.run, name="lookout")
                    for download in house.downloads:
                        rooms.start_soon(_pull_for_ever, house, download, name=f"pull {download.name}")
                    rooms.start_soon(_pulse, house, notify, name="pulse")
                    rooms.start_soon(_ready, house, notify, name="ready")
                    following = await _until_told(signals, reloaded, notify)
                    if following is None:
                        house.database.hurry()
                    rooms.cancel_scope.cancel()
                await _finish(house, outer)
    pulse.forget(settings.state_dir)
    return following


@contextmanager
def _stopped_in_trouble(house: House) -> Iterator[None]:
    """Told to stop while nothing can be written: what was under way is looked at again at the next start."""
    try:
        yield
    except* DatabaseBusy as busy:
        if not house.database.hurried:
            raise
        log.warning("stopped_in_trouble", f"{_first(busy)}; what was under way is looked at again at the next start")


async def _until_told(
    signals: object, reloaded: Callable[[], Settings | None], notify: Callable[[str], None]
) -> Settings | None:
    async for number in signals:  # type: ignore[attr-defined]  # anyio's receiver has no public type
        if number != signal.SIGHUP:
            log.info("stopping", signal=signal.Signals(number).name)
            notify("STOPPING=1\nSTATUS=finishing what is in flight")
            return None
        notify("RELOADING=1")
        fresh = await anyio.to_thread.run_sync(reloaded)
        if fresh is not None:
            log.info("reloaded", "the configuration was read again")
            return fresh
        notify("READY=1")
    return None


async def _finish(house: House, group: anyio.abc.TaskGroup) -> None:
    """No new claims; what is in flight gets `stop_grace`; the rest is cut and handed back."""
    house.runner.stop()
    with anyio.move_on_after(house.settings.stop_grace):
        await house.runner.ended.wait()
    group.cancel_scope.cancel()


async def _ready(house: House, notify: Callable[[str], None]) -> None:
    with anyio.move_on_after(READY_AFTER):
        await house.lookout.first_round.wait()
    log.info("ready", mappings=len(house.uploads) + len(house.downloads))
    notify("READY=1")


async def _pulse(house: House, notify: Callable[[str], None]) -> None:
    """Tell `status` and systemd how things stand, when that is news; feed the watchdog only while scans and workers
    move."""
    watchdog = systemd.watchdog_seconds()
    every = min(pulse.EVERY, watchdog) if watchdog else pulse.EVERY
    started, trouble = house.clock.now(), None
    told: tuple[str, object] = ("", None)
    while True:
        if (house.database.alarm is None) != (trouble is None):
            trouble = house.database.alarm
            log.error("database_trouble", trouble or "all is well again with the database")
        now = house.clock.steady()
        moving = now - house.runner.beat < LATE and now - house.lookout.beat < LATE
        # A full disk is waited out: a restart would not make room.
        if watchdog and (moving or house.database.trouble):
            notify("WATCHDOG=1")
        sentence, figures = pulse.sentence(house), pulse.describe(house, started)
        if (sentence, figures) != told:
            notify(f"STATUS={sentence}")
            written = await anyio.to_thread.run_sync(pulse.write, house.settings.state_dir, figures)
            told = (sentence, figures if written else None)
        await anyio.sleep(every)


async def _pull_for_ever(house: House, download: Download) -> None:
    while True:
        try:
            await house.puller.pull(download)
            house.intake.state(download.name).problem = None
        except (RemoteError, FolderError, ArchiveError, OSError) as error:
            log.warning("pull_failed", f"{error}; tried again in {download.every:g} s", mapping=download.name)
            house.intake.state(download.name).problem = str(error)
        house.intake.state(download.name).last_scan = house.clock.now()
        await anyio.sleep(download.every)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors meant for people come out as themselves, not in the groups that task groups make of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        meant, others = group.split(DocferryError)
        if meant is not None and others is None:
            raise _first(meant) from group
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# -- one pass ----------------------------------------------------------------------------------------------------------


async def sync(
    settings: Settings,
    *,
    mappings: Sequence[str] = (),
    uploads: bool = True,
    downloads: bool = True,
    timeout: float | None = None,
    adopt: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> SyncReport:
    """One pass: scan, settle, upload all that is due, download what is new. Safe beside a running daemon."""
    guard_signals()
    problems = missing_keys(settings, settings.secrets())
    if problems:
        raise ConfigError(problems)
    with _plain_errors():
        async with open_house(
            settings, mappings=mappings, downloads=downloads, adopt=adopt, patience=WRITE_PATIENCE
        ) as house:
            return await _Pass(house, uploads=uploads, on_progress=on_progress).run(timeout)
    raise AssertionError("unreachable: _plain_errors never swallows")


class _Pass:
    """One `sync` under way."""

    def __init__(self, house: House, *, uploads: bool, on_progress: Callable[[Progress], None] | None) -> None:
        self._house = house
        self._uploads = uploads
        self._on_progress = on_progress
        self._problems: list[str] = []
        self._scanning = True
        self._open_before = 0  # documents that were known and not yet sent

    async def run(self, timeout: float | None) -> SyncReport:
        house = self._house
        began = house.clock.steady()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as side:
                with anyio.CancelScope(deadline=anyio.current_time() + (timeout or float("inf"))) as scope:
                    side.start_soon(self._stop_at, signals, scope)
                    if self._on_progress is not None:
                        side.start_soon(self._show, self._on_progress)
                    async with anyio.create_task_group() as work:
                        for download in house.downloads:
                            work.start_soon(self._pull, download)
                        if self._uploads:
                            await self._upload()
                side.cancel_scope.cancel()
        return await self._report(house.clock.steady() - began)

    async def _stop_at(self, signals: object, scope: anyio.CancelScope) -> None:
        async for _ in signals:  # type: ignore[attr-defined]  # anyio's receiver has no public type
            scope.cancel()

    async def _upload(self) -> None:
        house = self._house
        await house.runner.prepare()
        await house.gates.let_probe(A_PERSON_SAW_TO_IT, house.clock.now())
        self._open_before = sum((await house.reports.open_counts(house.uploads)).values()) if house.uploads else 0
        async with anyio.create_task_group() as group:
            await group.start(house.runner.run)
            self._problems += await house.lookout.round()
            self._scanning = False
            await self._settle()
            await self._drain()
            await _finish(house, group)

    async def _settle(self) -> None:
        """Wait for files that are still being written, but not for ever."""
        house, quiet = self._house, self._house.intake.quiet
        longest = max((upload.settle for upload in house.uploads.values()), default=0.0)
        deadline = house.clock.steady() + longest + UNSETTLED_PATIENCE
        while (due := quiet.next_due()) is not None and house.clock.steady() < deadline:
            await anyio.sleep(min(max(due - house.clock.steady(), 0.0), deadline - house.clock.steady()))
            await house.lookout.serve_hints()
        crowded = [name for name in house.uploads if quiet.take_overflow(name)]
        if crowded and house.clock.steady() < deadline:
            self._problems += await house.lookout.round()
            await self._settle()

    async def _drain(self) -> None:
        """Until nothing is in hand and nothing becomes due soon."""
        house = self._house
        lag = max((remote.confirm_after for remote in house.remotes.values()), default=0.0)
        progress, since = -1, house.clock.steady()
        while True:
            await house.lookout.serve_hints()
            if not house.runner.in_hand:
                await house.runner.look()
                if house.carrier.tally.uploaded != progress:
                    progress, since = house.carrier.tally.uploaded, house.clock.steady()
                waited = house.clock.steady() - since
                stuck = waited > STANDSTILL + 2 * lag
                if stuck or house.runner.worth_waiting(PATIENCE, lag + PATIENCE) is None:
                    return
                house.runner.wake()
            await anyio.sleep(0.02 if house.runner.in_hand else 0.05)  # nothing announces "all done" sooner

    async def _pull(self, download: Download) -> None:
        try:
            await self._house.puller.pull(download)
        except (RemoteError, FolderError, ArchiveError, OSError) as error:
            self._problems.append(f"{download.name}: {error}")

    async def _show(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            on_progress(await self._progress())
            await anyio.sleep(0.2)

    async def _progress(self) -> Progress:
        counts = await self._house.reports.open_counts(self._house.uploads) if self._house.uploads else {}
        left = sum(count for state, count in counts.items() if state != "held")
        tally = self._house.carrier.tally
        done = tally.uploaded
        average = tally.bytes_up / done if done else 0.0
        return Progress(
            done,
            done + left,
            tally.bytes_up,
            tally.bytes_up + int(left * average),
            counts.get("held", 0),
            self._scanning,
        )

    async def _report(self, seconds: float) -> SyncReport:
        house = self._house
        counts = await house.reports.open_counts(house.uploads) if self._uploads and house.uploads else {}
        held = counts.get("held", 0)
        due = sum(count for state, count in counts.items() if state != "held")
        unsettled = sum(len(house.intake.quiet.unsettled(name)) for name in house.uploads)
        gates = await house.gates.all() if due else {}
        problems = (*self._problems, *(f"{gate.key} is closed: {gate.detail}" for gate in gates.values()))
        known = sum(house.intake.state(name).known for name in house.uploads) - self._open_before
        return SyncReport(
            uploaded=house.carrier.tally.uploaded,
            downloaded=house.puller.brought.files,
            unchanged=max(0, known) + house.intake.planner.unchanged,
            held=held,
            due=due + unsettled,
            bytes_up=house.carrier.tally.bytes_up,
            bytes_down=house.puller.brought.bytes,
            requests=sum(remote.health.requests for remote in house.remotes.values()),
            seconds=round(seconds, 3),
            problems=problems,
        )
