"""Download the files that customers uploaded at Codat: list a company, and fetch the ZIPs of days with new files."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import anyio
import anyio.to_thread
from msgspec import Struct, field

from docferry import logs
from docferry.clock import Clock
from docferry.download.publisher import Arrived, Publisher
from docferry.download.retries import Gap, Gaps
from docferry.download.spool import Spool, room_in
from docferry.errors import ArchiveError, StatementRefused
from docferry.files import publish, unzip
from docferry.files.placement import Content
from docferry.model import Target, escaped
from docferry.remotes.codat.client import Codat
from docferry.remotes.codat.company_list import ListedFile
from docferry.settings import Download
from docferry.store.cursors import Cursors
from docferry.store.downloads import DownloadedFile, indexable
from docferry.store.refusals import refusal_logged
from docferry.store.transfers import Transfers

log = logs.get("download")


class CodatSource(Struct, frozen=True):
    """Hold the client of one Codat, and the transfers that identify docferry's own uploads."""

    codat: Codat
    cursors: Cursors
    transfers: Transfers
    clock: Clock


class _DayRound(Struct):
    """Hold the listed files of one day, and the results of their download."""

    day: str
    wanted: Counter[str]  # listed names of other uploaders, and of own uploads that are still doubtful
    explained: Counter[str]  # listed names of own uploads
    came: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def account_own(self, name: str) -> None:
        """Count an own upload found in the archive. A doubtful upload counts among the wanted names."""
        if self.explained[name] > 0:
            self.explained[name] -= 1
        elif self.wanted[name] > 0:
            self.came[name] += 1

    def missing(self) -> Counter[str]:
        """Return the listed names without a downloaded file; nothing if as many files came under other names."""
        missing = self.wanted - self.came
        return Counter() if self.came.total() >= self.wanted.total() else missing


