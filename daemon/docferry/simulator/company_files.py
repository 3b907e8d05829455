"""Define a file as Codat lists it, and build the ZIP that groups files by integration."""

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
#: ZIPs up to this size are built in memory.
_IN_MEMORY = 32 * 1024 * 1024


@dataclass(slots=True)
class CompanyFile:
    """Hold a stored file with its list entry. `at` is in steady seconds."""

    stored: Stored
    uploaded: str
    source_type: str
    integration: str
    at: float
    _row: str = field(default="", repr=False)

    def row(self) -> str:
        """Return the JSON object of the file in the list, built once because lists grow long."""
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


async def build_zip(files: Sequence[CompanyFile]) -> tuple[IO[bytes], int]:
    """Return a ZIP of the files with stored bytes, one folder for each integration, and its length."""
    return await anyio.to_thread.run_sync(_zip, files)


async def read_blocks(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a file in blocks, then close it."""
    with spool:
        while block := await anyio.to_thread.run_sync(spool.read, _BLOCK):
            yield block


def _zip(files: Sequence[CompanyFile]) -> tuple[IO[bytes], int]:
    spool = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - `read_blocks` closes it
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two files with one name become two members with one name
        for company_file in files:
            if company_file.stored.content is not None:
                archive.writestr(f"{company_file.integration}/{company_file.stored.name}", company_file.stored.content)
    length = spool.tell()
    spool.seek(0)
    return spool, length
