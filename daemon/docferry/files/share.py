"""Check whether a folder is the share known to the queue, without writing into the folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from msgspec import Struct

from docferry.errors import FolderError
from docferry.files.safe_open import FOLDER, OpenRoot, Root, folder_error
from docferry.model import SeenFile


class ShareLook(Struct, frozen=True):
    """Describe the root of a shared mapping on this host."""

    identity: tuple[int, int]  # device and inode, which change with the mount
    mount: str | None  # file system, source and inode, which are equal on all hosts; None: unknown
    is_proved: bool  # contains a known document
    is_empty: bool


def look(root: Root, documents: Sequence[SeenFile], mounts: Collection[str]) -> ShareLook:
    """Return the state of the root of a shared mapping on this host.

    The root is the share if it contains a known document unchanged, or is a mount that contained one earlier. Raises
    FolderError if the root cannot be read or is another folder, such as an empty mount point.
    """
    with OpenRoot(root) as opened:
        try:
            with opened.opened(b"", FOLDER) as descriptor:
                status = os.fstat(descriptor)
                with os.scandir(descriptor) as names:
                    is_empty = next(names, None) is None
        except OSError as error:
            raise folder_error(root, error) from error
        found = ShareLook(
            identity=(status.st_dev, status.st_ino),
            mount=_mount(status),
            is_proved=any(_lies_there(opened, document) for document in documents),
            is_empty=is_empty,
        )
    if documents and not found.is_proved and found.mount not in mounts:
        raise FolderError(
            f"{root.shown} has none of {len(documents)} known documents: is the share mounted on this host? Until then "
            "this host scans and sends nothing of it. If all documents were removed, run "
            "`docferry retry --mapping NAME --accept-folder`"
        )
    return found


def _lies_there(opened: OpenRoot, document: SeenFile) -> bool:
    """Return whether a file with the size and the time of a known document is at its path."""
    try:
        status = opened.stat(document.path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (document.stamp.size, document.stamp.mtime_ns)


def _mount(status: os.stat_result) -> str | None:
    """Return the file system, the source of a mount and the inode of its folder, or None if unknown."""
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        fields, _, more = line.partition(" - ")
        if fields.split(" ")[2] == device:
            kind, source = more.split(" ")[:2]
            return f"{kind} {source} {status.st_ino}"
    return None
