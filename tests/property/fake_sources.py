"""Simulate the bytes of documents, and their opening, without a disk."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

from docferry.errors import SourceChanged
from docferry.files.safe_open import Root
from docferry.files.source import Opener
from docferry.model import (
    Digests,
    Source,
    Stamp,
)


class Bytes(Source, AbstractAsyncContextManager["Bytes"]):
    """Provide a document's bytes, which rarely change during the send."""

    md5 = None

    def __init__(self, opener: MemoryOpener, content: bytes, *, changes: bool) -> None:
        self.opener = opener
        self._content = content
        self._changes = changes
        self.is_wanted = False

    @property
    def size(self) -> int:
        return len(self._content)

    async def blocks(self) -> AsyncIterator[bytes]:
        self.is_wanted = True
        yield self._content[:1]
        if self._changes:
            raise SourceChanged("it changed")
        yield self._content[1:]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def discard(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class MemoryOpener(Opener):
    """Open documents in memory."""

    def __init__(self, root: Path, contents: Mapping[str, bytes], jitter: random.Random) -> None:
        super().__init__(Root(root))
        self._contents = contents
        self._random = jitter

    def source(self, path: bytes, stamp: Stamp, digests: Digests, md5: bool = False) -> Any:  # noqa: ARG002 - known by its digest
        return Bytes(self, self._contents[digests.sha256], changes=self._random.random() < 0.002)

    async def open(self, *sources: object) -> None:
        """Do nothing."""
