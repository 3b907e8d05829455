"""Run one round of a download mapping: every company or object, even if others fail."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from msgspec import Struct

from docferry import logs
from docferry.download.codat_days import CodatDays
from docferry.download.publisher import DownloadCounters, Publisher
from docferry.download.wootiv_objects import WootivObjects
from docferry.errors import ArchiveError, FolderError, RemoteError, StatementRefused
from docferry.settings import Download

log = logs.get("download")


class Downloader(Struct, frozen=True):
    """Download from Codat and Wootiv, one round of a mapping at a time."""

    publisher: Publisher
    codat: CodatDays | None
    wootiv: WootivObjects | None

    @property
    def counters(self) -> DownloadCounters:
        """Return the number of files and bytes downloaded since the start."""
        return self.publisher.counters

    async def round(self, download: Download) -> list[str]:
        """Run one round; return a sentence for each problem.

        A problem of one company or object does not stop the others.
        """
        problems: list[str] = []
        if download.unanswered is not None:
            problems.append(download.unanswered)
        elif download.source == "codat" and self.codat is not None:
            for company in download.companies:
                problems += await _shielded(self.codat.round(download, company), company, len(download.companies) > 1)
        elif self.wootiv is not None:
            for name in download.objects:
                problems += await _shielded(self.wootiv.round(download, name), name, len(download.objects) > 1)
        if problems:
            log.warning("download_incomplete", "; ".join(problems), mapping=download.name)
        return problems


async def _shielded(round_: Awaitable[Sequence[str] | None], subject: str, named: bool) -> list[str]:
    """Return the problems of one company or object, including its errors."""
    try:
        problems = list(await round_ or ())
    except (RemoteError, FolderError, ArchiveError, StatementRefused, OSError) as error:
        problems = [str(error)]
    return [f"{subject}: {problem}" for problem in problems] if named else problems
