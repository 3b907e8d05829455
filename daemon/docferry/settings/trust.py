"""Check that only root and the running user can change a configuration file or a key file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from docferry.errors import ConfigError
from docferry.model import escaped

#: The largest configuration or key file; bytes.
LARGEST_FILE: Final = 16 * 1024 * 1024


def untrusted(path: Path) -> str | None:
    """Return why somebody else could change a file, with the fix; None if nobody can.

    The file and every folder above it must belong to root or to the running user. Only these may write them. A folder
    with the sticky bit, such as `/tmp`, may be writable: there, others cannot replace foreign files. Links are
    followed: both the given path and its target are checked.
    """
    written, real = path.absolute(), Path(os.path.realpath(path))
    for place in dict.fromkeys((real, *real.parents, *written.parents)):
        try:
            status = place.lstat() if place == real else place.stat()
        except OSError:
            continue  # the caller opens the file and reports the error
        if (problem := _changeable(place, status)) is not None:
            return problem
    return None


def exposed(status: os.stat_result, path: Path) -> str | None:
    """Return why others can read a file that contains a key, with the fix; None if nobody can."""
    shown = escaped(str(path))
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"others can read {shown}; run: chmod 600 {shown}"
    if status.st_uid not in (os.geteuid(), 0):
        return f"{shown} belongs to another user; run: chown {os.geteuid()} {shown}"
    return None


def unsafe_key_file(path: Path) -> str | None:
    """Return why a key file must not be used, with the fix; None if it is safe, or absent.

    The group of the running process may read it, as `root:docferry 0640` allows.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    shown = escaped(str(path))
    if not stat.S_ISREG(status.st_mode):
        return f"{shown} is not a regular file; write the key into a file"
    if status.st_mode & 0o007 or (status.st_mode & 0o040 and status.st_gid != os.getegid()):
        return f"others can read {shown}; run: chmod 600 {shown}"
    return untrusted(path)


def read_regular_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the bytes and the status of a regular file, without waiting for a writer of a FIFO.

    Raises OSError, and ConfigError if `path` is no regular file or has more than LARGEST_FILE bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError([f"{escaped(str(path))} is not a regular file"])
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ConfigError([f"{escaped(str(path))} has more than {LARGEST_FILE:,} bytes"])
    return content, status


def _changeable(place: Path, status: os.stat_result) -> str | None:
    shown = escaped(str(place))
    user = os.geteuid()
    if status.st_uid not in (0, user):
        return f"{shown} belongs to another user, who could change it; run: chown {user} {shown}"
    sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not sticky_folder and not stat.S_ISLNK(status.st_mode):
        return f"others may write {shown}; run: chmod go-w {shown}"
    return None
