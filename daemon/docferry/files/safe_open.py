"""Reaching what lies beneath a mapping's root: one component after the other, never through a link."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docferry.errors import FolderError
from docferry.model import escaped

AWAY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # not there, or not there without following a link
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_root(root: Path) -> int:
    """A descriptor of the root to walk from; the root itself may be a link. Raises FolderError."""
    try:
        return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise folder_error(root, error) from error


@contextmanager
def opened_root(root: Path) -> Iterator[int]:
    """`open_root` for a `with`."""
    descriptor = open_root(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_folder(root: Path, folder: bytes) -> Iterator[int]:
    """A descriptor of a folder beneath the root (b"" is the root). Raises OSError where a component is
    missing, a link or no folder, and FolderError where the root itself is away."""
    with opened_root(root) as base:
        if not folder:
            yield base
            return
        descriptor = open_below(base, components(folder))
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def components(path: bytes) -> list[bytes]:
    """The segments of a relative path. Raises OSError for one that could lead elsewhere."""
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise OSError(errno.ENOENT, "not a path beneath the folder", escaped(path))
    return parts


def open_below(base: int, parts: list[bytes]) -> int:
    """A descriptor of the folder that these names lead to from `base`, one step at a time. Raises OSError."""
    here = base
    for part in parts:
        try:
            below = os.open(part, _STEP, dir_fd=here)
        finally:
            if here != base:
                os.close(here)
        here = below
    return here


def folder_error(root: Path, error: OSError) -> FolderError:
    """What is wrong with a mapping's folder, and the cure."""
    shown = escaped(os.fsencode(root))
    if error.errno == errno.ENOENT:
        return FolderError(f"{shown} does not exist: create it, mount what belongs there, or correct `folder`")
    if error.errno == errno.ENOTDIR:
        return FolderError(f"{shown} is not a folder: correct `folder` of this mapping")
    if error.errno in (errno.EACCES, errno.EPERM):
        return FolderError(f"{shown} may not be read: {_PERMISSION}")
    return FolderError(f"{shown} cannot be read ({why(error)}): {_MEDIUM}")


def subfolder_problem(folder: bytes, error: OSError) -> str:
    """One sentence about a folder inside a mapping that could not be read, with the cure."""
    shown = escaped(folder)
    if error.errno in AWAY:
        return f"{shown} went away while it was being read: the next scan looks again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{shown} may not be read: {_PERMISSION}"
    return f"{shown} cannot be read ({why(error)}): {_MEDIUM}"


def why(error: OSError) -> str:
    """The kernel's own words, in lower case, to stand inside a sentence."""
    return (error.strerror or str(error)).lower()


_PERMISSION = "let the user that runs docferry read it and pass through the folders above it (r and x)"
_MEDIUM = "check the disk or the network share"
