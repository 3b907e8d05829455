"""Reading a file once: its digests, and whether it held still meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_128

from docferry.errors import SourceChanged, SourceError
from docferry.files import write_lease
from docferry.files.plain_tree import BLOCK, Visit, read_exactly, source_error, stamp_of
from docferry.model import Digests, Stamp, escaped


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading a file once brought. `at_rest` False: somebody has it open for writing, and `digests` is None;
    `at_rest` None: the kernel does not tell."""

    stamp: Stamp
    no_writer: bool | None
    digests: Digests | None


def digests(root: Path, paths: Iterable[bytes], *, md5: bool = False) -> list[Reading | SourceError]:
    """Read files once each, in one call from one thread; what went wrong stands in its place. Raises FolderError."""
    found: list[Reading | SourceError] = []
    with Visit(root) as visit:
        for path in paths:
            try:
                found.append(_read(visit, path, md5))
            except SourceError as error:
                found.append(error)
    return found


def digest(root: Path, path: bytes, *, md5: bool = False) -> Reading:
    """One file. Raises SourceError, and FolderError when the root is away."""
    (found,) = digests(root, [path], md5=md5)
    if isinstance(found, SourceError):
        raise found
    return found


def of_bytes(descriptor: int, size: int, *, md5: bool) -> Digests:
    """The digests of an open file's first `size` bytes. Raises SourceChanged when there are fewer, and OSError."""
    sha256, fingerprint, other = hashlib.sha256(), xxh3_128(), hashlib.md5(usedforsecurity=False)
    behind: Future[None] | None = None
    # An MD5 takes twice as long as all the rest, and lets go of the GIL: for a large file it gets a core of its own.
    with ThreadPoolExecutor(1, "md5") if md5 and size > BLOCK else nullcontext() as beside:
        for offset in range(0, size, BLOCK):
            block = read_exactly(descriptor, min(BLOCK, size - offset), offset)
            if behind is not None:
                behind.result()
            if beside is not None:
                behind = beside.submit(other.update, block)
            elif md5:
                other.update(block)
            sha256.update(block)
            fingerprint.update(block)
    return Digests(sha256.hexdigest(), fingerprint.hexdigest(), other.hexdigest() if md5 else None)


def _read(visit: Visit, path: bytes, md5: bool) -> Reading:
    descriptor = visit.open(path)
    try:
        return _at_rest(descriptor, path, md5)
    except OSError as error:
        raise source_error(path, error) from error
    finally:
        os.close(descriptor)


def _at_rest(descriptor: int, path: bytes, md5: bool) -> Reading:
    rest = write_lease.take(descriptor)
    stamp = stamp_of(descriptor, path)
    if rest is False:
        return Reading(stamp, False, None)
    held = bool(rest) and stamp.size <= BLOCK
    if rest and not held:
        write_lease.give_back(descriptor)  # no writer shall wait for as long as a large file takes
    found = of_bytes(descriptor, stamp.size, md5=md5)
    if not held and Stamp.of(os.fstat(descriptor)) != stamp:
        raise SourceChanged(f"{escaped(path)} changed while it was being read")
    # Somebody may have opened it for writing meanwhile; an mmap leaves no stamp at first.
    if rest and not (write_lease.is_held(descriptor) if held else write_lease.no_writer(descriptor) is not False):
        return Reading(stamp, False, None)
    return Reading(stamp, rest, found)
