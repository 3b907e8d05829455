"""Compare the files of a remote with the sent documents, and fetch files, for `docferry remote`."""

from __future__ import annotations

import shutil
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from enum import StrEnum
from pathlib import Path, PurePosixPath

from anyio.to_thread import run_sync
from msgspec import Struct

from docferry.clock import Clock
from docferry.download.codat_days import day_of, neighbours
from docferry.errors import ConfigError
from docferry.files import publish, unzip
from docferry.model import KnownUploads, Target
from docferry.remotes.codat.client import Codat
from docferry.remotes.protocol import NOTHING
from docferry.remotes.wootiv.client import Wootiv
from docferry.store.database import Database
from docferry.store.reports import Reports
from docferry.store.transfers import Transfers


class Whose(StrEnum):
    """Name the relation of a file to docferry."""

    OURS = "ours"  # docferry sent it
    MISSING = "missing"  # docferry sent it, but the remote does not list it
    OTHER = "other"  # another program or person uploaded it


class RemoteFile(Struct, frozen=True):
    """Describe one listed or missing file of a remote; unknown values are None."""

    name: str
    whose: Whose
    uploaded: str | None = None
    source: str | None = None
    size: int | None = None  # bytes


async def of_company(codat: Codat, company: str, database: Database | None, clock: Clock) -> list[RemoteFile]:
    """Return the files of a company. No document counts as missing within the list lag."""
    listed = await codat.listing(company)
    sent, settled = NOTHING, NOTHING
    if database is not None:
        transfers, target, now = Transfers(database, clock, "remote"), Target("codat", company), clock.now()
        sent = await transfers.accounted(target, names_since=0.0, digests_since=now, until=now)
        until = now - codat.absent_after
        settled = await transfers.accounted(target, names_since=0.0, digests_since=now, until=until)
    left, old = _counted(sent), _counted(settled)
    found = []
    for each in listed:
        name = each.file_name or each.display_name or ""
        whose = Whose.OURS if left[_key(name)] > 0 else Whose.OTHER
        left[_key(name)] -= 1
        found.append(RemoteFile(name, whose, each.uploaded or None, each.source_type))
    missing = {name: min(number, old[name]) for name, number in left.items()}
    return found + [RemoteFile(name, Whose.MISSING) for name, number in missing.items() for _ in range(number)]


async def of_wootiv(wootiv: Wootiv, mappings: Sequence[str], database: Database | None) -> list[RemoteFile]:
    """Return the objects that Wootiv lists. Objects of `mappings` count as sent by docferry."""
    listed = await wootiv.objects()
    ours = await _sent_names(database, mappings)
    found = []
    for each in listed:
        whose = Whose.OURS if each.name.strip("/") in ours else Whose.OTHER
        found.append(RemoteFile(each.name, whose, each.modified, size=each.size))
    missing = ours - {each.name.strip("/") for each in listed}
    return found + [RemoteFile(name, Whose.MISSING) for name in sorted(missing)]


async def get_from_codat(codat: Codat, company: str, day: date | None, name: str | None, into: Path) -> list[Path]:
    """Download the files of a day, all or those of one name, into a folder; return their paths.

    Without a day, find the name in the list; without both, download all files. Raises ConfigError if there is no such
    file, RemoteError, ArchiveError and FolderError.
    """
    if name is None or day is not None:
        placed = await _get_day(codat, company, day.isoformat() if day else None, name, into)
    else:
        placed = await _get_named(codat, company, name, into)
    if name is not None and not placed:
        raise ConfigError([f'the archive of Codat has no file "{name}"; see `docferry remote ls`'])
    return placed


async def get_from_wootiv(wootiv: Wootiv, name: str, into: Path) -> list[Path]:
    """Download an object into a folder under its original name; return its path."""
    with _work_folder(into) as work:
        spool = Path(work) / "object"
        await wootiv.fetch(name, spool, None, shutil.disk_usage(into).free)
        parts = [publish.safe_name(part) for part in name.split("/") if part]
        return [await run_sync(_place, spool, PurePosixPath(*parts), into)]


async def _get_named(codat: Codat, company: str, name: str, into: Path) -> list[Path]:
    """Download the files with a name from the archive of the listed day, else of the day before or after.

    If the list has no readable date, search all archives.
    """
    listed = [each for each in await codat.listing(company) if _key(each.file_name or "") == _key(name)]
    if not listed:
        raise ConfigError([f'Codat lists no file "{name}" of company {company}; see `docferry remote ls`'])
    placed: list[Path] = []
    for listed_day in sorted({day_of(each.uploaded) for each in listed}, key=str):
        days = [None] if listed_day is None else [listed_day, *neighbours(listed_day, time.time())]
        for tried in days:
            if here := await _get_day(codat, company, tried, name, into):
                placed += here
                break
    return placed


async def _get_day(codat: Codat, company: str, day: str | None, name: str | None, into: Path) -> list[Path]:
    with _work_folder(into) as work:
        archive, free = Path(work) / "files.zip", shutil.disk_usage(into).free
        await codat.fetch(company, day, archive, free)
        extracted = await run_sync(unzip.unzip, archive, Path(work) / "members", unzip.Caps(size=free))
        refused = [each.problem for each in extracted.refused if name is None or _key(each.name) == _key(name)]
        placed = []
        for member in extracted.members:
            if name is None or _key(member.name) == _key(name):
                relative = PurePosixPath(publish.safe_name(member.name))
                placed.append(await run_sync(_place, member.spool, relative, into))
    if refused:
        raise ConfigError(refused)
    return placed


def _work_folder(into: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a private folder on the file system of the output. Scans skip it."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".docferry-get-", dir=into)
    except OSError as error:
        raise ConfigError([f"{into} cannot be written: {(error.strerror or str(error)).lower()}"]) from error


def _place(spool: Path, relative: PurePosixPath, into: Path) -> Path:
    root = into.absolute()
    content = publish.content_of(spool)
    return publish.put(spool, publish.choose(root, relative, content), root, content)


async def _sent_names(database: Database | None, mappings: Sequence[str]) -> set[str]:
    if database is None:
        return set()
    reports = Reports(database)
    rows = [row for mapping in mappings for row in await reports.rows(mapping=mapping, states=["sent"])]
    return {row.remote_name.strip("/") for row in rows}


def _counted(known: KnownUploads) -> Counter[str]:
    counts = Counter[str]()
    names: Mapping[str, int] = known.names
    for name, number in names.items():
        counts[_key(name)] += number
    return counts


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)
