"""Build the objects of one configuration: open the database and the remotes, connect them, close them again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from docferry import policy
from docferry.app.antivirus import forget_gates, open_antivirus
from docferry.app.receipts import ReceiptKeeper
from docferry.app.remotes import RULES, direct_mappings, open_remotes, spool
from docferry.clock import Clock, ServerClock, SystemClock
from docferry.detect.reconciler import Reconciler
from docferry.detect.scan_scheduler import ScanScheduler
from docferry.detect.shared_folders import SharedFolders
from docferry.download.codat_days import CodatDays, CodatSource
from docferry.download.downloader import Downloader
from docferry.download.publisher import Publisher
from docferry.download.spool import Spool
from docferry.download.wootiv_objects import WootivObjects
from docferry.errors import ConfigError, FolderError, StateError
from docferry.files import scan
from docferry.files.safe_open import Root
from docferry.memory import configure_malloc
from docferry.model import joined
from docferry.remotes.codat.client import Codat
from docferry.remotes.protocol import Remote
from docferry.remotes.wootiv.client import Wootiv
from docferry.remotes.wootiv.direct import BulkPolicy
from docferry.senders.pool import SenderPool, sender_count
from docferry.settings import Download, Settings, Upload
from docferry.settings.outbox import outboxes
from docferry.store import locks, schema
from docferry.store.cursors import Cursors
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.downloads import Downloads
from docferry.store.gates import Gates
from docferry.store.opening import open_database
from docferry.store.owners import HeartbeatOwners, LocalOwners, Owners
from docferry.store.refusals import refusal_logged
from docferry.store.reports import Reports
from docferry.store.scan_leases import ScanLeases
from docferry.store.server_clock import read_server_clock
from docferry.store.state_dir import prepare_state_dir, usable
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry
from docferry.upload.after_upload import AfterUpload
from docferry.upload.batch_trials import BatchTrials
from docferry.upload.context import QueueTables, UploadContext
from docferry.upload.gates import GateManager
from docferry.upload.maintenance import Maintenance
from docferry.upload.scheduler import Scheduler, SchedulerLimits
from docferry.upload.sources import SourceOpener
from docferry.upload.uploader import Uploader
from docferry.wakeups import Wakeups


class Application(Struct):
    """Hold the objects of one configuration, for the daemon, one pass and the commands."""

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
    shares: SharedFolders
    batch_trials: BatchTrials
    gate_manager: GateManager
    uploader: Uploader
    scheduler: Scheduler
    after_upload: AfterUpload
    downloader: Downloader
    uploads: Mapping[str, Upload]
    downloads: Sequence[Download]
    telemetry: Telemetry
    receipts: ReceiptKeeper
    wakeups: Wakeups


class _Tables(Struct, frozen=True):
    """Hold the tables of the database, and the channel that announces their changes."""

    queue: QueueTables
    cursors: Cursors
    downloads: Downloads
    wakeups: Wakeups


def database_path(settings: Settings) -> Path:
    """Return the path of the queue's database."""
    return settings.state_dir / "docferry.db"


def database_location(settings: Settings) -> Path | str:
    """Return the path of the SQLite queue, or the URL of the PostgreSQL queue."""
    return database_path(settings) if settings.database_url is None else settings.database_url.get_secret_value()


