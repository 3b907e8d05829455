"""Read a document's bytes in blocks, and prove that they are the planned ones."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.lowlevel import checkpoint
from xxhash import xxh3_128

from docferry.errors import FolderError, SourceChanged, SourceError
from docferry.files.folder_thread import run_in_folder
from docferry.files.hashing import digests_of
from docferry.files.safe_open import BLOCK, OpenRoot, Root, read_exactly, source_error, stamp_of
from docferry.model import Digests, Source, Stamp, escaped

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class Opener:
    """Open the sources of one root in a thread.

    Sources requested while the thread is busy are opened together in the next call. A hanging root delays only its own
    sources.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._waiting: list[FileSource] = []
        self._one_call = anyio.Lock(fast_acquire=True)

    def source(self, path: bytes, stamp: Stamp, digests: Digests, md5: bool = False) -> FileSource:
        """Return the file as a source for one attempt: `async with opener.source(…) as source`.

        Entering raises SourceError unless the file has this stamp. A small file is then already read and proved, unless
        `stays_open` was set.
        """
        return FileSource(self, path, stamp, digests, md5)

    async def open(self, *sources: FileSource) -> None:
        """Open these sources together with all other waiting ones. Errors are raised when a source is entered.

        After a cancellation, none of these sources stays open. A thread that hangs closes them once it continues.
        """
        self._waiting += sources
        try:
            async with self._one_call:
                await checkpoint()  # tasks that were started together open their sources in one call
                if not all(source.is_open for source in sources):
                    # cancelled before the call: all continue to wait
                    await run_in_folder(self._root, self._open, tuple(self._waiting))
                    self._waiting = [source for source in self._waiting if not source.is_open]
        except BaseException:
            self._waiting = [source for source in self._waiting if source not in sources]
            for source in sources:
                source.close()
            raise

    def _open(self, together: Sequence[FileSource]) -> None:
        try:
            with OpenRoot(self._root) as opened:
                for source in together:
                    _open_one(source, opened)
        except FolderError as error:
            for source in together:
                source.trouble, source.is_open = error, True


async def open_together(sources: Iterable[FileSource]) -> None:
    """Open the sources of one request, with one call in a thread for each root. Errors are raised on entering."""
    by_opener: dict[Opener, list[FileSource]] = {}
    for source in sources:
        by_opener.setdefault(source.opener, []).append(source)
    for opener, group in by_opener.items():
        await opener.open(*group)


