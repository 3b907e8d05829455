"""Helpers of the tests that read files."""

from __future__ import annotations

import os
from pathlib import Path

from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.model import Digests, Stamp


def fill(path: Path, size: int) -> bytes:
    content = os.urandom(size)
    path.write_bytes(content)
    return content


def drop_from_cache(path: Path) -> None:
    """Make the next read of a file wait for the disk; a file in memory alone stays there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def digests_of(root: Path, name: str = "a.pdf", *, md5: bool = False) -> tuple[Stamp, Digests]:
    known = hash_file(Root(root), name.encode(), md5=md5)
    assert known.digests is not None
    return known.stamp, known.digests


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