@asynccontextmanager
async def open_application(
    settings: Settings,
    *,
    mappings: Sequence[str] = (),
    downloads: bool = True,
    adopt: bool = False,
    write_timeout: float = float("inf"),
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Application]:
    """Open everything for `mappings` (all when empty) and their outboxes; wait `patience` seconds for a full disk.

    Raises:
        ConfigError: A name in `mappings` does not exist.
        StateError: The state folder or the database cannot be used.
    """
    configure_malloc()
    uploads, wanted_downloads = select_mappings(settings, mappings)
    await anyio.to_thread.run_sync(prepare_state_dir, settings.state_dir)
    boxes = outboxes(uploads.values(), settings.state_dir, settings.host_name)
    await anyio.to_thread.run_sync(_make_folders, [box.root for box in boxes.values()])
    uploads |= boxes
    clock: Clock = SystemClock()
    async with AsyncExitStack() as stack:
        owner = stack.enter_context(locks.lease_owner(settings.state_dir))
        location, host = database_location(settings), settings.host_name
        if isinstance(location, Path):
            await anyio.to_thread.run_sync(schema.check_integrity, location)
        database = await stack.enter_async_context(open_database(location, write_timeout, host))
        await anyio.to_thread.run_sync(_clear_spool, settings.state_dir, owner)
        owners: Owners = LocalOwners(settings.state_dir, owner)
        if settings.database_url is not None:
            clock = shared_clock = await read_server_clock(database, clock)
            owner = f"{host}:{owner}"
            owners = await stack.enter_async_context(_join_queue(database, shared_clock, owner, host))
        owners.unreadable |= settings.unanswered.keys() & uploads.keys()
        receipts = ReceiptKeeper(settings, database, clock)
        await receipts.check_copy(adopt=adopt)
        senders = SenderPool(sender_count(settings.senders))
        remotes = open_remotes(settings, clock, senders)
        await stack.enter_async_context(senders.run())
        for remote in remotes.values():
            stack.push_async_callback(remote.aclose)
        tables = _open_tables(database, clock, owner, owners)
        telemetry = telemetry or Telemetry(clock)
        context = UploadContext(clock, tables.queue, uploads, remotes, tables.wakeups, telemetry, senders)
        app = _build(settings, context, tables, wanted_downloads if downloads else [], receipts)
        for upload in uploads.values():
            with refusal_logged(f"changed settings of {upload.name}"):
                await app.reconciler.detect_retarget(upload)
        with refusal_logged("gates of the antivirus"):
            await forget_gates(settings, app.gates)
        yield app


@asynccontextmanager
async def _join_queue(database: Database, clock: ServerClock, owner: str, host: str) -> AsyncIterator[Owners]:
    """Register this process in a shared queue, send heartbeats, and remove the process at the end."""
    owners = HeartbeatOwners(database, clock, owner, host)
    with refusal_logged("the first heartbeat"):  # nothing is sent until one is confirmed
        await owners.join()
    async with anyio.create_task_group() as group:
        group.start_soon(owners.run, name="queue heartbeat")
        yield owners
        group.cancel_scope.cancel()
    with contextlib.suppress(StateError):  # the server cannot be reached: other hosts take over after `DEAD_AFTER_S`
        await owners.leave()


def select_mappings(settings: Settings, mappings: Sequence[str]) -> tuple[dict[str, Upload], list[Download]]:
    """Return the upload and download mappings of these names, all when empty; ConfigError names an unknown one."""
    known = [upload.name for upload in settings.uploads] + [download.name for download in settings.downloads]
    unknown = [name for name in mappings if name not in known]
    if unknown:
        raise ConfigError([f'no mapping is named "{name}"; there are: {", ".join(known)}' for name in unknown])
    wanted = set(mappings or known)
    return (
        {upload.name: upload for upload in settings.uploads if upload.name in wanted},
        [download for download in settings.downloads if download.name in wanted],
    )


def _open_tables(database: Database, clock: Clock, owner: str, owners: Owners) -> _Tables:
    wakeups = Wakeups()
    transfers = Transfers(database, clock, owner, wakeups)
    queue = QueueTables(database, Documents(database, clock), transfers, Gates(database), owners)
    return _Tables(queue, Cursors(database, clock), Downloads(database, clock), wakeups)


