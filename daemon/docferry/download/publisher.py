"""Publish downloaded files in their folders, and record each before it appears."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from msgspec import Struct

from docferry import logs
from docferry.files import publish
from docferry.files.folder_thread import run_in_folder
from docferry.files.placement import Content
from docferry.settings import Download
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.telemetry import Telemetry

log = logs.get("download")


class DownloadCounters(Struct):
    """Count the files and bytes downloaded since the start."""

    files: int = 0
    bytes: int = 0


class Arrived(Struct, frozen=True):
    """Describe a file in the spool before publication: its origin at the remote, its bytes, its destination."""

    origin: str
    spool: Path
    content: Content
    relative: PurePosixPath  # relative to the root


class Publisher:
    """Publish files of all downloads."""

    def __init__(self, downloads: Downloads, telemetry: Telemetry) -> None:
        self.downloads = downloads
        self.counters = DownloadCounters()
        self._telemetry = telemetry

    async def publish(self, download: Download, root: Path, arrived: Arrived) -> None:
        """Move a file to its place below `root`, never over other bytes. Raises FolderError and OSError.

        The path is recorded before the file appears, so that an upload mapping recognises the file.
        """
        content = arrived.content
        target = await run_in_folder(root, publish.choose, root, arrived.relative, content)
        await self._record(download, arrived, target, published=False)
        # The path differs if another process took the name in the meantime.
        place = await run_in_folder(root, publish.put, arrived.spool, target, root, content)
        await self._record(download, arrived, place, published=True)
        self.counters.files += 1
        self.counters.bytes += content.size
        self._telemetry.downloaded(download.name)
        log.info("downloaded", mapping=download.name, path=bytes(place), size=content.size)

    async def _record(self, download: Download, arrived: Arrived, place: Path, *, published: bool) -> None:
        content = arrived.content
        file = DownloadedFile(
            download.name, arrived.origin, content.sha256, bytes(place), published=published, size=content.size
        )
        await self.downloads.record([file])
