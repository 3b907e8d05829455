"""Shared mappings: whether this host can read them, and whether this process is the one that scans them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import anyio
import anyio.to_thread

from docferry.errors import FolderError
from docferry.files.safe_open import Root
from docferry.files.share import ShareLook, look
from docferry.settings import Upload
from docferry.store.cursors import Cursors
from docferry.store.documents import Documents
from docferry.store.owners import Owners
from docferry.store.scan_leases import ScanLeases

#: How often a shared folder is looked at, seconds.
SHARE_LOOK_S = 5.0
#: A share that does not answer for so long cannot be read, seconds.
SHARE_TIMEOUT_S = 10.0
#: The cursor of the mounts on which documents of a mapping were seen, JSON.
_KEY = "share/"


class SharedFolders:
    """The shared mappings of one process. A mapping that was not looked at yet counts as unreadable."""

    def __init__(
        self,
        documents: Documents,
        cursors: Cursors,
        owners: Owners,
        uploads: Mapping[str, Upload],
        leases: ScanLeases | None = None,
    ) -> None:
        self._documents = documents
        self._cursors = cursors
        self._owners = owners
        self._leases = leases
        self._scanned: set[str] = set()
        self._limiters = defaultdict[str, anyio.CapacityLimiter](lambda: anyio.CapacityLimiter(1))
        owners.unreadable |= {upload.name for upload in uploads.values() if upload.shared}

    def is_readable(self, mapping: str) -> bool:
        """Whether this host can read a mapping's folder, as far as is known."""
        return mapping not in self._owners.unreadable

    def scans(self, mapping: str) -> bool:
        """Whether this process scans a shared mapping."""
        return mapping in self._scanned and self._owners.is_confirmed

    async def look(self, upload: Upload) -> ShareLook:
        """Return how a shared folder looks here. Raises FolderError if this host cannot read it."""
        try:
            found = await self._look(upload)
        except FolderError:
            self._owners.unreadable.add(upload.name)
            raise
        self._owners.unreadable.discard(upload.name)
        return found

    async def elect(self, upload: Upload, looked: ShareLook | None) -> None:
        """Take part in the election of the process that scans a mapping; without a look, resign.

        An empty folder without known documents may be the mount point of a share that other hosts have mounted.
        """
        has_documents = await self._documents.any_present(upload.name)
        if looked is None or (looked.is_empty and not has_documents) or self._leases is None:
            if self._leases is not None and upload.name in self._scanned:
                await self._leases.give_up(upload.name)
            self._scanned.discard(upload.name)
        elif await self._leases.take(upload.name):
            self._scanned.add(upload.name)
        else:
            self._scanned.discard(upload.name)

    async def accept(self, upload: Upload) -> None:
        """Remember the folder that lies there now as the share, as a person says that it is."""
        found = await anyio.to_thread.run_sync(look, Root.of(upload), (), ())
        await self._remember(upload, await self._mounts(upload), found)

    async def _look(self, upload: Upload) -> ShareLook:
        documents, mounts = await self._documents.sample(upload.name), await self._mounts(upload)
        with anyio.move_on_after(SHARE_TIMEOUT_S):
            found = await anyio.to_thread.run_sync(
                look, Root.of(upload), documents, mounts, abandon_on_cancel=True, limiter=self._limiters[upload.name]
            )
            if found.is_proved and found.mount not in mounts:
                await self._remember(upload, mounts, found)
            return found
        raise FolderError(f"{Root.of(upload).shown} does not answer; is its server there?")

    async def _mounts(self, upload: Upload) -> list[str]:
        return list(json.loads(await self._cursors.get(_KEY + upload.name) or "[]"))

    async def _remember(self, upload: Upload, mounts: list[str], found: ShareLook) -> None:
        if found.mount is not None:
            await self._cursors.set(_KEY + upload.name, json.dumps(sorted({*mounts, found.mount})))
