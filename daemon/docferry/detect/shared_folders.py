"""Determine which shared mappings this host can read, and which ones this process scans."""

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

#: The interval between two checks of a shared folder, seconds.
SHARE_LOOK_S = 5.0
#: The time limit for an answer of a share, seconds; a slower share counts as unreadable.
SHARE_TIMEOUT_S = 10.0
#: The cursor for the mounts that contained documents of a mapping, JSON.
_KEY = "share/"


class SharedFolders:
    """Track the shared mappings of one process. A mapping counts as unreadable until it was checked."""

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
        """Return whether this host can read a mapping's folder, according to the last check."""
        return mapping not in self._owners.unreadable

    def scans(self, mapping: str) -> bool:
        """Return whether this process scans a shared mapping."""
        return mapping in self._scanned and self._owners.is_confirmed

    async def look(self, upload: Upload) -> ShareLook:
        """Return the state of a shared folder on this host. Raises FolderError if this host cannot read it."""
        try:
            found = await self._look(upload)
        except FolderError:
            self._owners.unreadable.add(upload.name)
            raise
        self._owners.unreadable.discard(upload.name)
        return found

    async def elect(self, upload: Upload, looked: ShareLook | None) -> None:
        """Join the election of the process that scans a mapping; resign if the folder was not checked.

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
        """Record the present folder as the share, because a person confirms it."""
        found = await anyio.to_thread.run_sync(look, Root.of(upload), (), ())
        await self._remember(upload, await self._mounts(upload), found)

    async def _look(self, upload: Upload) -> ShareLook:
        upload.assert_answering()
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
