"""Build documents in memory for tests of remotes."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from xxhash import xxh3_128

from docferry.errors import SourceChanged
from docferry.files.source import OpenedFile
from docferry.model import Stamp, State, Target, Transfer, UploadItem

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
CODAT = Target("codat", COMPANY, CONNECTION)
WOOTIV = Target("wootiv")


@dataclass
class Bytes:
    """Provide a source without a disk. `changes`: its last block is never yielded."""

    content: bytes
    block: int = 64 * 1024
    changes: bool = False
    is_wanted: bool = False
    _file: OpenedFile | None = None

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def opened(self) -> OpenedFile | None:
        """Return the bytes as a file for a sender process, unless the test needs blocks without a file."""
        if self.changes:
            return None
        if self._file is None:
            descriptor = os.memfd_create("document")
            os.pwrite(descriptor, self.content, 0)
            stamp = Stamp.of(os.fstat(descriptor))
            self._file = OpenedFile(descriptor, b"a.pdf", stamp, xxh3_128(self.content).hexdigest())
        return self._file

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    async def blocks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.content), self.block):
            if self.changes and start + self.block >= len(self.content):
                raise SourceChanged("the file changed while it was sent")
            yield self.content[start : start + self.block]


def transfer(name: str, content: bytes = b"some bytes", target: Target = CODAT, **more: Any) -> Transfer:
    now = time.time()
    made = Transfer(
        id=uuid.uuid4().int >> 80,
        uid=uuid.uuid4().hex,
        mapping="test",
        target=target,
        remote_name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        state=State.SENDING,
        lease=1,
        tries=0,
        key_version=0,
        created=now,
        due_since=now,
        first_sent=now,
        last_sent=now,
        reason=None,
        detail=None,
    )
    return replace(made, **more)


def item(name: str, content: bytes = b"some bytes", target: Target = CODAT, **source: Any) -> UploadItem:
    return UploadItem(transfer(name, content, target), Bytes(content, **source))
