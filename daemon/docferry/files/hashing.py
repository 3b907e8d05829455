"""Read a file once: take its digests, and make sure that nobody changed it meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

from xxhash import xxh3_128

from docferry.errors import SourceChanged, SourceError
from docferry.files import write_lease
from docferry.files.safe_open import BLOCK, OpenRoot, Root, read_exactly, source_error, stamp_of
from docferry.model import Digests, Stamp, escaped


@dataclass(frozen=True, slots=True)
class HashedFile:
    """The result of reading a file once.

    `no_writer` is False when a program has the file open for writing (`digests` is None then), and None when the
    kernel does not tell.
    """

    stamp: Stamp
    no_writer: bool | None
    digests: Digests | None


def hash_files(root: Root, paths: Iterable[bytes], *, md5: bool = False) -> list[HashedFile | SourceError]:
    """Read files once each, in the calling thread; the error of a file stands in its place. Raises FolderError."""
    found: list[HashedFile | SourceError] = []
    with OpenRoot(root) as opened:
        for path in paths:
            try:
                found.append(_hash(opened, path, md5))
            except SourceError as error:
                found.append(error)
    return found


def hash_file(root: Root, path: bytes, *, md5: bool = False) -> HashedFile:
    """Read one file. Raises SourceError, and FolderError when the root is missing."""
    (found,) = hash_files(root, [path], md5=md5)
    if isinstance(found, SourceError):
        raise found
    return found


def digests_of(descriptor: int, size: int, *, md5: bool) -> Digests:
    """Return the digests of an open file's first `size` bytes. Raises SourceChanged when it is shorter, and OSError."""
    sha256, fingerprint, other = hashlib.sha256(), xxh3_128(), hashlib.md5(usedforsecurity=False)
    pending: Future[None] | None = None
    # MD5 takes twice as long as the rest, and releases the GIL: for a large file it runs on a core of its own.
    with ThreadPoolExecutor(1, "md5") if md5 and size > BLOCK else nullcontext() as beside:
        for offset in range(0, size, BLOCK):
            block = read_exactly(descriptor, min(BLOCK, size - offset), offset)
            if pending is not None:
                pending.result()
            if beside is not None:
                pending = beside.submit(other.update, block)
            elif md5:
                other.update(block)
            sha256.update(block)
            fingerprint.update(block)
    return Digests(sha256.hexdigest(), fingerprint.hexdigest(), other.hexdigest() if md5 else None)


def _hash(opened: OpenRoot, path: bytes, md5: bool) -> HashedFile:
    descriptor = opened.open_file(path)
    try:
        return _hash_without_writer(descriptor, path, md5)
    except OSError as error:
        raise source_error(path, error) from error
    finally:
        os.close(descriptor)


def _hash_without_writer(descriptor: int, path: bytes, md5: bool) -> HashedFile:
    free = write_lease.take(descriptor)
    stamp = stamp_of(descriptor, path)
    if free is False:
        return HashedFile(stamp, False, None)
    keeps_lease = bool(free) and stamp.size <= BLOCK
    if free and not keeps_lease:
        write_lease.release(descriptor)  # a writer must not wait for as long as a large file takes
    found = digests_of(descriptor, stamp.size, md5=md5)
    if not keeps_lease and Stamp.of(os.fstat(descriptor)) != stamp:
        raise SourceChanged(f"{escaped(path)} changed while it was being read")
    # A program may have opened it for writing meanwhile; writing through an mmap changes the stamp late.
    if free and not (
        write_lease.is_held(descriptor) if keeps_lease else write_lease.no_writer(descriptor) is not False
    ):
        return HashedFile(stamp, False, None)
    return HashedFile(stamp, free, found)
