"""A document's bytes: opened without following links, proved to be the planned ones, given out in blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from docferry.errors import SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.beneath import AWAY, components, opened_folder, why
from docferry.files.lease import at_rest, guard_signals
from docferry.model import Source, Stamp, escaped, parted

__all__ = [
    "Digest",
    "FileSource",
    "Opener",
    "at_rest",
    "digest",
    "digests",
    "guard_signals",
    "open_plain",
    "open_together",
]

BLOCK = 1 << 19  # larger ones are a little faster, and eight workers hold three each; smaller files are one block
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Digest:
    """What reading a file once brought. `at_rest` False: somebody has it open for writing; then nothing was read
    and the digests are empty."""

    stamp: Stamp
    sha256: str
    at_rest: bool | None
    md5: str | None = None


def open_plain(root: Path, path: bytes) -> int:
    """A read-only descriptor of a regular file beneath the root, no link followed on the way, never blocking."""
    folder, name = parted(path)
    try:
        components(path)
        with opened_folder(root, folder) as parent:
            descriptor = os.open(name, _PLAIN, dir_fd=parent)
    except OSError as error:
        raise _source_error(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"{escaped(path)} is not a regular file: it is left alone")
    return descriptor


def digest(root: Path, path: bytes, *, md5: bool = False) -> Digest:
    """Read a file once, in a worker thread. Raises SourceError, and FolderError when the root is away."""
    descriptor = open_plain(root, path)
    try:
        return _digest(descriptor, path, md5)
    except OSError as error:
        raise _source_error(path, error) from error
    finally:
        os.close(descriptor)


def digests(root: Path, paths: Iterable[bytes], *, md5: bool = False) -> list[Digest | SourceError]:
    """Many small files in one call from one thread; what went wrong stands in its place. Raises FolderError."""
    return [_digest_or_error(root, path, md5) for path in paths]


class Opener:
    """Opens the sources of one folder: those that come while the thread is busy go there together. A folder that hangs
    makes nobody wait but its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._waiting: list[FileSource] = []
        self._one_visit = anyio.Lock(fast_acquire=True)

    def source(self, path: bytes, stamp: Stamp, sha256: str, md5: bool = False) -> FileSource:
        """The file as a source for one attempt: `async with opener.source(…) as source`. Entering raises SourceError
        unless the file looks as it was planned; a small one is then already proved, byte for byte."""
        return FileSource(self, path, stamp, sha256, md5)

    async def open(self, *sources: FileSource) -> None:
        """Open them, with all others that wait. What goes wrong is raised when a source is entered. Cancelled, each is
        open until `close`, or is not opened."""
        self._waiting += sources
        try:
            async with self._one_visit:
                if not all(source.is_open for source in sources):
                    await to_thread.run_sync(self._open, tuple(self._waiting))  # cancelled before it: all wait on
                    self._waiting = [source for source in self._waiting if not source.is_open]
        except BaseException:
            self._waiting = [source for source in self._waiting if source not in sources]
            with anyio.CancelScope(shield=True):
                async with self._one_visit:  # somebody else's visit may be opening them just now
                    for source in sources:
                        source.close()
            raise

    def _open(self, together: Iterable[FileSource]) -> None:
        for source in together:
            try:
                source.open(self._root)
            except Exception as error:  # noqa: BLE001 - it belongs to this one alone, and is raised where it is waited for
                source.trouble = error
            source.is_open = True


async def open_together(sources: Iterable[FileSource]) -> None:
    """Open the sources of one request, with one visit to a thread for each folder. Errors wait until one is entered."""
    by_opener: dict[Opener, list[FileSource]] = {}
    for source in sources:
        by_opener.setdefault(source.opener, []).append(source)
    for opener, group in by_opener.items():
        await opener.open(*group)


