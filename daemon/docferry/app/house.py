"""Builds the house for one configuration: opens the database, the remotes and the rooms, and closes them again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from docferry import policy
from docferry.app.shores import RULES, KeyRing, open_remotes, spool
from docferry.clock import Clock, SystemClock
from docferry.errors import ConfigError, FolderError
from docferry.files import scan
from docferry.model import joined
from docferry.remotes.base import Remote
from docferry.remotes.codat import Codat
from docferry.remotes.wootiv import Wootiv
from docferry.settings import Download, Settings, Upload
from docferry.store import schema, tenure
from docferry.store.bookmarks import Bookmarks
from docferry.store.database import Database, open_database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.reports import Reports
from docferry.store.transfers import Transfers
from docferry.work.batches import Batches
from docferry.work.carry import Carrier
from docferry.work.gatekeeper import Gatekeeper
from docferry.work.intake import Intake
from docferry.work.lookout import Lookout
from docferry.work.pull import Puller
from docferry.work.runner import Runner
from docferry.work.tidy import tidy
from docferry.work.upkeep import Upkeep


@dataclass(slots=True)
class House:
    """Every room of one configuration."""

    settings: Settings
    clock: Clock
    database: Database
    documents: Documents
    transfers: Transfers
    gates: Gates
    reports: Reports
    remotes: Mapping[str, Remote]
    intake: Intake
    lookout: Lookout
    batches: Batches
    keeper: Gatekeeper
    runner: Runner
    puller: Puller
    uploads: Mapping[str, Upload]
    downloads: Sequence[Download]


def database_path(settings: Settings) -> Path:
    """Where the queue is kept."""
    return settings.state_dir / "docferry.db"


@asynccontextmanager
async def open_house(
    settings: Settings,
    *,
    mappings: Sequence[str] = (),
    downloads: bool = True,
    adopt: bool = False,
    patience: float = float("inf"),
) -> AsyncIterator[House]:
    """The rooms for `mappings` (all when empty). ConfigError: no such mapping; StateError: the state folder. A full
    disk is waited for `patience` seconds."""
    uploads, pulls = chosen(settings, mappings)
    await anyio.to_thread.run_sync(tenure.prepare_state_dir, settings.state_dir)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        owner = stack.enter_context(tenure.owner(settings.state_dir))
        await anyio.to_thread.run_sync(schema.read_through, database_path(settings))
        database = await stack.enter_async_context(open_database(database_path(settings), patience))
        await anyio.to_thread.run_sync(_clear_spool, settings.state_dir, owner)
        keys = KeyRing(settings)
        remotes = open_remotes(settings, keys, clock)
        for remote in remotes.values():
            stack.push_async_callback(remote.aclose)
        house = _furnish(settings, clock, database, owner, remotes, keys, uploads, pulls if downloads else [], adopt)
        for upload in uploads.values():
            await house.intake.follow(upload)
        yield house


def chosen(settings: Settings, mappings: Sequence[str]) -> tuple[dict[str, Upload], list[Download]]:
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


def _furnish(
    settings: Settings,
    clock: Clock,
    database: Database,
    owner: str,
    remotes: Mapping[str, Remote],
    keys: KeyRing,
    uploads: Mapping[str, Upload],
    downloads: Sequence[Download],
    adopt: bool,
) -> House:
    documents, bookmarks = Documents(database, clock), Bookmarks(database, clock)
    gates, batches = Gates(database), Batches(bookmarks, settings.codat.batch)

    def look_again(mapping: str, path: bytes) -> None:
        lookout.hint(mapping, {path})

    transfers = Transfers(database, clock, owner, orphaned=look_again)
    intake = Intake(
        documents=documents,
        bookmarks=bookmarks,
        rules=RULES,
        clock=clock,
        queued=lambda: runner.wake(),
        watching=lambda: lookout.stir(),
        adopt=adopt,
    )
    lookout = Lookout(intake, uploads, clock, settings.rescan)
    keeper = Gatekeeper(
        transfers=transfers,
        gates=gates,
        clock=clock,
        backoff=policy.Backoff(settings.retry.initial, settings.retry.factor, settings.retry.max),
        give_up_after=settings.retry.give_up_after,
        key_refused=keys.read,
    )
    carrier = _carrier(keeper, uploads, remotes, transfers, documents, clock, batches, look_again)
    runner = Runner(
        database=database,
        transfers=transfers,
        documents=documents,
        gates=gates,
        carrier=carrier,
        keeper=keeper,
        clock=clock,
        upkeep=Upkeep(transfers, clock, settings.state_dir),
        workers=settings.workers,
        company_limits={"codat": settings.codat.concurrent_per_company},
        batches=batches,
        reserve={"codat": settings.codat.quota_reserve},
    )
    return House(
        settings=settings,
        clock=clock,
        database=database,
        documents=documents,
        transfers=transfers,
        gates=gates,
        reports=Reports(database),
        remotes=remotes,
        intake=intake,
        lookout=lookout,
        batches=batches,
        keeper=keeper,
        runner=runner,
        puller=_puller(settings, remotes, bookmarks, transfers, clock),
        uploads=uploads,
        downloads=downloads,
    )


def _carrier(
    keeper: Gatekeeper,
    uploads: Mapping[str, Upload],
    remotes: Mapping[str, Remote],
    transfers: Transfers,
    documents: Documents,
    clock: Clock,
    batches: Batches,
    look_again: Callable[[str, bytes], None],
) -> Carrier:
    async def delivered(mapping: str) -> None:
        if mapping in uploads:
            await tidy(uploads[mapping], documents)

    return Carrier(
        keeper=keeper,
        uploads=uploads,
        remotes=remotes,
        transfers=transfers,
        clock=clock,
        look_again=look_again,
        delivered=delivered,
        batches=batches,
    )


def _puller(
    settings: Settings, remotes: Mapping[str, Remote], bookmarks: Bookmarks, transfers: Transfers, clock: Clock
) -> Puller:
    codat, wootiv = remotes.get("codat"), remotes.get("wootiv")
    return Puller(
        codat=codat if isinstance(codat, Codat) else None,
        wootiv=wootiv if isinstance(wootiv, Wootiv) else None,
        bookmarks=bookmarks,
        transfers=transfers,
        clock=clock,
        spool=spool(settings),
    )


def _clear_spool(state_dir: Path, owner: str) -> None:
    """Remove half downloads of processes that no longer live; parts that can be resumed stay."""
    folder = state_dir / "spool"
    left = {path.name: "-".join(path.name.split("-")[:2]) for path in folder.iterdir() if path.is_dir()}
    gone = tenure.dead(state_dir, set(left.values()), owner)
    for name, whose in left.items():
        if whose in gone:
            shutil.rmtree(folder / name, ignore_errors=True)


async def accept_empty(settings: Settings, mapping: str) -> int:
    """A person says that the mapping's folder was emptied on purpose: number of documents that are absent now."""
    uploads, _ = chosen(settings, [mapping])
    async with open_house(settings, mappings=[mapping], downloads=False) as house:
        total = 0
        for upload in uploads.values():
            if not scan.is_empty(upload.root):
                raise FolderError(f"{upload.root} is not empty")
            for folder in await house.documents.folders(upload.name):
                looks = (await house.documents.known(upload.name, [folder])).get(folder, set())
                paths = [joined(folder, look[0]) for look in looks]
                total += await house.documents.vanished(upload.name, paths)
        return total
