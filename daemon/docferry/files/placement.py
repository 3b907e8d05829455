"""Make a file appear in a folder: completely or not at all, never over another file, never behind a link."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from msgspec import Struct

from docferry.errors import FolderError, SourceChanged
from docferry.files.hashing import raise_if_cancelled, sha256_of
from docferry.files.safe_open import BLOCK, FILE, FOLDER, OpenRoot, Root, components, folder_error, reason
from docferry.model import escaped

#: The number of existing files of a name that are compared; then a free number is searched without reading files.
COMPARED: Final = 16
#: The largest number of files of one name in one folder; beyond it, a person has to check.
MOST_NUMBERS: Final = 1_000_000
#: Errors if a file cannot be linked or renamed to its place: another file system, or one without hard links.
NOT_LINKED: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})
_LONGEST_NAME: Final = 255
_RENAME_NOREPLACE: Final = 1


class Content(Struct, frozen=True):
    """Describe the bytes of the new file."""

    sha256: str
    size: int

    def equals(self, folder: int, name: bytes) -> bool:
        """Return whether `name` is a regular file with these bytes. Only a file of equal size is read."""
        found = _lstat(folder, name)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
            return False
        try:
            descriptor = os.open(name, FILE, dir_fd=folder)
        except OSError:
            return False
        try:
            found = os.fstat(descriptor)  # another file may have this name by now
            return found.st_size == self.size and sha256_of(descriptor, self.size) == self.sha256
        finally:
            os.close(descriptor)


@contextmanager
def opened_folder(root: Root, folder: bytes, *, make: bool = True) -> Iterator[int]:
    """Yield a descriptor of a folder below `root`. With `make`, create missing folders.

    Raises FolderError for a link in the path, and FileNotFoundError without `make`.
    """
    segments = _segments(root, folder)
    if make:
        try:
            os.makedirs(root.raw, exist_ok=True)  # noqa: PTH103 - a path of bytes
        except OSError as error:
            raise folder_error(root, error) from error
    elif not os.path.lexists(root.raw):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root.shown)
    with OpenRoot(root) as opened:
        here = opened.open(b"", FOLDER)
    try:
        for segment in segments:
            above, here = here, _enter(here, segment, root, make)
            os.close(above)
        yield here
    finally:
        os.close(here)


def free_name(folder: int, name: bytes, content: Content) -> tuple[bytes, bool]:
    """Return the name for `content` in a folder, and whether the content is already there.

    If other files have the name, a number is appended. After a few comparisons the search continues in growing steps,
    so the cost does not grow with such files. Raises FolderError if no number is free.
    """
    for number in range(1, COMPARED + 1):
        candidate = numbered(name, number)
        if _lstat(folder, candidate) is None:
            return candidate, False
        if content.equals(folder, candidate):
            return candidate, True
    taken, free = COMPARED, 2 * COMPARED
    while _lstat(folder, numbered(name, free)) is not None:
        taken, free = free, 2 * free
        if free > MOST_NUMBERS:
            raise FolderError(f"there are more than {MOST_NUMBERS:,} files of the name {escaped(name)}: move them away")
    while free - taken > 1:
        middle = (taken + free) // 2
        if _lstat(folder, numbered(name, middle)) is None:
            free = middle
        else:
            taken = middle
    if content.equals(folder, numbered(name, taken)):
        return numbered(name, taken), True
    return numbered(name, free), False


def numbered(name: bytes, number: int) -> bytes:
    """Return `a (2).pdf` for `a.pdf` and 2, cut to the longest name in bytes; return the name itself for 1."""
    if number == 1:
        return name
    stem, dot, suffix = name.rpartition(b".")
    if not stem or len(suffix) > 20:
        stem, dot, suffix = name, b"", b""
    end = b" (%d)" % number + dot + suffix
    room = _LONGEST_NAME - len(end)
    if len(stem) > room:
        while room and stem[room] & 0xC0 == 0x80:  # not in the middle of a character
            room -= 1
        stem = stem[:room]
    return stem + end


def rename(from_folder: int, name: bytes, to_folder: int, target: bytes) -> None:
    """Rename between two open folders, never over another file. Raises FileExistsError and other OSError."""
    if _renameat2 is not None:
        if _renameat2(from_folder, name, to_folder, target, _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), escaped(target))
    # Some network shares cannot rename so, but a link never replaces a file.
    os.link(name, target, src_dir_fd=from_folder, dst_dir_fd=to_folder, follow_symlinks=False)
    os.unlink(name, dir_fd=from_folder)


def link_copy(source: int, folder: int, name: bytes, content: Content, *, attributes: bool = False) -> None:
    """Copy an open file; the synced copy appears under its name in one step.

    With `attributes` the copy keeps owner, mode, times and extended attributes of the original, like `mv`. Raises
    FileExistsError, SourceChanged, FolderError and other OSError.
    """
    with _unnamed(folder) as (copy, path):
        if _copy_bytes(source, copy) != content.sha256:
            raise SourceChanged("the file changed while it was being copied")
        os.fchmod(copy, stat.S_IMODE(os.fstat(source).st_mode) if attributes else os.fstat(source).st_mode & 0o777)
        if attributes:
            _copy_attributes(source, copy)
        os.fsync(copy)
        try:
            os.link(path, name, dst_dir_fd=folder, follow_symlinks=True)
        except OSError as error:
            if error.errno not in NOT_LINKED:
                raise
            raise FolderError(
                f"{escaped(name)} cannot be put into its folder ({reason(error)}): that file system has no hard links; "
                "choose a folder on another file system"
            ) from error


def _segments(root: Root, folder: bytes) -> list[bytes]:
    try:
        return components(folder) if folder else []
    except OSError as error:
        raise FolderError(f"{escaped(folder)} leads out of {root.shown}") from error


def _enter(above: int, segment: bytes, root: Root, make: bool) -> int:
    if make:
        try:
            os.mkdir(segment, dir_fd=above)
            os.fsync(above)
        except FileExistsError:
            pass  # opening it shows whether it is a folder
        except OSError as error:
            raise FolderError(f"{escaped(segment)} cannot be made in {root.shown}: {reason(error)}") from error
    try:
        return os.open(segment, FOLDER, dir_fd=above)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            wrong = f"{escaped(segment)} in {root.shown} is a link or a file, where a folder is needed: move it away"
            raise FolderError(wrong) from error
        raise FolderError(f"{escaped(segment)} in {root.shown} cannot be opened: {reason(error)}") from error


def _lstat(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextmanager
def _unnamed(folder: int) -> Iterator[tuple[int, bytes]]:
    """Yield a descriptor of a new file without a name in `folder`, and a path to the file."""
    part = None
    try:
        descriptor = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        part = b".docferry-%s.part" % secrets.token_hex(8).encode()  # network shares do not support unnamed files
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        yield descriptor, b"/proc/self/fd/%d" % descriptor if part is None else b"/proc/self/fd/%d/" % folder + part
    finally:
        os.close(descriptor)
        if part is not None:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)


def _copy_bytes(source: int, copy: int) -> str:
    """Copy an open file from its beginning and return the SHA-256 of the copy."""
    sha256, offset = hashlib.sha256(), 0
    while block := os.pread(source, BLOCK, offset):
        raise_if_cancelled()
        sha256.update(block)
        offset += len(block)
        while block:
            block = block[os.write(copy, block) :]
    return sha256.hexdigest()


def _copy_attributes(source: int, copy: int) -> None:
    found = os.fstat(source)
    with suppress(PermissionError):  # only root may change the owner
        os.fchown(copy, found.st_uid, found.st_gid)
        os.fchmod(copy, stat.S_IMODE(found.st_mode))  # changing the owner clears some mode bits
    with suppress(OSError):  # a file system without extended attributes
        for name in os.listxattr(source):
            with suppress(OSError):  # the kernel owns this attribute, or the file system refuses it
                os.setxattr(copy, name, os.getxattr(source, name))
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))


_renameat2: Callable[[int, bytes, int, bytes, int], int] | None = getattr(
    ctypes.CDLL(None, use_errno=True), "renameat2", None
)