class FileSource(Source, AbstractAsyncContextManager["FileSource"]):
    """Small files are read and proved in one call of a thread, large ones in blocks: while one is being sent, it
    is hashed and the next one is read, so that two are in memory. `blocks` may be asked for again."""

    def __init__(self, opener: Opener, path: bytes, stamp: Stamp, sha256: str, md5: bool) -> None:
        self.opener, self._path = opener, path
        self._stamp, self._sha256, self._wants_md5 = stamp, sha256, md5
        self._descriptor = -1
        self._whole: bytes | None = None
        self._md5: str | None = None
        self._readers: TaskGroup | None = None
        self.is_open = False
        self.trouble: Exception | None = None  # why it could not be opened

    @property
    def size(self) -> int:
        return self._stamp.size

    @property
    def md5(self) -> str | None:
        return self._md5

    async def __aenter__(self) -> Self:
        if not self.is_open:
            await self.opener.open(self)
        if self.trouble is not None:
            raise self.trouble
        if self._whole is None:
            self._readers = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        readers, self._readers = self._readers, None
        if readers is None:
            return None
        try:
            readers.cancel_scope.cancel()
            if isinstance(error, anyio.get_cancelled_exc_class()):
                return await readers.__aexit__(kind, error, trace)
            await readers.__aexit__(None, None, None)  # told of it, a task group would wrap it in an ExceptionGroup
            return None
        finally:
            self.close()

    async def blocks(self) -> AsyncIterator[bytes]:
        if self._whole is not None:
            if self._whole:
                yield self._whole
            return
        if self._readers is None:
            raise RuntimeError("a source gives out blocks only inside its `async with`")
        send, receive = anyio.create_memory_object_stream[bytes | Exception](0)
        self._readers.start_soon(self._read_ahead, send)
        with receive:
            async for block in receive:
                if isinstance(block, Exception):
                    raise block
                yield block

    def open(self, root: Path) -> None:
        """In a thread: as far as the first byte, or to the last of a small file."""
        descriptor = open_plain(root, self._path)
        kept = False
        try:
            self._same_stamp(descriptor)
            if self._stamp.size <= BLOCK:
                self._whole = self._read_whole(descriptor)
            else:
                self._descriptor, kept = descriptor, True
        except OSError as error:
            raise _source_error(self._path, error) from error
        finally:
            if not kept:
                os.close(descriptor)

    def _read_whole(self, descriptor: int) -> bytes:
        content = _read_exactly(descriptor, self._stamp.size, 0)
        self._same_digest(hashlib.sha256(content).hexdigest())
        self._same_stamp(descriptor)
        if self._wants_md5:
            self._md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return content

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def _read_ahead(self, send: MemoryObjectSendStream[bytes | Exception]) -> None:
        """Errors go through the stream: raised here they would cancel whoever holds the source open."""
        with send:
            try:
                await self._read_blocks(send)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # nobody wants the rest
                return
            except (SourceError, OSError) as error:
                found = _source_error(self._path, error) if isinstance(error, OSError) else error
                await _tell(send, found)

    async def _read_blocks(self, send: MemoryObjectSendStream[bytes | Exception]) -> None:
        """While a block is on its way, the next one is read and hashed, in one visit to a thread."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        offset = 0
        block = b""
        while offset < self._stamp.size:
            if offset:
                await send.send(block)
            block = await self._next(block, offset, sha256.update, md5.update)
            offset += len(block)
        self._same_digest(sha256.hexdigest())
        await to_thread.run_sync(self._prove_end, md5.update, block)
        self._md5 = md5.hexdigest() if self._wants_md5 else None
        await send.send(block)

    async def _next(
        self, block: bytes, offset: int, sha256: Callable[[bytes], None], md5: Callable[[bytes], None]
    ) -> bytes:
        """The block at `offset`, its SHA-256 taken; beside it, as a core each lets go of the GIL, `block`'s MD5."""

        def read() -> bytes | Exception:
            try:
                following = _read_exactly(self._descriptor, self._length_at(offset), offset)
            except (OSError, SourceError) as error:
                return error
            sha256(following)
            return following

        async with anyio.create_task_group() if self._wants_md5 and block else nullcontext() as beside:
            if beside is not None:
                beside.start_soon(to_thread.run_sync, md5, block)
            found = await to_thread.run_sync(read)
        if isinstance(found, Exception):
            raise found
        return found

    def _prove_end(self, md5: Callable[[bytes], None], block: bytes) -> None:
        self._same_stamp(self._descriptor)
        if self._wants_md5:
            md5(block)

    def _length_at(self, offset: int) -> int:
        return min(BLOCK, self._stamp.size - offset)

    def _same_stamp(self, descriptor: int) -> None:
        if Stamp.of(os.fstat(descriptor)) != self._stamp:
            raise SourceChanged(f"{escaped(self._path)} changed since it was planned: the new version gets its turn")

    def _same_digest(self, sha256: str) -> None:
        if sha256 != self._sha256:
            raise SourceChanged(f"{escaped(self._path)} has other bytes than planned: the new version gets its turn")


async def _tell(send: MemoryObjectSendStream[bytes | Exception], error: Exception) -> None:
    try:
        await send.send(error)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


def _digest_or_error(root: Path, path: bytes, md5: bool) -> Digest | SourceError:
    try:
        return digest(root, path, md5=md5)
    except SourceError as error:
        return error


def _digest(descriptor: int, path: bytes, md5: bool) -> Digest:
    before = Stamp.of(os.fstat(descriptor))
    rest = at_rest(descriptor)
    if rest is False:
        return Digest(before, "", False)
    sha256 = hashlib.sha256()
    other = hashlib.md5(usedforsecurity=False) if md5 else None
    offset = 0
    while offset < before.size:
        block = _read_exactly(descriptor, min(BLOCK, before.size - offset), offset)
        sha256.update(block)
        if other:
            other.update(block)
        offset += len(block)
    if Stamp.of(os.fstat(descriptor)) != before:
        raise SourceChanged(f"{escaped(path)} changed while it was being read")
    if rest and at_rest(descriptor) is False:  # opened for writing meanwhile; an mmap leaves no stamp at first
        return Digest(before, "", False)
    return Digest(before, sha256.hexdigest(), rest, other.hexdigest() if other else None)


def _read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise SourceChanged("the file became shorter while it was being read: the new version gets its turn")
        content += more
    return content


def _source_error(path: bytes, error: OSError) -> SourceError:
    shown = escaped(path)
    if error.errno == errno.ENOENT:
        return SourceVanished(f"{shown} is no longer there")
    if error.errno in AWAY:
        return SourceVanished(f"{shown} is no longer there, or only behind a link, and links are not followed")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceUnreadable(f"{shown} may not be read: let the user that runs docferry read it")
    return SourceUnreadable(f"{shown} cannot be read ({why(error)}): check the disk or the network share")
