"""One download round: list, fetch what holds something new, land each file, and remember how far it got."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath

import anyio.to_thread

from docferry import logs
from docferry.clock import Clock
from docferry.errors import ArchiveError
from docferry.files import publish, unzip
from docferry.files.placement import Content
from docferry.model import Target
from docferry.remotes.codat.client import Codat, Listed
from docferry.remotes.wootiv.client import Wootiv
from docferry.settings import Download
from docferry.store.cursors import Cursors
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry

log = logs.get("pull")

#: A day whose archive lacks what the list names is fetched again for so long, then taken as it is.
PATIENCE = timedelta(days=2)


@dataclass(slots=True)
class Brought:
    """What came down since the start."""

    files: int = 0
    bytes: int = 0


class Downloader:
    """Brings files down; one round of one mapping at a time."""

    def __init__(
        self,
        *,
        codat: Codat | None,
        wootiv: Wootiv | None,
        cursors: Cursors,
        downloads: Downloads,
        transfers: Transfers,
        clock: Clock,
        spool: Path,
    ) -> None:
        self._codat = codat
        self._wootiv = wootiv
        self._cursors = cursors
        self._downloads = downloads
        self._transfers = transfers
        self._clock = clock
        self._spool = spool
        self.brought = Brought()
        self.telemetry = Telemetry(clock)

    async def pull(self, download: Download) -> None:
        """One round of a mapping. RemoteError, FolderError, ArchiveError: what landed stays, the rest comes later."""
        if download.source == "codat" and self._codat is not None:
            for company in download.companies:
                await self._company(self._codat, download, company)
        elif self._wootiv is not None:
            for name in download.objects:
                await self._object(self._wootiv, download, name)

    # -- Codat: days ---------------------------------------------------------------------------------------------

    async def _company(self, codat: Codat, download: Download, company: str) -> None:
        days: dict[str, list[Listed]] = {}
        for listed in await codat.listing(company):
            days.setdefault(listed.uploaded[:10], []).append(listed)
        marks = await self._cursors.get_all(f"day/{download.name}/{company}/")
        broken: ArchiveError | None = None
        for day, entries in sorted(days.items()):
            if not _is_day(day) or (download.since is not None and date.fromisoformat(day) < download.since):
                continue
            others = entries if download.include_own else await self._not_ours(company, day, entries)
            mark, subject = _fingerprint(others), f"day/{download.name}/{company}/{day}"
            if not others or marks.get(subject) == mark:
                continue
            try:
                whole = await self._day(codat, download, company, day, len(entries))
            except ArchiveError as error:
                broken = error  # one bad day does not keep the others from coming down
                log.warning("day_broken", str(error), mapping=download.name, day=day)
                continue
            if whole:
                await self._cursors.set(subject, mark)
        if broken is not None:
            raise broken

    async def _not_ours(self, company: str, day: str, entries: Sequence[Listed]) -> list[Listed]:
        """The entries of a day that our own uploads of that day do not explain by name."""
        begin = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        accounted = await self._transfers.accounted(
            Target("codat", company), names_since=begin, digests_since=begin, until=begin + 86_400
        )
        ours = Counter(accounted.names)
        left = []
        for listed in entries:
            if ours[listed.file_name or ""] > 0:
                ours[listed.file_name or ""] -= 1
            else:
                left.append(listed)
        return left

    async def _day(self, codat: Codat, download: Download, company: str, day: str, listed: int) -> bool:
        """Fetch and land one day's archive; False while it lacks something that the list has."""
        work = self._spool / f"{self._transfers.owner}-{uuid.uuid4().hex}"
        await anyio.to_thread.run_sync(work.mkdir)
        try:
            zipped = work / "day.zip"
            await codat.fetch(company, day, zipped)
            members = await anyio.to_thread.run_sync(unzip.unzip, zipped, work / "members")
            await self._land(download, company, day, members)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(work, ignore_errors=True))
        whole = len(members) >= listed
        if not whole:
            log.warning("day_incomplete", mapping=download.name, day=day, listed=listed, in_archive=len(members))
        old = self._clock.now() - datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() > PATIENCE.total_seconds()
        return whole or old

    async def _land(self, download: Download, company: str, day: str, members: Sequence[unzip.Member]) -> None:
        origins = {member.spool: f"{company}/{day}/{member.folder}/{member.name}" for member in members}
        known = {
            (a.origin, a.sha256): a for a in await self._downloads.known(download.name, sorted(set(origins.values())))
        }
        ours: set[str] = set()
        if not download.include_own:
            ours = await self._downloads.own_digests(company, {member.sha256 for member in members})
        for member in members:
            origin = origins[member.spool]
            arrival = known.get((origin, member.sha256))
            if arrival is not None and arrival.published:
                continue
            if member.sha256 in ours:
                own = DownloadedFile(download.name, origin, member.sha256, None, True, member.size)
                await self._downloads.record([own])
                continue
            relative = publish.render_layout(
                download.layout, date=day, source=member.folder, name=member.name, company_id=company
            )
            await self._put(download, download.folder_of(company), relative, origin, member.spool, member.sha256)

    # -- Wootiv: objects -----------------------------------------------------------------------------------------

    async def _object(self, wootiv: Wootiv, download: Download, name: str) -> None:
        subject = f"object/{download.name}/{name}"
        spool = self._spool / f"object-{hashlib.sha256(subject.encode()).hexdigest()[:32]}.part"
        fetched = await wootiv.fetch(name, spool, await self._cursors.get(subject))
        if not fetched.changed:
            return
        sha256 = (await anyio.to_thread.run_sync(publish.content_of, spool)).sha256
        origin = name
        if not any(a.sha256 == sha256 and a.published for a in await self._downloads.known(download.name, [origin])):
            await self._put(download, download.folder_of(None), self._relative(download, name), origin, spool, sha256)
        await anyio.to_thread.run_sync(lambda: spool.unlink(missing_ok=True))
        if fetched.etag is not None:
            await self._cursors.set(subject, fetched.etag)

    def _relative(self, download: Download, name: str) -> PurePosixPath:
        """An object lies under its own name, unless the mapping says otherwise."""
        folder, _, last = name.rpartition("/")
        today = datetime.fromtimestamp(self._clock.now(), UTC).date().isoformat()
        if "layout" in download.model_fields_set:
            return publish.render_layout(download.layout, date=today, source="wootiv", name=last, company_id="")
        return PurePosixPath(*[publish.safe_name(part) for part in (*folder.split("/"), last) if part])

    # -- both ----------------------------------------------------------------------------------------------------

    async def _put(
        self, download: Download, root: Path, relative: PurePosixPath, origin: str, spool: Path, sha256: str
    ) -> None:
        """Note where the file will lie before it appears there: whoever sees it knows that it came down."""
        size = (await anyio.to_thread.run_sync(spool.stat)).st_size
        content = Content(sha256, size)
        target = await anyio.to_thread.run_sync(publish.choose, root, relative, content)
        await self._downloads.record([DownloadedFile(download.name, origin, sha256, bytes(target), False, size)])
        # It is another path when somebody was faster: then that one is known as come down.
        lies = await anyio.to_thread.run_sync(publish.put, spool, target, root, content)
        await self._downloads.record([DownloadedFile(download.name, origin, sha256, bytes(lies), True, size)])
        self.brought.files += 1
        self.brought.bytes += size
        self.telemetry.downloaded(download.name)
        log.info("landed", mapping=download.name, path=bytes(lies), size=size)


def _fingerprint(entries: Sequence[Listed]) -> str:
    facts = sorted([e.file_name or "", e.uploaded, e.source_type or ""] for e in entries)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
