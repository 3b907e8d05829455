"""What Codat has of one file beyond its bytes, and the ZIP that gathers such files by integration."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import IO

import anyio.to_thread

from docferry.simulator.recorder import Stored

_BLOCK = 256 * 1024
#: ZIPs up to this size are made in memory.
_IN_MEMORY = 32 * 1024 * 1024


@dataclass(slots=True)
class Filed:
    """A stored file as the list shows it. `at` is steady seconds."""

    stored: Stored
    uploaded: str
    source_type: str
    integration: str
    at: float
    _row: str = field(default="", repr=False)

    def row(self) -> str:
        """Its JSON object in the list; made once, as lists grow long."""
        if not self._row:
            self._row = json.dumps(
                {
                    "uploaded": self.uploaded,
                    "fileName": self.stored.name,
                    "sourceType": self.source_type,
                    "displayName": None,
                }
            )
        return self._row


async def zip_of(files: Sequence[Filed]) -> tuple[IO[bytes], int]:
    """A ZIP of those files whose bytes were kept, in a folder for each integration, and its length."""
    return await anyio.to_thread.run_sync(_zip, files)


async def blocks_of(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    with spool:
        while block := await anyio.to_thread.run_sync(spool.read, _BLOCK):
            yield block


def _zip(files: Sequence[Filed]) -> tuple[IO[bytes], int]:
    spool = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by who reads it
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two files of one name are two members of one name
        for filed in files:
            if filed.stored.content is not None:
                archive.writestr(f"{filed.integration}/{filed.stored.name}", filed.stored.content)
    length = spool.tell()
    spool.seek(0)
    return spool, length
