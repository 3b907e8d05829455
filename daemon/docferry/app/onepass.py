"""One pass over the same rooms: `docferry sync`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from docferry.app.endings import finish, plain_errors
from docferry.app.house import House, open_house
from docferry.errors import ArchiveError, ConfigError, FolderError, RemoteError
from docferry.files.lease import guard_signals
from docferry.model import Reason
from docferry.settings import Download, Settings, missing_keys

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
    with plain_errors():
        async with open_house(
            settings, mappings=mappings, downloads=downloads, adopt=adopt, patience=WRITE_PATIENCE
        ) as house:
            return await _Pass(house, uploads=uploads, on_progress=on_progress).run(timeout)
    raise AssertionError("unreachable: plain_errors never swallows")


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
            await finish(house, group)

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
            if not house.runner.is_busy:
                await house.runner.look()
                if house.runner.is_busy:
                    continue  # meanwhile it has claimed what the lanes no longer show
                if house.keeper.tally.uploaded != progress:
                    progress, since = house.keeper.tally.uploaded, house.clock.steady()
                waited = house.clock.steady() - since
                stuck = waited > STANDSTILL + 2 * lag
                if stuck or house.runner.worth_waiting(PATIENCE, lag + PATIENCE) is None:
                    return
                house.runner.wake()
            await anyio.sleep(0.02 if house.runner.is_busy else 0.05)  # nothing announces "all done" sooner

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
        tally = self._house.keeper.tally
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
            uploaded=house.keeper.tally.uploaded,
            downloaded=house.puller.brought.files,
            unchanged=max(0, known) + house.intake.planner.unchanged,
            held=held,
            due=due + unsettled,
            bytes_up=house.keeper.tally.bytes_up,
            bytes_down=house.puller.brought.bytes,
            requests=sum(remote.health.requests for remote in house.remotes.values()),
            seconds=round(seconds, 3),
            problems=problems,
        )