def _build(
    settings: Settings, context: UploadContext, tables: _Tables, downloads: Sequence[Download], receipts: ReceiptKeeper
) -> Application:
    queue, clock = context.queue, context.clock
    adopt = receipts.adopt_before
    local = SystemClock()  # times of files are compared with the clock of this machine
    reconciler = Reconciler(queue.documents, tables.downloads, RULES, local, context.wakeups, adopt=adopt)
    leases = ScanLeases(queue.database, queue.transfers.owner.partition("#")[0]) if not queue.owners.is_local else None
    shares = SharedFolders(queue.documents, tables.cursors, queue.owners, context.uploads, leases)
    retry = settings.retry
    backoff = policy.Backoff(retry.initial, retry.factor, retry.max)
    gate_manager = GateManager(queue.gates, clock, policy.RetryPolicy(backoff, retry.give_up_after))
    bulk = BulkPolicy(direct_mappings(settings), settings.wootiv.batch)
    batch_trials = BatchTrials(tables.cursors, queue.transfers, settings.codat.batch, bulk)
    sources = SourceOpener(context, gate_manager, antivirus=open_antivirus(settings, gate_manager))
    uploader = Uploader(context, gate_manager, batch_trials, sources)
    maintenance = Maintenance(queue.transfers, clock, queue.owners)
    return Application(
        settings=settings,
        clock=clock,
        database=queue.database,
        documents=queue.documents,
        transfers=queue.transfers,
        gates=queue.gates,
        reports=Reports(queue.database),
        remotes=context.remotes,
        reconciler=reconciler,
        scan_scheduler=ScanScheduler(reconciler, context.uploads, local, context.wakeups, settings.rescan, shares),
        shares=shares,
        batch_trials=batch_trials,
        gate_manager=gate_manager,
        uploader=uploader,
        scheduler=Scheduler(context, _limits(settings), uploader, gate_manager, batch_trials, maintenance),
        after_upload=AfterUpload(context.uploads, queue.documents, context.wakeups),
        downloader=_open_downloader(settings, context, tables),
        uploads=context.uploads,
        downloads=downloads,
        telemetry=context.telemetry,
        receipts=receipts,
        wakeups=context.wakeups,
    )


def _limits(settings: Settings) -> SchedulerLimits:
    codat = settings.codat
    return SchedulerLimits(settings.workers, {"codat": codat.concurrent_per_company}, {"codat": codat.quota_reserve})


def _open_downloader(settings: Settings, context: UploadContext, tables: _Tables) -> Downloader:
    codat, wootiv = context.remotes.get("codat"), context.remotes.get("wootiv")
    transfers, clock = context.queue.transfers, context.clock
    publisher = Publisher(tables.downloads, context.telemetry)
    space = Spool(spool(settings), settings.spool_max, transfers.owner.rpartition(":")[2])
    days = objects = None
    if isinstance(codat, Codat):
        days = CodatDays(CodatSource(codat, tables.cursors, transfers, clock), publisher, space)
    if isinstance(wootiv, Wootiv):
        objects = WootivObjects(wootiv, tables.cursors, clock, publisher, space)
    return Downloader(publisher, days, objects)


def _clear_spool(state_dir: Path, owner: str) -> None:
    """Remove the unfinished downloads of dead processes; parts that can be resumed stay."""
    folder = state_dir / "spool"
    with usable(state_dir):
        left = {path.name: "-".join(path.name.split("-")[:2]) for path in folder.iterdir() if path.is_dir()}
    gone = locks.dead_owners(state_dir, set(left.values()), owner)
    for name, whose in left.items():
        if whose in gone:
            shutil.rmtree(folder / name, ignore_errors=True)


def _make_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{folder} in the state folder cannot be created: {error.strerror}") from error


async def accept_empty(settings: Settings, mapping: str) -> int:
    """Accept that the folder of a mapping was emptied on purpose; return the number of documents removed from it."""
    uploads, _ = select_mappings(settings, [mapping])
    async with open_application(settings, mappings=[mapping], downloads=False) as app:
        return sum([await forget_emptied(app.documents, upload) for upload in uploads.values()])


async def accept_share(settings: Settings, mapping: str) -> None:
    """Accept the folder of a shared mapping as the share, although it contains no known document."""
    uploads, _ = select_mappings(settings, [mapping])
    async with open_application(settings, mappings=[mapping], downloads=False) as app:
        await app.shares.accept(uploads[mapping])


async def forget_emptied(documents: Documents, upload: Upload) -> int:
    """Mark the documents of an emptied folder absent; return their number. Raises FolderError if it is not empty."""
    if not await anyio.to_thread.run_sync(scan.is_empty, Root.of(upload)):
        raise FolderError(f"{upload.root} is not empty")
    total = 0
    for folder in await documents.folders(upload.name):
        looks = (await documents.known(upload.name, [folder])).get(folder, set())
        total += await documents.mark_gone(upload.name, [joined(folder, look[0]) for look in looks])
    return total
