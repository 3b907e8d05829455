"""A document's bytes: opened without following links, proved to be the planned ones, given out in blocks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream
from xxhash import xxh3_128

from docferry.errors import SourceChanged, SourceError
from docferry.files.hashing import of_bytes
from docferry.files.plain_tree import BLOCK, Visit, read_exactly, source_error, stamp_of
from docferry.model import Digests, Source, Stamp, escaped


class Opener:
    """Opens the sources of one folder: those that come while the thread is busy go there together. A folder that hangs
    makes nobody wait but its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._waiting: list[FileSource] = []
        self._one_visit = anyio.Lock(fast_acquire=True)

    def source(self, path: bytes, stamp: Stamp, digests: Digests, md5: bool = False) -> FileSource:
        """The file as a source for one attempt: `async with opener.source(…) as source`. Entering raises SourceError
        unless the file looks as it was planned; a small one is then already proved, byte for byte."""
        return FileSource(self, path, stamp, digests, md5)

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
        with Visit(self._root) as visit:
            for source in together:
                try:
                    source.open(visit)
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
    """Small files are read and proved in one call of a thread, large ones in blocks: while one is being sent, the
    next one is read and its fingerprint taken, so that two are in memory. `blocks` may be asked for again."""

    def __init__(self, opener: Opener, path: bytes, stamp: Stamp, digests: Digests, md5: bool) -> None:
        self.opener, self._path = opener, path
        self._stamp, self._digests, self._wants_md5 = stamp, digests, md5
        self._descriptor = -1
        self._whole: bytes | None = None
        self._readers: TaskGroup | None = None
        self.is_open = False
        self.is_wanted = False  # whether anybody has asked for bytes: until then none of them can have left
        self.trouble: Exception | None = None  # why it could not be opened

    @property
    def size(self) -> int:
        return self._stamp.size

    @property
    def md5(self) -> str | None:
        return self._digests.md5

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
        self.is_wanted = True
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

    def open(self, visit: Visit) -> None:
        """In a thread: as far as the first byte, or to the last of a small file."""
        descriptor = visit.open(self._path)
        kept = False
        try:
            if stamp_of(descriptor, self._path) != self._stamp:
                raise self._changed()
            if self._digests.fingerprint is None or (self._wants_md5 and self._digests.md5 is None):
                self._read_through(descriptor)
            if self._stamp.size <= BLOCK:
                self._whole = read_exactly(descriptor, self._stamp.size, 0)
                self._prove(xxh3_128(self._whole).hexdigest())
            else:
                self._descriptor, kept = descriptor, True
        except OSError as error:
            raise source_error(self._path, error) from error
        finally:
            if not kept:
                os.close(descriptor)

    def _read_through(self, descriptor: int) -> None:
        """It was planned by a docferry that took fewer digests: the ones it took prove the others."""
        found = of_bytes(descriptor, self._stamp.size, md5=self._wants_md5)
        if found.sha256 != self._digests.sha256:
            raise self._other_bytes()
        self._digests = found

    def let_go(self) -> None:
        """The bytes of a small file are not wanted any more."""
        self._whole = None

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
                found = source_error(self._path, error) if isinstance(error, OSError) else error
                await _tell(send, found)

    async def _read_blocks(self, send: MemoryObjectSendStream[bytes | Exception]) -> None:
        """While a block is on its way, the next one is read, and the last one is proved before it is given out."""
        fingerprint = xxh3_128()

        def read(offset: int) -> bytes:
            block = read_exactly(self._descriptor, min(BLOCK, self._stamp.size - offset), offset)
            fingerprint.update(block)
            if offset + len(block) == self._stamp.size:
                self._prove(fingerprint.hexdigest())
                if stamp_of(self._descriptor, self._path) != self._stamp:
                    raise self._changed()
            return block

        for offset in range(0, self._stamp.size, BLOCK):
            await send.send(await to_thread.run_sync(read, offset))

    def _prove(self, fingerprint: str) -> None:
        if fingerprint != self._digests.fingerprint:
            raise self._other_bytes()

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{escaped(self._path)} changed since it was planned: the new version gets its turn")

    def _other_bytes(self) -> SourceChanged:
        return SourceChanged(f"{escaped(self._path)} has other bytes than planned: the new version gets its turn")


async def _tell(send: MemoryObjectSendStream[bytes | Exception], error: Exception) -> None:
    try:
        await send.send(error)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return
