"""Open files and folders beneath a mapping's root without following a link.

A customer may replace any name below the root by a link at any moment. So the kernel resolves each path once, from a
descriptor of the root. All later steps use the resulting descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from msgspec import Struct

from docferry.errors import FolderError, SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.model import Stamp, escaped, parted

if TYPE_CHECKING:  # a sender process reads no configuration, and need not import its module
    from docferry.settings import Upload

#: Bytes of one read. Larger blocks are slightly faster, but eight workers hold three each. A smaller file is one block.
BLOCK: Final = 1 << 19
#: Bytes of the longest path beneath a root: the kernel accepts 4,096 with the final NUL.
LONGEST_PATH: Final = 4095
#: Errors of a missing name, or of a name behind a link.
MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV})

FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PARENT: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

#: The largest number of links in a root's path, as in the kernel.
_MOST_LINKS: Final = 40
_AT_FDCWD: Final = -100
_SYS_OPENAT2: Final = 437  # equal on all architectures
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_BENEATH: Final = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS

_libc = ctypes.CDLL(None, use_errno=True)


class Root(Struct, frozen=True):
    """Describe a mapping's folder before the first placeholder.

    Unless `follow_links` is set, a link in its path is followed only if no unprivileged user could have created it.
    """

    path: Path
    follow_links: bool = False

    @classmethod
    def of(cls, upload: Upload) -> Root:
        """Return the root of a mapping."""
        return cls(upload.root, upload.follow_root_links)

    @property
    def raw(self) -> bytes:
        """Return the path in UTF-8 for the kernel, independent of the locale."""
        return str(self.path).encode("utf-8", "surrogateescape")

    @property
    def shown(self) -> str:
        """Return the path for messages."""
        return escaped(self.raw)


class OpenRoot:
    """Open paths beneath one root; a context manager that holds the root's descriptor.

    Entering raises FolderError if the root is missing. All paths are relative. Every method raises OSError if a
    component is missing or a link.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.descriptor = _open_root(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        self.descriptor = -1

    @property
    def identity(self) -> tuple[int, int]:
        """Return device and inode of the root, which change with a mount."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def open(self, path: bytes, flags: int) -> int:
        """Return a descriptor of `path`, opened with `flags`; b"" is the root itself."""
        if not path:
            return os.open(b".", flags & ~os.O_NOFOLLOW, dir_fd=self.descriptor)
        return open_beneath(self.descriptor, path, flags)

    @contextmanager
    def opened(self, path: bytes, flags: int) -> Iterator[int]:
        """Open a path like `open`, and close the descriptor at the end of the context."""
        descriptor = self.open(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_file(self, path: bytes) -> int:
        """Return a read-only descriptor that never blocks; `stamp_of` checks for a regular file.

        Raises SourceError.
        """
        try:
            return self.open(path, FILE)
        except Exception as error:
            raise source_error(path, error) from error

    def stat(self, path: bytes) -> os.stat_result:
        """Return the status of `path`; of a link, not of its target."""
        with self.opened(path, NAME) as descriptor:
            return os.fstat(descriptor)

    def is_folder(self, path: bytes) -> bool:
        """Return whether `path` is a folder that is reachable without a link."""
        try:
            return stat.S_ISDIR(self.stat(path).st_mode)
        except OSError:
            return False


def open_beneath(base: int, path: bytes, flags: int) -> int:
    """Return a descriptor of the relative `path` beneath the folder `base`.

    Raises OSError, with ENOENT for an outside path.
    """
    components(path)
    if _has_openat2():
        return _openat2(base, path, flags, _BENEATH)
    folder, name = parted(path)
    if not folder:
        return os.open(name, flags, dir_fd=base)
    parent = _step_by_step(base, folder.split(b"/"))
    try:
        return os.open(name, flags, dir_fd=parent)
    finally:
        os.close(parent)


def components(path: bytes) -> list[bytes]:
    """Return the segments of a relative path. Raises OSError for a segment that leads elsewhere."""
    parts = path.split(b"/")
    if b"\0" in path or len(path) > LONGEST_PATH or any(part in (b"", b".", b"..") for part in parts):
        raise OSError(errno.ENOENT, "not a path beneath the folder", escaped(path))
    return parts


def replaceable(root: Root) -> bytes | None:
    """Return the first component of the root's path that an unprivileged user can replace, or None."""
    here = b""
    for part in root.raw.split(b"/")[1:]:
        above, here = here or b"/", here + b"/" + part
        try:
            if not _is_guarded(os.stat(above), os.lstat(here)):  # noqa: PTH116 - paths of bytes
                return here
        except OSError:
            return None  # opening the root reports the error
    return None


def stamp_of(descriptor: int, path: bytes) -> Stamp:
    """Return the stamp of an open file. Raises SourceUnreadable for anything but a regular file."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise SourceUnreadable(f"{escaped(path)} is not a regular file: it is ignored")
    return Stamp.of(found)


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """Return `length` bytes from `offset`. Raises SourceChanged if the file is shorter."""
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise SourceChanged("the file became shorter while it was being read: the new version is queued next")
        content += more
    return content


def source_error(path: bytes, error: Exception) -> SourceError:
    """Return the error, with its fix, of a document that could not be opened or read."""
    shown = escaped(path)
    if errno_of(error) == errno.ENOENT:
        return SourceVanished(f"{shown} no longer exists")
    if errno_of(error) in MISSING:
        return SourceVanished(f"{shown} no longer exists, or only behind a link, and links are not followed")
    if errno_of(error) in (errno.EACCES, errno.EPERM):
        return SourceUnreadable(f"{shown} cannot be read (permission denied): let the user that runs docferry read it")
    return SourceUnreadable(f"{shown} cannot be read ({reason(error)}): check the disk or the network share")


def folder_error(root: Root, error: Exception) -> FolderError:
    """Return the error, with its fix, of a mapping's folder that cannot be opened."""
    shown = root.shown
    if errno_of(error) == errno.ENOENT:
        return FolderError(f"{shown} does not exist: create it, mount its file system, or correct `folder`")
    if errno_of(error) == errno.ENOTDIR:
        return FolderError(f"{shown} is not a folder: correct `folder` of this mapping")
    if errno_of(error) in (errno.EACCES, errno.EPERM):
        return FolderError(f"{shown} cannot be read (permission denied): {_PERMISSION}")
    return FolderError(f"{shown} cannot be read ({reason(error)}): {_MEDIUM}")


def subfolder_problem(folder: bytes, error: Exception) -> str:
    """Return one sentence, with the fix, about a folder inside a mapping that cannot be read."""
    shown = escaped(folder)
    if errno_of(error) in MISSING:
        return f"{shown} disappeared while it was being read: the next scan reads it again"
    if errno_of(error) in (errno.EACCES, errno.EPERM):
        return f"{shown} cannot be read (permission denied): {_PERMISSION}"
    return f"{shown} cannot be read ({reason(error)}): {_MEDIUM}"


def reason(error: Exception) -> str:
    """Return the kernel's description of an error, in lower case for use inside a sentence."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return escaped(f"{type(error).__name__}: {error}")


def errno_of(error: Exception) -> int | None:
    """Return the errno of a system error, or None for any other error of a file."""
    return error.errno if isinstance(error, OSError) else None


# -- the root ----------------------------------------------------------------------------------------------------------


def _open_root(root: Root) -> int:
    path = root.raw
    try:
        if root.follow_links:
            return os.open(path, PARENT & ~os.O_NOFOLLOW)
        if _has_openat2():
            try:
                return _openat2(_AT_FDCWD, path, PARENT & ~os.O_NOFOLLOW, _RESOLVE_NO_SYMLINKS)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        return _walk_root(root, path)
    except OSError as error:
        raise folder_error(root, error) from error


def _walk_root(root: Root, path: bytes) -> int:
    """Open a root component by component, following links only where no unprivileged user can put one."""
    ahead = [part for part in reversed(path.split(b"/")) if part]
    links = 0
    here = os.open(b"/", PARENT)
    try:
        while ahead:
            part = ahead.pop()
            target = _link_target(root, here, part, links)
            if target is not None:
                links += 1
                ahead += [each for each in reversed(target.split(b"/")) if each not in (b"", b".")]
            if target is None or target.startswith(b"/"):
                below = os.open(b"/" if target else part, PARENT, dir_fd=here)
                os.close(here)
                here = below
    except BaseException:
        os.close(here)
        raise
    return here


def _link_target(root: Root, here: int, part: bytes, links: int) -> bytes | None:
    """Return the target of a link, or None if `part` is not one. Raises FolderError for an untrusted link."""
    entry = os.open(part, NAME, dir_fd=here)
    try:
        found = os.fstat(entry)
        if not stat.S_ISLNK(found.st_mode):
            return None
        if not _is_guarded(os.fstat(here), found):
            raise FolderError(
                f"{root.shown} leads over the link {escaped(part)}, which another user can replace: "
                "name the real folder in `folder`, or set follow_root_links = true"
            )
        if links == _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.readlink(b"", dir_fd=entry)
    finally:
        os.close(entry)


def _is_guarded(folder: os.stat_result, entry: os.stat_result) -> bool:
    """Return whether only root and the running user can replace this entry of a folder."""
    trusted = (0, os.geteuid())
    if folder.st_uid not in trusted:
        return False
    writable = folder.st_mode & stat.S_IWOTH or (folder.st_mode & stat.S_IWGRP and folder.st_gid != 0)
    if not writable:
        return True
    # In a sticky folder only the owner of an entry, or of the folder, can replace the entry.
    return bool(folder.st_mode & stat.S_ISVTX) and entry.st_uid in trusted


# -- the kernel --------------------------------------------------------------------------------------------------------


def _step_by_step(base: int, parts: list[bytes]) -> int:
    """Return a descriptor of the folder at these names beneath `base`, for kernels without openat2."""
    here = base
    for part in parts:
        try:
            below = os.open(part, PARENT, dir_fd=here)
        finally:
            if here != base:
                os.close(here)
        here = below
    return here


def _openat2(base: int, path: bytes, flags: int, resolve: int) -> int:
    """Call openat2(2).

    With RESOLVE_BENEATH the kernel returns EAGAIN after a rename in another tree: repeat the call.
    """
    how = struct.pack("QQQ", flags, 0, resolve)
    while True:
        descriptor: int = _libc.syscall(_SYS_OPENAT2, base, path, how, len(how))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number), escaped(path))


@cache
def _has_openat2() -> bool:
    """Return whether the kernel has openat2 (since 5.6) and no sandbox forbids it."""
    try:
        os.close(_openat2(_AT_FDCWD, b"/", PARENT, _RESOLVE_NO_SYMLINKS))
    except OSError:
        return False
    return True


_PERMISSION: Final = "let the user that runs docferry read it and pass through the folders above it (r and x)"
_MEDIUM: Final = "check the disk or the network share"