class CodatDays:
    """Download the days of companies; one round of one company at a time."""

    def __init__(self, source: CodatSource, publisher: Publisher, spool: Spool) -> None:
        self._codat = source.codat
        self._cursors = source.cursors
        self._transfers = source.transfers
        self._clock = source.clock
        self._gaps = Gaps(source.cursors, source.clock)
        self._publisher = publisher
        self._spool = spool

    async def round(self, download: Download, company: str) -> list[str]:
        """Download the new files of a company; return a sentence for each problem.

        Raises RemoteError if the list cannot be read, and FolderError for the folder of the mapping.
        """
        days, problems = _by_day(await self._codat.listing(company))
        prefix = f"{download.name}/{company}/"
        done = await self._cursors.get_all(f"day/{prefix}")
        gaps = await self._gaps.load(prefix)
        for day, entries in sorted(days.items()):
            if download.since is not None and date.fromisoformat(day) < download.since:
                continue
            ours, others = ([], entries) if download.include_own else await self._split(company, day, entries)
            fingerprint = _fingerprint(others)
            if not others or done.get(f"day/{prefix}{day}") == fingerprint:
                continue
            gap = gaps.get(day)
            if self._gaps.is_due(gap, fingerprint):
                today = _DayRound(day, _names(others), _names(ours))
                gap = await self._fetch(download, company, today, gap, fingerprint)
            if gap is not None:
                problems.append(f"{day}: {gap.summary()}")
        return problems

    async def _fetch(
        self, download: Download, company: str, day: _DayRound, gap: Gap | None, fingerprint: str
    ) -> Gap | None:
        """Fetch a day, and its neighbours if a listed file is missing; return the remaining gap."""
        key = f"{download.name}/{company}/{day.day}"
        try:
            await self._day(download, company, day, day.day)
            for neighbour in neighbours(day.day, self._clock.now()) if day.missing() else ():
                if day.missing():
                    await self._day(download, company, day, neighbour)
            problems = [f"{name} is listed and is not in the archive" for name in sorted(day.missing().elements())]
            problems += day.refused
        except ArchiveError as error:
            problems = [str(error)]
        if problems:
            found = await self._gaps.note(key, gap, fingerprint, problems, download.every)
            if found is not None:
                log.warning("day_incomplete", found.summary(), mapping=download.name, company=company, day=day.day)
                return found
            log.error("day_given_up", "; ".join(problems), mapping=download.name, company=company, day=day.day)
        elif gap is not None:
            await self._gaps.close(key)
        await self._cursors.set(f"day/{key}", fingerprint)
        return None

    async def _day(self, download: Download, company: str, day: _DayRound, fetched_day: str) -> None:
        """Fetch the ZIP of one day and publish its members; of a neighbouring day, only the missing ones."""
        free = await anyio.to_thread.run_sync(self._spool.require)
        async with self._spool.work_folder() as work:
            zipped = work / "day.zip"
            with room_in(self._spool.folder):
                await self._codat.fetch(company, fetched_day, zipped, limit=free)
                free -= (await anyio.to_thread.run_sync(zipped.stat)).st_size
                caps = unzip.Caps(size=max(0, free), member=download.max_size or unzip.Caps().member)
                extracted = await anyio.to_thread.run_sync(unzip.unzip, zipped, work / "members", caps)
            await self._publish(download, company, day, fetched_day, extracted)

    async def _publish(
        self, download: Download, company: str, day: _DayRound, fetched_day: str, extracted: unzip.Extracted
    ) -> None:
        own_day = fetched_day == day.day
        whole = {m.spool: f"{company}/{fetched_day}/{m.folder}/{m.name}" for m in extracted.members}
        origins = {spool: indexable(origin) for spool, origin in whole.items()}
        # An older docferry stored long origins whole.
        wanted = sorted({*whole.values(), *origins.values()})
        known = await self._publisher.downloads.known(download.name, wanted)
        published = {(indexable(file.origin), file.sha256) for file in known if file.published}
        ours = await self._ours(download, company, extracted.members)
        missing = day.missing()
        for member in extracted.members:
            name, origin = _normalised(member.name), origins[member.spool]
            if member.sha256 in ours:
                if (origin, member.sha256) not in published:
                    own = DownloadedFile(download.name, origin, member.sha256, None, published=True, size=member.size)
                    with refusal_logged(origin):  # asked again with the next list
                        await self._publisher.downloads.record([own])
                if own_day:
                    day.account_own(name)
                continue
            if not own_day and not missing[name]:
                continue
            missing[name] -= 1
            day.came[name] += 1
            if (origin, member.sha256) in published:
                continue
            relative = publish.render_layout(
                download.layout, date=fetched_day, source=member.folder, name=member.name, company_id=company
            )
            arrived = Arrived(origin, member.spool, Content(member.sha256, member.size), relative)
            try:
                await self._publisher.publish(download, download.folder_of(company), arrived)
            except StatementRefused as error:
                day.refused.append(f"{escaped(member.name)}: {error}")
        if own_day:
            day.refused += [each.problem for each in extracted.refused]
            # A refused member does not count as missing: it has its own problem.
            day.came.update(_normalised(each.name) for each in extracted.refused)

    async def _ours(self, download: Download, company: str, members: Iterable[unzip.Member]) -> set[str]:
        if download.include_own:
            return set()
        return await self._publisher.downloads.own_digests(company, {member.sha256 for member in members})

    async def _split(
        self, company: str, day: str, entries: Sequence[ListedFile]
    ) -> tuple[list[ListedFile], list[ListedFile]]:
        """Divide the entries of a day into docferry's own uploads, recognised by name, and the others."""
        begin = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        known = await self._transfers.accounted(
            Target("codat", company), names_since=begin, digests_since=begin, until=begin + 86_400
        )
        names = Counter(known.names)
        ours: list[ListedFile] = []
        others: list[ListedFile] = []
        for listed in entries:
            name = listed.file_name or ""
            is_ours = names[name] > 0
            names[name] -= is_ours
            (ours if is_ours else others).append(listed)
        return ours, others


def _by_day(listing: Iterable[ListedFile]) -> tuple[Mapping[str, list[ListedFile]], list[str]]:
    """Return the rows by day in UTC, and a problem if dates cannot be read."""
    days: dict[str, list[ListedFile]] = {}
    unreadable = 0
    for listed in listing:
        day = day_of(listed.uploaded)
        if day is None:
            unreadable += 1
        else:
            days.setdefault(day, []).append(listed)
    text = f"{unreadable:,} rows of the list have a date that cannot be read; they are not downloaded"
    return days, [text] if unreadable else []


def day_of(uploaded: str) -> str | None:
    """Return the UTC day of an ISO 8601 date-time; a date-time without a zone keeps its day."""
    try:
        found = datetime.fromisoformat(uploaded.strip())
        day = (found.astimezone(UTC) if found.tzinfo is not None else found).date()
    except (ValueError, OverflowError):
        return None
    return day.isoformat() if 1970 <= day.year < 2200 else None


def neighbours(day: str, now: float) -> list[str]:
    """Return the previous and the next day, without future days."""
    middle = date.fromisoformat(day)
    latest = datetime.fromtimestamp(now, UTC).date() + timedelta(days=1)
    return [each.isoformat() for each in (middle - timedelta(days=1), middle + timedelta(days=1)) if each <= latest]


def _names(entries: Iterable[ListedFile]) -> Counter[str]:
    return Counter(_normalised(entry.file_name or entry.display_name or "") for entry in entries)


def _normalised(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fingerprint(entries: Sequence[ListedFile]) -> str:
    facts = sorted([e.file_name or "", e.uploaded, e.source_type or ""] for e in entries)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