class OpenedFile(Source, AbstractAsyncContextManager["OpenedFile"]):
    """Read an open file, and prove its bytes before the last block: the XXH3 of all, and the stamp.

    `read_small` reads a small file in advance. `blocks` may be called again.
    """

    def __init__(self, descriptor: int, path: bytes, stamp: Stamp, fingerprint: str) -> None:
        self.descriptor, self.path, self.stamp, self.fingerprint = descriptor, path, stamp, fingerprint
        self.whole: bytes | None = None  # of a small file after `read_small`
        self._is_closed = False
        self._is_read = False  # a thread reads at this moment, and closes the file if it was closed meanwhile

    @property
    def size(self) -> int:
        """Return the size of the document in bytes."""
        return self.stamp.size

    @property
    def is_small(self) -> bool:
        """Return whether the file is one block."""
        return self.size <= BLOCK

    @property
    def md5(self) -> str | None:
        """Return None: an open file never needs its MD5."""
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes in order. Raises SourceChanged instead of the last block unless they are the planned ones.

        Blocks of a large file come from the page cache at once, which costs less than a change of thread. A block that
        is not there is read in a thread.
        """
        if self.is_small:
            if self.whole is None:
                await self._in_thread(self.read_small)
            if self.whole:
                yield self.whole
            return
        fingerprint, space = xxh3_128(), memoryview(bytearray(BLOCK))
        for offset in range(0, self.size, BLOCK):
            wanted = space[: self.size - offset]
            cached = self._read_cached(wanted, offset)
            block = bytes(wanted) if cached else await self._in_thread(self._read_block, len(wanted), offset)
            fingerprint.update(block)
            if offset + len(block) == self.size:
                self._prove(fingerprint.hexdigest())
                if cached:  # such a file system is local: its stamp comes from memory too
                    self._prove_stamp()
            yield block

    def read_small(self) -> None:
        """Read and prove a small file in the calling thread. Raises SourceError."""
        try:
            self._take_small(read_exactly(self.descriptor, self.size, 0))
        except SourceError:
            raise
        except Exception as error:
            raise source_error(self.path, error) from error

    def read_cached(self) -> bool:
        """Read and prove a small file from the page cache; False if it is not there. Raises SourceError."""
        content = bytearray(self.size)
        if not self._read_cached(content, 0):
            return False
        self._take_small(bytes(content))
        return True

    def close(self) -> None:
        """Close the file, unless it is closed. A thread that reads it closes it at its end."""
        self._is_closed = True
        if not self._is_read:
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1  # at once, because two threads may call this
        if descriptor >= 0:
            os.close(descriptor)

    async def _in_thread(self, read: Callable[[Unpack[_Arguments]], _Result], *arguments: *_Arguments) -> _Result:
        """Return the result of a function that reads the file. A cancellation does not wait for a hanging share."""

        def marked() -> _Result:
            self._is_read = True
            try:
                return read(*arguments)
            finally:
                self._is_read = False
                if self._is_closed:
                    self._close_descriptor()

        return await run_in_folder(self.path, marked)

    def _take_small(self, content: bytes) -> None:
        self._prove(xxh3_128(content).hexdigest())
        self._prove_stamp()
        self.whole = content

    def _read_block(self, length: int, offset: int) -> bytes:
        """Read a block in the calling thread, while the kernel reads the next one; prove the stamp after the last."""
        try:
            os.posix_fadvise(self.descriptor, offset + length, BLOCK, os.POSIX_FADV_WILLNEED)
            block = read_exactly(self.descriptor, length, offset)
            if offset + length == self.size:
                self._prove_stamp()
        except SourceError:
            raise
        except Exception as error:
            raise source_error(self.path, error) from error
        return block

    def _read_cached(self, space: memoryview | bytearray, offset: int) -> bool:
        """Fill `space` from the page cache without waiting; return False unless all bytes are there."""
        try:
            return os.preadv(self.descriptor, [space], offset, os.RWF_NOWAIT) == len(space)
        except OSError:  # EAGAIN: they are not there; EOPNOTSUPP: the file system does not say
            return False

    def _prove(self, fingerprint: str) -> None:
        if fingerprint != self.fingerprint:
            raise _mismatch(self.path)

    def _prove_stamp(self) -> None:
        try:
            found = stamp_of(self.descriptor, self.path)
        except OSError as error:
            raise source_error(self.path, error) from error
        if found != self.stamp:
            raise _changed(self.path)


class FileSource(Source, AbstractAsyncContextManager["FileSource"]):
    """Hold the bytes of one document for one attempt: a small file in memory, or an open file."""

    def __init__(self, opener: Opener, path: bytes, stamp: Stamp, digests: Digests, md5: bool) -> None:
        self.opener, self._path = opener, path
        self._stamp, self._digests, self._wants_md5 = stamp, digests, md5
        self._whole: bytes | None = None
        self._file: OpenedFile | None = None
        self.stays_open = False  # also for a small file, because another process reads it
        self.is_open = False
        self._is_closed = False
        self.is_wanted = False  # blocks were requested: before that, none can have been sent
        self.trouble: Exception | None = None  # the error of opening

    @property
    def size(self) -> int:
        """Return the size of the document in bytes."""
        return self._stamp.size

    @property
    def md5(self) -> str | None:
        """Return the hex MD5 of the bytes, None unless requested."""
        return self._digests.md5

    @property
    def opened(self) -> bytes | OpenedFile | None:
        """Return the bytes of a small file, or the open file, for a sender process; None after the close."""
        return self._file if self._whole is None else self._whole

    async def __aenter__(self) -> Self:
        if not self.is_open:
            await self.opener.open(self)
        if self.trouble is not None:
            raise self.trouble
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes in order. Raises SourceChanged instead of the last block unless they are the planned ones."""
        self.is_wanted = True
        if self._whole is not None:
            if self._whole:
                yield self._whole
            return
        if self._file is None:
            raise RuntimeError("a source gives out blocks only inside its `async with`")
        async with aclosing(self._file.blocks()) as blocks:
            async for block in blocks:
                yield block

    def open(self, opened: OpenRoot) -> None:
        """Open the file in the calling thread; read and prove it if it is small. Raises SourceError."""
        descriptor, is_kept = opened.open_file(self._path), False
        try:
            is_kept = self._take(descriptor)
        except SourceError:
            raise
        except Exception as error:
            raise source_error(self._path, error) from error
        finally:
            if not is_kept:
                os.close(descriptor)

    def _take(self, descriptor: int) -> bool:
        """Read a small file completely, or keep the descriptor; return whether it is kept."""
        if stamp_of(descriptor, self._path) != self._stamp:
            raise _changed(self._path)
        fingerprint = self._digests.fingerprint
        if fingerprint is None or (self._wants_md5 and self._digests.md5 is None):
            fingerprint = self._read_through(descriptor)
        file = OpenedFile(descriptor, self._path, self._stamp, fingerprint)
        if file.is_small and not self.stays_open:
            file.read_small()
            self._whole = file.whole
            return False
        if self._file is not None:  # a thread that hung has continued after another one
            return False
        self._file = file
        if self._is_closed:  # `close` saw no file yet
            file.close()
        return True

    def _read_through(self, descriptor: int) -> str:
        """Compute digests that are missing because an older docferry planned the document.

        The SHA-256 proves the bytes.
        """
        found = digests_of(descriptor, self._stamp.size, md5=self._wants_md5)
        if found.sha256 != self._digests.sha256 or found.fingerprint is None:
            raise _mismatch(self._path)
        self._digests = found
        return found.fingerprint

    def discard(self) -> None:
        """Free the memory of a small file's bytes."""
        self._whole = None

    def close(self) -> None:
        """Close the file, unless it is closed. A thread that is opening it closes it at once."""
        self._is_closed = True
        if self._file is not None:
            self._file.close()


def _changed(path: bytes) -> SourceChanged:
    return SourceChanged(f"{escaped(path)} changed since it was planned: the new version is queued next")


def _mismatch(path: bytes) -> SourceChanged:
    return SourceChanged(f"{escaped(path)} has other bytes than planned: the new version is queued next")


def _open_one(source: FileSource, opened: OpenRoot) -> None:
    try:
        source.open(opened)
    except Exception as error:  # noqa: BLE001 - concerns only this source, and is raised on entering it
        source.trouble = error
    source.is_open = True
