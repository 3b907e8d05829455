"""Delete or archive sent files, and no others.

A name in a customer's folder can be replaced at any moment. So a file is first renamed into a hidden folder of
docferry, and compared there with the sent version. Then it is deleted or archived, or restored if it differs. All calls
use descriptors: each path is resolved once, without links.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from itertools import groupby
from typing import Final

from msgspec import Struct

from docferry.errors import FolderError, SourceError
from docferry.files import write_lease
from docferry.files.hashing import digests_of
from docferry.files.placement import Content, free_name, link_copy, numbered, opened_folder, rename
from docferry.files.safe_open import FILE, FOLDER, MISSING, PARENT, OpenRoot, Root, errno_of, reason
from docferry.model import Stamp, escaped, joined, parted

#: The prefix of folders for files that are set aside. Scans skip hidden folders.
ASIDE_PREFIX: Final = b".docferry-aside-"
#: The number of names tried for a restored file whose own name was taken meanwhile.
_MOST_NAMES: Final = 1000


class Fate(StrEnum):
    """Name the result of the removal of a file."""

    DONE = "done"  # deleted, archived, or already absent
    REPLACED = "replaced"  # not the sent version: the file stays
    IN_USE = "in_use"  # a program has the file open for writing: it stays
    FAILED = "failed"  # the file system refuses the removal


class SentFile(Struct, frozen=True):
    """Describe a sent document: its path below the root, and its stamp when it was read."""

    document_id: int
    path: bytes
    stamp: Stamp
    sha256: str


class Removal(Struct, frozen=True):
    """Hold the result for one file. `detail` of FAILED has reason and fix, and is equal for files that fail alike."""

    file: SentFile
    fate: Fate
    detail: str = ""


def remove(root: Root, files: Sequence[SentFile], archive: Root | None) -> list[Removal]:
    """Delete sent files, or move them to the same path in the archive, in the calling thread.

    Raises FolderError if the root cannot be opened.
    """
    found: list[Removal] = []
    with OpenRoot(root) as opened:
        for folder, group in groupby(sorted(files, key=lambda file: file.path), key=lambda file: parted(file.path)[0]):
            found += _remove_from(opened, folder, list(group), archive)
    return found


def restore(root: Root, folder: bytes, name: bytes) -> list[bytes]:
    """Restore files that a killed process left in the folder `name` within `folder`; return the restored paths.

    Foreign folders, and folders of running processes, are skipped.
    """
    restored: list[bytes] = []
    with suppress(OSError), OpenRoot(root) as opened, opened.opened(folder, PARENT) as parent:
        aside = os.open(name, FOLDER, dir_fd=parent)
        try:
            if not _is_ours(aside):
                return restored
            fcntl.flock(aside, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in [os.fsencode(each) for each in os.listdir(aside)]:  # noqa: PTH208 - a descriptor
                restored.append(joined(folder, _put_back(parent, aside, left)))
            os.rmdir(name, dir_fd=parent)
        finally:
            os.close(aside)
    return restored


def _remove_from(opened: OpenRoot, folder: bytes, files: Sequence[SentFile], archive: Root | None) -> list[Removal]:
    """Remove files of one folder."""
    try:
        with ExitStack() as stack:
            parent = stack.enter_context(opened.opened(folder, PARENT))
            left = [file for file in files if _exists(parent, parted(file.path)[1])]
            done = [Removal(file, Fate.DONE) for file in files if file not in left]
            if not left:
                return done
            into = stack.enter_context(opened_folder(archive, folder)) if archive else None
            aside = stack.enter_context(_aside(parent))
            return done + [_remove_one(parent, aside, file, into) for file in left]
    except FolderError as error:
        return [Removal(file, Fate.FAILED, str(error)) for file in files]
    except Exception as error:  # noqa: BLE001 - every error concerns only the documents of this folder
        if errno_of(error) in MISSING:
            return [Removal(file, Fate.DONE) for file in files]
        return [Removal(file, Fate.FAILED, _cure(error)) for file in files]


def _exists(parent: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _aside(parent: int) -> Iterator[int]:
    """Yield a locked folder in `parent` that only the running user can enter. At the end, remove it if it is empty."""
    name = ASIDE_PREFIX + secrets.token_hex(8).encode()
    os.mkdir(name, 0o700, dir_fd=parent)
    try:
        aside = os.open(name, FOLDER, dir_fd=parent)
        try:
            if not _is_ours(aside):  # replaced at this moment
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            fcntl.flock(aside, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield aside
        finally:
            os.close(aside)
    finally:
        with suppress(OSError):  # the next scan restores its files
            os.rmdir(name, dir_fd=parent)


def _is_ours(aside: int) -> bool:
    found = os.fstat(aside)
    return found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077 == 0


def _remove_one(parent: int, aside: int, file: SentFile, into: int | None) -> Removal:
    name = parted(file.path)[1]
    try:
        descriptor = os.open(name, FILE, dir_fd=parent)
    except FileNotFoundError:
        return Removal(file, Fate.DONE)
    except OSError as error:
        if error.errno in MISSING or error.errno == errno.ENXIO:  # a link or a socket has its name
            return Removal(file, Fate.REPLACED)
        return Removal(file, Fate.FAILED, _cure(error))
    try:
        return _set_aside(parent, aside, file, descriptor, into)
    except Exception as error:  # noqa: BLE001 - every error concerns only this file
        return Removal(file, Fate.FAILED, _cure(error))
    finally:
        os.close(descriptor)


def _set_aside(parent: int, aside: int, file: SentFile, descriptor: int, into: int | None) -> Removal:
    """Rename the file aside, compare it with the sent version, then delete, archive or restore it."""
    name = parted(file.path)[1]
    if not _is_sent(os.fstat(descriptor), file, compare_ctime=True):
        return Removal(file, Fate.REPLACED)
    free = write_lease.take(descriptor)
    if free is False:
        return Removal(file, Fate.IN_USE)
    os.rename(name, name, src_dir_fd=parent, dst_dir_fd=aside)
    finished = False
    try:
        moved = os.stat(name, dir_fd=aside, follow_symlinks=False)
        if not os.path.samestat(moved, os.fstat(descriptor)) or not _is_sent(moved, file):
            return Removal(file, Fate.REPLACED)
        if free is None and digests_of(descriptor, file.stamp.size, md5=False).sha256 != file.sha256:
            return Removal(file, Fate.REPLACED)
        # From here on nobody can open the file by its name; a program that opened it before breaks the lease.
        if free and not write_lease.is_held(descriptor):
            return Removal(file, Fate.IN_USE)
        try:
            if into is not None:
                _archive(aside, name, descriptor, Content(file.sha256, file.stamp.size), into)
            else:
                os.unlink(name, dir_fd=aside)
        except SourceError:
            return Removal(file, Fate.REPLACED)
        except FolderError as error:
            return Removal(file, Fate.FAILED, str(error))
        finished = True
        return Removal(file, Fate.DONE)
    finally:
        if not finished:
            _put_back(parent, aside, name)


def _is_sent(found: os.stat_result, file: SentFile, *, compare_ctime: bool = False) -> bool:
    """Return whether this is the sent version. Renaming a file changes its ctime."""
    stamp = Stamp.of(found)
    if not stat.S_ISREG(found.st_mode) or (compare_ctime and stamp != file.stamp):
        return False
    return (stamp.size, stamp.mtime_ns) == (file.stamp.size, file.stamp.mtime_ns)


def _archive(aside: int, name: bytes, descriptor: int, content: Content, into: int) -> None:
    """Move a file that was set aside into an open folder of the archive.

    A file with other hard links is copied: its owner could otherwise change the archived bytes.
    """
    is_copied = os.fstat(descriptor).st_nlink > 1
    while True:
        target, is_there = free_name(into, name, content)
        try:
            if is_there:
                os.unlink(name, dir_fd=aside)
            elif is_copied:
                link_copy(descriptor, into, target, content, attributes=True)
                os.fsync(into)
                os.unlink(name, dir_fd=aside)
            else:
                os.fsync(descriptor)
                rename(aside, name, into, target)
        except FileExistsError:
            continue  # another process created it first
        except OSError as error:
            if error.errno != errno.EXDEV or is_copied:
                raise
            is_copied = True
        else:
            return


def _put_back(parent: int, aside: int, name: bytes) -> bytes:
    """Restore a file under its name and return the name, with a number if another file took it."""
    for number in range(1, _MOST_NAMES):
        with suppress(FileExistsError):
            rename(aside, name, parent, numbered(name, number))
            return numbered(name, number)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), escaped(name))


def _cure(error: Exception) -> str:
    if errno_of(error) in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason(error)}: let docferry's user write in the folder, and in a unit by ReadWritePaths="
    return reason(error)
