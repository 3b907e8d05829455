"""Download objects of Wootiv, each under its own name or by the layout of its mapping."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import PurePosixPath

import anyio.to_thread

from docferry.clock import Clock
from docferry.download.publisher import Arrived, Publisher
from docferry.download.spool import Spool, room_in
from docferry.errors import FolderError
from docferry.files import publish
from docferry.remotes.wootiv.client import Wootiv
from docferry.settings import Download
from docferry.store.cursors import Cursors


class WootivObjects:
    """Download single objects that have changed."""

    def __init__(self, wootiv: Wootiv, cursors: Cursors, clock: Clock, publisher: Publisher, spool: Spool) -> None:
        self._wootiv = wootiv
        self._cursors = cursors
        self._clock = clock
        self._publisher = publisher
        self._spool = spool

    async def round(self, download: Download, name: str) -> None:
        """Download a changed object. Raises RemoteError and FolderError; the next round resumes a part."""
        subject = f"object/{download.name}/{name}"
        part = self._spool.folder / f"object-{hashlib.sha256(subject.encode()).hexdigest()[:32]}.part"
        free = await anyio.to_thread.run_sync(self._spool.require)
        limit = min(free, download.max_size or free)
        try:
            with room_in(self._spool.folder):
                fetched = await self._wootiv.fetch(name, part, await self._cursors.get(subject), limit=limit)
        except FolderError:
            await anyio.to_thread.run_sync(self._spool.remove_parts)
            raise
        if not fetched.changed:
            return
        content = await anyio.to_thread.run_sync(publish.content_of, part)
        known = await self._publisher.downloads.known(download.name, [name])
        if not any(file.sha256 == content.sha256 and file.published for file in known):
            arrived = Arrived(name, part, content, self._relative(download, name))
            await self._publisher.publish(download, download.folder_of(None), arrived)
        await anyio.to_thread.run_sync(lambda: part.unlink(missing_ok=True))
        if fetched.etag is not None:
            await self._cursors.set(subject, fetched.etag)

    def _relative(self, download: Download, name: str) -> PurePosixPath:
        """Return the path of an object: its own name, unless the mapping sets a layout."""
        folder, _, last = name.rpartition("/")
        today = datetime.fromtimestamp(self._clock.now(), UTC).date().isoformat()
        if "layout" in download.model_fields_set:
            return publish.render_layout(download.layout, date=today, source="wootiv", name=last, company_id="")
        return PurePosixPath(*[publish.safe_name(part) for part in (*folder.split("/"), last) if part])
