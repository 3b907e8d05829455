"""Read a file once: take its digests, and make sure that nobody changed it meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Final

from anyio import from_thread
from xxhash import xxh3_128

from docferry.errors import SourceChanged, SourceError
from docferry.files import write_lease
from docferry.files.safe_open import BLOCK, OpenRoot, Root, read_exactly, source_error, stamp_of
from docferry.model import ContentFault, Digests, Stamp, escaped

#: Bytes at the end of a file that tell whether it is complete: a ZIP archive's last record, with the longest comment.
TAIL: Final = 22 + 65_535

#: Returns the evident fault of a file, given its path, size, first bytes and last bytes (TAIL or more, if it has them).
Inspect = Callable[[bytes, int, bytes, bytes], ContentFault | None]


@dataclass(frozen=True, slots=True)
class HashedFile:
    """The result of reading a file once.

    `no_writer` is False when a program has the file open for writing (`digests` is None then), and None when the
    kernel does not tell. `fault` is what `inspect` found.
    """

    stamp: Stamp
    no_writer: bool | None
    digests: Digests | None
    fault: ContentFault | None = None


class Ends:
    """The first and last bytes of a file, gathered while it is read. A small file is its own ends, without a copy."""

    def __init__(self) -> None:
        self.head = self.tail = b""

    def add(self, block: bytes, offset: int, size: int) -> None:
        """Take what belongs to the ends of a file of `size` bytes."""
        if offset == 0:
            self.head = block
        if offset + 2 * BLOCK >= size:  # the last block may be shorter than TAIL
            self.tail = block if len(block) >= TAIL else self.tail[-TAIL:] + block


def hash_files(
    root: Root, paths: Iterable[bytes], *, md5: bool = False, inspect: Inspect | None = None
) -> list[HashedFile | SourceError]:
    """Read files once each, in the calling thread; the error of a file stands in its place. Raises FolderError."""
    found: list[HashedFile | SourceError] = []
    with OpenRoot(root) as opened:
        for path in paths:
            try:
                found.append(_hash(opened, path, md5, inspect))
            except SourceError as error:
                found.append(error)
            except Exception as error:  # noqa: BLE001 - whatever a file brings about, it stays with this file
                found.append(source_error(path, error))
    return found


def hash_file(root: Root, path: bytes, *, md5: bool = False, inspect: Inspect | None = None) -> HashedFile:
    """Read one file. Raises SourceError, and FolderError when the root is missing."""
    (found,) = hash_files(root, [path], md5=md5, inspect=inspect)
    if isinstance(found, SourceError):
        raise found
    return found


def digests_of(descriptor: int, size: int, *, md5: bool, ends: Ends | None = None) -> Digests:
    """Return the digests of an open file's first `size` bytes. Raises SourceChanged when it is shorter, and OSError."""
    sha256, fingerprint, other = hashlib.sha256(), xxh3_128(), hashlib.md5(usedforsecurity=False)
    pending: Future[None] | None = None
    # MD5 takes twice as long as the rest, and releases the GIL: for a large file it runs on a core of its own.
    with ThreadPoolExecutor(1, "md5") if md5 and size > BLOCK else nullcontext() as beside:
        for offset in range(0, size, BLOCK):
            if offset:  # a small file is read at once
                raise_if_cancelled()
            block = read_exactly(descriptor, min(BLOCK, size - offset), offset)
            if pending is not None:
                pending.result()
            if beside is not None:
                pending = beside.submit(other.update, block)
            elif md5:
                other.update(block)
            if ends is not None:
                ends.add(block, offset, size)
            sha256.update(block)
            fingerprint.update(block)
    return Digests(sha256.hexdigest(), fingerprint.hexdigest(), other.hexdigest() if md5 else None)


def sha256_of(descriptor: int, size: int) -> str:
    """Return the SHA-256 of an open file's first `size` bytes, or of fewer where it is shorter. Raises OSError."""
    sha256 = hashlib.sha256()
    for offset in range(0, size, BLOCK):
        raise_if_cancelled()
        sha256.update(os.pread(descriptor, min(BLOCK, size - offset), offset))
    return sha256.hexdigest()


def raise_if_cancelled() -> None:
    """Let a thread that reads a large file end soon after its task was cancelled: a stop must not wait for it."""
    with suppress(RuntimeError):  # this thread works for no task
        from_thread.check_cancelled()


def _hash(opened: OpenRoot, path: bytes, md5: bool, inspect: Inspect | None) -> HashedFile:
    descriptor = opened.open_file(path)
    try:
        return _hash_without_writer(descriptor, path, md5, inspect)
    except OSError as error:
        raise source_error(path, error) from error
    finally:
        os.close(descriptor)


def _hash_without_writer(descriptor: int, path: bytes, md5: bool, inspect: Inspect | None) -> HashedFile:
    free = write_lease.take(descriptor)
    stamp = stamp_of(descriptor, path)
    if free is False:
        return HashedFile(stamp, False, None)
    keeps_lease = bool(free) and stamp.size <= BLOCK
    if free and not keeps_lease:
        write_lease.release(descriptor)  # a writer must not wait for as long as a large file takes
    ends = None if inspect is None else Ends()
    found = digests_of(descriptor, stamp.size, md5=md5, ends=ends)
    if not keeps_lease and Stamp.of(os.fstat(descriptor)) != stamp:
        raise SourceChanged(f"{escaped(path)} changed while it was being read")
    # A program may have opened it for writing meanwhile; writing through an mmap changes the stamp late.
    if free and not (
        write_lease.is_held(descriptor) if keeps_lease else write_lease.no_writer(descriptor) is not False
    ):
        return HashedFile(stamp, False, None)
    fault = None if inspect is None or ends is None else inspect(path, stamp.size, ends.head, ends.tail)
    return HashedFile(stamp, free, found, fault)
