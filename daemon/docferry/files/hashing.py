"""Read a file once: compute its digests, and verify that the file did not change meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Final

from anyio import from_thread
from msgspec import Struct
from xxhash import xxh3_128

from docferry.errors import SourceChanged, SourceError
from docferry.files import write_lease
from docferry.files.safe_open import BLOCK, OpenRoot, Root, read_exactly, source_error, stamp_of
from docferry.model import ContentFault, Digests, Stamp, escaped

#: Bytes at the end of a file that show whether it is complete. The last record of a ZIP has the longest comment.
TAIL: Final = 22 + 65_535

#: The MD5 of a file of this size, in bytes, is computed in a thread of its own: it takes twice as long as the rest.
#: Smaller files are hashed two at a time, and so occupy two cores without it.
_MD5_BESIDE: Final = 16 * 1024 * 1024
#: Blocks that wait for that thread; with one, it would wait for the next after each.
_BLOCKS_BESIDE: Final = 3

#: Returns the evident fault of a file from its path, size, first bytes and last bytes (TAIL if available).
Inspect = Callable[[bytes, int, bytes, bytes], ContentFault | None]


class HashedFile(Struct, frozen=True):
    """Hold the result of reading a file once.

    `no_writer` is False if a program has the file open for writing; `digests` is then None. `no_writer` is None if the
    kernel cannot tell. `fault` is the result of `inspect`.
    """

    stamp: Stamp
    no_writer: bool | None
    digests: Digests | None
    fault: ContentFault | None = None


class Ends:
    """Collect the first and last bytes of a file during the read. A small file is used without a copy."""

    def __init__(self) -> None:
        self.head = self.tail = b""

    def add(self, block: bytes, offset: int, size: int) -> None:
        """Add the part of a block that belongs to the ends of a file of `size` bytes."""
        if offset == 0:
            self.head = block
        if offset + 2 * BLOCK >= size:  # the last block may be shorter than TAIL
            self.tail = block if len(block) >= TAIL else self.tail[-TAIL:] + block


def hash_files(
    root: Root, paths: Iterable[bytes], *, md5: bool = False, inspect: Inspect | None = None
) -> list[HashedFile | SourceError]:
    """Read files once each, in the calling thread; an error takes the place of its file. Raises FolderError."""
    found: list[HashedFile | SourceError] = []
    with OpenRoot(root) as opened:
        for path in paths:
            try:
                found.append(_hash(opened, path, md5, inspect))
            except SourceError as error:
                found.append(error)
            except Exception as error:  # noqa: BLE001 - every error concerns only this file
                found.append(source_error(path, error))
    return found


def hash_file(root: Root, path: bytes, *, md5: bool = False, inspect: Inspect | None = None) -> HashedFile:
    """Read one file. Raises SourceError, and FolderError if the root is missing."""
    (found,) = hash_files(root, [path], md5=md5, inspect=inspect)
    if isinstance(found, SourceError):
        raise found
    return found


def digests_of(descriptor: int, size: int, *, md5: bool, ends: Ends | None = None) -> Digests:
    """Return the digests of an open file's first `size` bytes. Raises OSError, and SourceChanged for a shorter file."""
    sha256, fingerprint, other = hashlib.sha256(), xxh3_128(), hashlib.md5(usedforsecurity=False)
    pending = deque[Future[None]]()
    with ThreadPoolExecutor(1, "md5") if md5 and size >= _MD5_BESIDE else nullcontext() as beside:
        for offset in range(0, size, BLOCK):
            if offset:  # a small file is read in one step
                raise_if_cancelled()
            block = read_exactly(descriptor, min(BLOCK, size - offset), offset)
            if beside is not None:
                if len(pending) == _BLOCKS_BESIDE:
                    pending.popleft().result()
                pending.append(beside.submit(other.update, block))
            elif md5:
                other.update(block)
            if ends is not None:
                ends.add(block, offset, size)
            sha256.update(block)
            fingerprint.update(block)
    return Digests(sha256.hexdigest(), fingerprint.hexdigest(), other.hexdigest() if md5 else None)


def sha256_of(descriptor: int, size: int) -> str:
    """Return the SHA-256 of an open file's first `size` bytes, or of all bytes of a shorter file. Raises OSError."""
    sha256 = hashlib.sha256()
    for offset in range(0, size, BLOCK):
        raise_if_cancelled()
        sha256.update(os.pread(descriptor, min(BLOCK, size - offset), offset))
    return sha256.hexdigest()


def raise_if_cancelled() -> None:
    """Raise in a thread that reads a large file if its task was cancelled. A stop must not wait for the read."""
    with suppress(RuntimeError):  # this thread belongs to no task
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
        write_lease.release(descriptor)  # a writer must not wait until a large file is read
    ends = None if inspect is None else Ends()
    found = digests_of(descriptor, stamp.size, md5=md5, ends=ends)
    if not keeps_lease and Stamp.of(os.fstat(descriptor)) != stamp:
        raise SourceChanged(f"{escaped(path)} changed while it was being read")
    # A program may have opened it for writing meanwhile; a write through mmap changes the stamp late.
    if free and not (
        write_lease.is_held(descriptor) if keeps_lease else write_lease.no_writer(descriptor) is not False
    ):
        return HashedFile(stamp, False, None)
    fault = None if inspect is None or ends is None else inspect(path, stamp.size, ends.head, ends.tail)
    return HashedFile(stamp, free, found, fault)
