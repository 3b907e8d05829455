"""Limit the space of downloads in the state folder, so that the queue always has space."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from anyio import CancelScope
from anyio.to_thread import run_sync

from docferry.errors import FolderError

#: Bytes on the disk of the state folder that are reserved for the queue.
QUEUE_RESERVE: Final = 256 * 1024 * 1024


class Spool:
    """Manage the folder of incomplete downloads."""

    def __init__(self, folder: Path, limit: int, lease_owner: str) -> None:
        self.folder = folder
        self._limit = limit  # bytes
        self._owner = lease_owner

    def free(self) -> int:
        """Return the bytes available to downloads; call it in a worker thread."""
        used = sum(_size(path) for path in self.folder.rglob("*"))
        on_disk = shutil.disk_usage(self.folder).free - QUEUE_RESERVE
        return max(0, min(self._limit - used, on_disk))

    def require(self) -> int:
        """Return the free bytes, if necessary after removing parts of earlier downloads. Raises FolderError if none."""
        free = self.free()
        if free <= 0:
            self.remove_parts()
            free = self.free()
        if free <= 0:
            raise FolderError(
                f"there is no room for downloads in {self.folder}: spool_max is {self._limit:,} bytes, and "
                f"{QUEUE_RESERVE:,} bytes of the disk are kept for the queue; free disk space, or move state_dir"
            )
        return free

    def remove_parts(self) -> None:
        """Remove the parts that a later round would resume."""
        for path in self.folder.glob("object-*"):
            path.unlink(missing_ok=True)

    @asynccontextmanager
    async def work_folder(self) -> AsyncIterator[Path]:
        """Yield a new private folder, and remove it at the end."""
        folder = self.folder / f"{self._owner}-{uuid4().hex}"
        await run_sync(lambda: folder.mkdir(mode=0o700, parents=True))
        try:
            yield folder
        finally:
            with CancelScope(shield=True):
                await run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raise FolderError, with the fix, if the disk of the spool is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FolderError(f"the disk of {folder} is full; free disk space, or move state_dir") from error


def _size(path: Path) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * 512
