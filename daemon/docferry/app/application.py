"""Builds the house for one configuration: opens the database, the remotes and the rooms, and closes them again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from docferry import policy
from docferry.app.remotes import RULES, ApiKeys, open_remotes, spool
from docferry.clock import Clock, SystemClock
from docferry.detect.reconciler import Reconciler
from docferry.detect.scan_scheduler import ScanScheduler
from docferry.download.downloader import Downloader
from docferry.errors import ConfigError, FolderError
from docferry.files import scan
from docferry.model import joined
from docferry.remotes.codat.client import Codat
from docferry.remotes.protocol import Remote
from docferry.remotes.wootiv.client import Wootiv
from docferry.settings import Download, Settings, Upload
from docferry.store import locks, schema
from docferry.store.cursors import Cursors
from docferry.store.database import Database, open_database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.reports import Reports
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry
from docferry.upload.after_upload import tidy
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.gates import GateManager
from docferry.upload.maintenance import Maintenance
from docferry.upload.scheduler import Scheduler
from docferry.upload.uploader import Uploader
from docferry.wakeups import Wakeups


@dataclass(slots=True)
class Application:
    """Every room of one configuration."""

    settings: Settings
    clock: Clock
    database: Database
    documents: Documents
    transfers: Transfers
    gates: Gates
    reports: Reports
    remotes: Mapping[str, Remote]
    reconciler: Reconciler
    scan_scheduler: ScanScheduler
    batch_trials: BatchTrials
    gate_manager: GateManager
    scheduler: Scheduler
    downloader: Downloader
    uploads: Mapping[str, Upload]
    downloads: Sequence[Download]

    @property
    def telemetry(self) -> Telemetry:
        """Where events are counted."""
        return self.gate_manager.telemetry

    def count_events(self, telemetry: Telemetry) -> None:
        """Tell events to `telemetry` from now on."""
        self.gate_manager.telemetry = self.downloader.telemetry = telemetry


def database_path(settings: Settings) -> Path:
    """Where the queue is kept."""
    return settings.state_dir / "docferry.db"


@asynccontextmanager
async def open_application(
    settings: Settings,
    *,
    mappings: Sequence[str] = (),
    downloads: bool = True,
    adopt: bool = False,
    patience: float = float("inf"),
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Application]:
    """The rooms for `mappings` (all when empty). ConfigError: no such mapping; StateError: the state folder. A full
    disk is waited for `patience` seconds."""
    uploads, pulls = select_mappings(settings, mappings)
    await anyio.to_thread.run_sync(locks.prepare_state_dir, settings.state_dir)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        owner = stack.enter_context(locks.owner(settings.state_dir))
        await anyio.to_thread.run_sync(schema.read_through, database_path(settings))
        database = await stack.enter_async_context(open_database(database_path(settings), patience))
        await anyio.to_thread.run_sync(_clear_spool, settings.state_dir, owner)
        keys = ApiKeys(settings)
        remotes = open_remotes(settings, keys, clock)
        for remote in remotes.values():
            stack.push_async_callback(remote.aclose)
        app = _build(settings, clock, database, owner, remotes, keys, uploads, pulls if downloads else [], adopt)
        app.count_events(telemetry or Telemetry(clock))
        for upload in uploads.values():
            await app.reconciler.follow(upload)
        yield app


def select_mappings(settings: Settings, mappings: Sequence[str]) -> tuple[dict[str, Upload], list[Download]]:
    """The mappings of these names, all when there are none; ConfigError names one that does not exist."""
    known = [upload.name for upload in settings.uploads] + [download.name for download in settings.downloads]
    unknown = [name for name in mappings if name not in known]
    if unknown:
        raise ConfigError([f'no mapping is named "{name}"; there are: {", ".join(known)}' for name in unknown])
    wanted = set(mappings or known)
    return (
        {upload.name: upload for upload in settings.uploads if upload.name in wanted},
        [download for download in settings.downloads if download.name in wanted],
    )


def _build(
    settings: Settings,
    clock: Clock,
    database: Database,
    owner: str,
    remotes: Mapping[str, Remote],
    keys: ApiKeys,
    uploads: Mapping[str, Upload],
    downloads: Sequence[Download],
    adopt: bool,
) -> Application:
    documents, cursors = Documents(database, clock), Cursors(database, clock)
    gates, batch_trials = Gates(database), BatchTrials(cursors, settings.codat.batch)

    wakeups = Wakeups()
    transfers = Transfers(database, clock, owner, wakeups)
    reconciler = Reconciler(
        documents=documents,
        cursors=cursors,
        rules=RULES,
        clock=clock,
        wakeups=wakeups,
        adopt=adopt,
    )
    scan_scheduler = ScanScheduler(reconciler, uploads, clock, wakeups, settings.rescan)
    gate_manager = GateManager(
        transfers=transfers,
        gates=gates,
        clock=clock,
        backoff=policy.Backoff(settings.retry.initial, settings.retry.factor, settings.retry.max),
        give_up_after=settings.retry.give_up_after,
        key_refused=keys.read,
    )
    uploader = _uploader(gate_manager, uploads, remotes, transfers, documents, clock, batch_trials, wakeups)
    scheduler = Scheduler(
        database=database,
        transfers=transfers,
        documents=documents,
        gates=gates,
        uploader=uploader,
        gate_manager=gate_manager,
        clock=clock,
        wakeups=wakeups,
        maintenance=Maintenance(transfers, clock, settings.state_dir),
        workers=settings.workers,
        company_limits={"codat": settings.codat.concurrent_per_company},
        batch_trials=batch_trials,
        reserve={"codat": settings.codat.quota_reserve},
    )
    return Application(
        settings=settings,
        clock=clock,
        database=database,
        documents=documents,
        transfers=transfers,
        gates=gates,
        reports=Reports(database),
        remotes=remotes,
        reconciler=reconciler,
        scan_scheduler=scan_scheduler,
        batch_trials=batch_trials,
        gate_manager=gate_manager,
        scheduler=scheduler,
        downloader=_downloader(settings, remotes, cursors, transfers, clock),
        uploads=uploads,
        downloads=downloads,
    )


def _uploader(
    gate_manager: GateManager,
    uploads: Mapping[str, Upload],
    remotes: Mapping[str, Remote],
    transfers: Transfers,
    documents: Documents,
    clock: Clock,
    batch_trials: BatchTrials,
    wakeups: Wakeups,
) -> Uploader:
    async def delivered(mapping: str) -> None:
        if mapping in uploads:
            await tidy(uploads[mapping], documents)

    return Uploader(
        gate_manager=gate_manager,
        uploads=uploads,
        remotes=remotes,
        transfers=transfers,
        clock=clock,
        wakeups=wakeups,
        delivered=delivered,
        batch_trials=batch_trials,
    )


def _downloader(
    settings: Settings, remotes: Mapping[str, Remote], cursors: Cursors, transfers: Transfers, clock: Clock
) -> Downloader:
    codat, wootiv = remotes.get("codat"), remotes.get("wootiv")
    return Downloader(
        codat=codat if isinstance(codat, Codat) else None,
        wootiv=wootiv if isinstance(wootiv, Wootiv) else None,
        cursors=cursors,
        transfers=transfers,
        clock=clock,
        spool=spool(settings),
    )


def _clear_spool(state_dir: Path, owner: str) -> None:
    """Remove half downloads of processes that no longer live; parts that can be resumed stay."""
    folder = state_dir / "spool"
    left = {path.name: "-".join(path.name.split("-")[:2]) for path in folder.iterdir() if path.is_dir()}
    gone = locks.dead(state_dir, set(left.values()), owner)
    for name, whose in left.items():
        if whose in gone:
            shutil.rmtree(folder / name, ignore_errors=True)


async def accept_empty(settings: Settings, mapping: str) -> int:
    """A person says that the mapping's folder was emptied on purpose: number of documents that are absent now."""
    uploads, _ = select_mappings(settings, [mapping])
    async with open_application(settings, mappings=[mapping], downloads=False) as app:
        total = 0
        for upload in uploads.values():
            if not scan.is_empty(upload.root):
                raise FolderError(f"{upload.root} is not empty")
            for folder in await app.documents.folders(upload.name):
                looks = (await app.documents.known(upload.name, [folder])).get(folder, set())
                paths = [joined(folder, look[0]) for look in looks]
                total += await app.documents.vanished(upload.name, paths)
        return total
