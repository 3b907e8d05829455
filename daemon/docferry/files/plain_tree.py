"""Plain files beneath a mapping's root: reached without following a link, read exactly, errors with their cure."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from docferry.errors import SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.safe_open import AWAY, components, open_below, open_root, why
from docferry.model import Stamp, escaped, parted

BLOCK = 1 << 19  # larger ones are a little faster, and eight workers hold three each; smaller files are one block
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Visit:
    """Opens files beneath one root, one after the other in one go: those of one folder share its descriptor, as each
    step down costs as much as the file itself."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = -1
        self._folder: bytes | None = None
        self._place = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._base >= 0:
            os.close(self._base)
            self._base = -1

    def open(self, path: bytes) -> int:
        """A read-only descriptor, no link followed on the way, never blocking; `stamp_of` tells what it is. Raises
        SourceError, and FolderError when the root is away."""
        folder, name = parted(path)
        try:
            components(name)
            if folder != self._folder:
                self._go_to(folder)
            return os.open(name, _PLAIN, dir_fd=self._place)
        except OSError as error:
            raise source_error(path, error) from error

    def _go_to(self, folder: bytes) -> None:
        if self._base < 0:
            self._base = open_root(self._root)
        self._leave()
        self._place = open_below(self._base, components(folder)) if folder else self._base
        self._folder = folder

    def _leave(self) -> None:
        if self._folder:
            os.close(self._place)
        self._folder = None


def stamp_of(descriptor: int, path: bytes) -> Stamp:
    """How an open file looks. Raises SourceUnreadable when it is none, but a pipe or a folder."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise SourceUnreadable(f"{escaped(path)} is not a regular file: it is left alone")
    return Stamp.of(found)


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """So many bytes from there. Raises SourceChanged when there are fewer."""
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise SourceChanged("the file became shorter while it was being read: the new version gets its turn")
        content += more
    return content


def source_error(path: bytes, error: OSError) -> SourceError:
    """What a file's trouble means, and the cure."""
    shown = escaped(path)
    if error.errno == errno.ENOENT:
        return SourceVanished(f"{shown} is no longer there")
    if error.errno in AWAY:
        return SourceVanished(f"{shown} is no longer there, or only behind a link, and links are not followed")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceUnreadable(f"{shown} may not be read: let the user that runs docferry read it")
    return SourceUnreadable(f"{shown} cannot be read ({why(error)}): check the disk or the network share")
