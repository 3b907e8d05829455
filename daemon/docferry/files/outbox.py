"""Store documents of applications durably in a mapping's outbox, each completely or not at all, in its own folder.

A document is written and synced below a staging folder, which then gets its final name. After a crash, staging folders
are removed, and all other documents are complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from docferry.errors import ConfigError
from docferry.files.safe_open import BLOCK

#: The prefix of staging folders; scans skip hidden folders.
STAGING_PREFIX: Final = ".docferry-put-"
#: The age below which a staging folder may not yet be locked by its process, seconds.
STAGING_AGE_S: Final = 60.0
#: The digits of the digest of a document's name that begin the name of its folder; a growing number follows them.
#: With few digits, a program could find a name that replaces the document of another name.
_KEY_DIGITS: Final = 32
_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 2000


def checked_name(name: str) -> PurePosixPath:
    """Return a document's path in its mapping. Raises ConfigError if it cannot be the path of a file."""
    segments = name.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in name:
        raise ConfigError([f'"{name}" is not the name of a document; write it like "report.pdf" or "2026/report.pdf"'])
    sizes = [len(segment.encode("utf-8", "surrogateescape")) for segment in segments]
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        raise ConfigError([f'"{name[:80]}…" is longer than the name of a file can be; shorten it'])
    return PurePosixPath(*segments)


def store(root: Path, name: PurePosixPath, blocks: Iterable[bytes]) -> str:
    """Store a document and return the name of its folder in the outbox; call it in a worker thread.

    The document is on the disk after the return. Raises OSError.
    """
    with _staging(root) as staging:
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        for folder in (path.parents[number] for number in range(len(name.parts))):
            _sync(folder)
        made = _publish(staging, root, name)
    _sync(root)
    return made


def replace_older(root: Path, folder: str) -> list[bytes]:
    """Remove the older documents of the same name; return their paths."""
    key = folder[:_KEY_DIGITS]
    return _remove_files(root, [name for name in _names(root) if name.startswith(key) and name < folder])


def remove_replaced(root: Path) -> None:
    """Remove documents that a killed process replaced by a later one but did not remove."""
    names = [name for name in _names(root) if not name.startswith(".")]
    latest = {name[:_KEY_DIGITS]: name for name in names}
    older = [name for name in names if latest[name[:_KEY_DIGITS]] != name]
    _remove_files(root, [name for name in older if (root / latest[name[:_KEY_DIGITS]]).exists()])


def sweep(root: Path) -> None:
    """Remove empty folders of sent documents, and staging folders of killed processes; call it in a worker thread."""
    for name in _names(root):
        if name.startswith(STAGING_PREFIX):
            _remove_abandoned(root / name)
        elif not name.startswith("."):
            _remove_empty(root / name)


def blocks_of(content: bytes) -> Iterator[bytes]:
    """Yield the content in blocks."""
    view = memoryview(content)
    for start in range(0, len(view), BLOCK):
        yield bytes(view[start : start + BLOCK])


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Yield a locked new folder in the outbox; remove its remains at the end."""
    path = root / f"{STAGING_PREFIX}{secrets.token_hex(8)}"
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _publish(staging: Path, root: Path, name: PurePosixPath) -> str:
    """Give a staging folder its final name, which sorts by the document's name, then by time."""
    key = hashlib.sha256(bytes(name)).hexdigest()[:_KEY_DIGITS]
    latest = max((each for each in _names(root) if each.startswith(key)), default=f"{key}-0")
    number = max(time.time_ns(), int(latest[_KEY_DIGITS + 1 :], 16) + 1)
    while True:
        made = f"{key}-{number:016x}"
        try:
            staging.rename(root / made)
        except OSError:
            if not (root / made).exists():
                raise
            number += 1  # another process put a document of this name at the same moment
        else:
            return made


def _names(root: Path) -> list[str]:
    """Return the names of the folders in an outbox, in order."""
    try:
        return sorted(entry.name for entry in os.scandir(root))
    except FileNotFoundError:
        return []


def _remove_files(root: Path, folders: Iterable[str]) -> list[bytes]:
    """Remove the documents in these folders durably, and return their paths."""
    removed = []
    for folder in folders:
        for path in [path for path in (root / folder).rglob("*") if not path.is_dir()]:
            path.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                _sync(path.parent)
            removed.append(os.fsencode(path.relative_to(root)))
    return removed


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime < STAGING_AGE_S:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _remove_empty(path: Path) -> None:
    """Remove a folder and its subfolders if they are empty."""
    with suppress(OSError):  # not empty
        for folder, _, _ in os.walk(path, topdown=False):
            Path(folder).rmdir()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
